import torch
from torch import nn

from visus.ops.averaging import ExponentialAverage


def test_the_average_follows_the_formula():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = ExponentialAverage(model, decay=0.9)
    expected = 0.0
    for step in range(200):
        model.weight.data.fill_(float(step))
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.module.weight.item(), expected, rtol=1e-5, atol=0)


def test_buffers_are_copied_and_the_model_is_left_alone():
    model = nn.BatchNorm2d(2)
    average = ExponentialAverage(model, decay=0.99)
    model(torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)))
    average.update(model, 0)
    for name, buffer in model.named_buffers():
        assert torch.equal(dict(average.module.named_buffers())[name], buffer)
    assert model.training
    assert not average.module.training
    assert all(p.requires_grad for p in model.parameters())
