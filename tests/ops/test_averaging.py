import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from visus.ops.averaging import ExponentialAverage, TailAverage, last_quarter, recomputed_batchnorm


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


def test_the_average_of_the_last_quarter_is_that_of_torch():
    model = nn.Linear(2, 3)
    ours, theirs = TailAverage(model, last_quarter(20)), AveragedModel(model)
    for step in range(20):
        for parameter in model.parameters():
            parameter.data.normal_(generator=torch.Generator().manual_seed(step))
        ours.update(model, step)
        if step >= 15:
            theirs.update_parameters(model)
        else:
            assert torch.equal(ours.module.weight, model.weight)
    torch.testing.assert_close(ours.module.state_dict(), theirs.module.state_dict())


@pytest.mark.parametrize(("steps", "first"), [(1, 0), (3, 2), (4, 3), (8, 6), (100, 75)])
def test_the_last_quarter_has_one_update_at_least(steps, first):
    assert last_quarter(steps) == first


def test_it_has_begun_when_two_are_averaged():
    average = TailAverage(nn.Linear(1, 1), 6)
    assert [average.has_begun(steps) for steps in (6, 7, 8)] == [False, False, True]


def test_batch_norm_is_recomputed_as_by_torch():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), BatchNormAct2d(4), nn.Conv2d(4, 2, 3)).eval()
    ours.requires_grad_(False)
    theirs = copy.deepcopy(ours)
    batches = [torch.randn(n, 1, 8, 8) + n for n in (5, 5, 2)]
    with recomputed_batchnorm(ours, copy.deepcopy(ours).train()):
        for images in batches:
            ours(images)
    update_bn(batches, theirs)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert not any(each.training for each in ours.modules())
    assert ours[1].momentum == 0.1


def test_dropout_stays_off_while_batch_norm_is_recomputed():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1)).eval()
    with recomputed_batchnorm(model, copy.deepcopy(model).train()):
        model(torch.ones(4, 1, 8, 8))
    assert model[1].running_mean == 1
    assert model[1].running_var == 0


def test_frozen_batch_norms_keep_their_statistics():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1))
    average = copy.deepcopy(model).eval()
    model[0].eval()
    with recomputed_batchnorm(average, model):
        average(torch.ones(4, 1, 8, 8))
    assert average[0].running_mean == 0
    assert average[1].running_mean == pytest.approx(1, abs=1e-4)
