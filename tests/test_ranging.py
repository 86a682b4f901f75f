"""The range test: it finds where the loss falls, and leaves everything as it was."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from visus.checkpoint import model_digest
from visus.errors import UsageError
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.ranging import range_test


def quadratic(curvature, repeats=200):
    """Least squares whose second derivative is `curvature`: gradient descent diverges at rates above 2 / curvature."""

    def loss(logits, batch):
        return 0.5 * curvature * ((logits - 3.0) ** 2).sum(), torch.tensor(float(len(logits)))

    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    batches = [(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))] * repeats
    return model, batches, loss


@pytest.mark.parametrize("curvature", [0.5, 50.0])
def test_the_rate_scales_with_the_curvature(curvature):
    model, batches, loss = quadratic(curvature)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = range_test(model, batches, optimizer=optimizer, loss=loss, lowest=1e-6, highest=100.0)
    assert 0.02 / curvature < found.lr < 2.0 / curvature
    assert found.lr == pytest.approx(found.rates[found.losses.index(min(found.losses))] / 10, rel=0.06)
    assert found.rates == sorted(found.rates)
    assert found.rates[-1] < 100.0, "it ends early, once the loss has diverged"


class Drawing(list):
    """Pairs that draw numbers from every generator as they are read."""

    def __iter__(self):
        for pair in super().__iter__():
            random.random()
            np.random.rand()
            torch.rand(1)
            yield pair


def test_model_optimizer_and_generators_are_left_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    optimizer = make_optimizer(model, OptimizerSettings(optimizer="adamw"))
    batches = Drawing((torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))) for _ in range(5))
    functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    optimizer.zero_grad()
    digest, state = model_digest(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    generator, training = torch.get_rng_state(), model.training
    others = random.getstate(), np.random.get_state()

    range_test(model, batches, optimizer=optimizer, steps=30, highest=1.0)

    assert model_digest(model.state_dict()) == digest
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), generator)
    assert random.getstate() == others[0]
    np.testing.assert_equal(np.random.get_state(), others[1])
    after = optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"]
    for key, buffers in state["state"].items():
        assert all(torch.equal(value, after["state"][key][name]) for name, value in buffers.items())


def test_accumulated_batches_are_one_step_and_groups_keep_their_proportions(monkeypatch):
    model, batches, loss = quadratic(1.0)
    other = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD(
        [{"params": list(model.parameters()), "lr": 0.1}, {"params": [other], "lr": 0.01}], lr=0.1
    )
    ratios = set()
    step = torch.optim.SGD.step

    def watched(self, *given):
        ratios.add(round(self.param_groups[0]["lr"] / self.param_groups[1]["lr"], 6))
        return step(self, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    found = range_test(model, batches, optimizer=optimizer, loss=loss, steps=20, accumulate=4)
    assert len(found.rates) == len(set(found.rates)) <= 20
    assert ratios == {10.0}


def test_a_loss_that_never_falls_is_one_sentence():
    model = nn.Linear(1, 1)
    batches = [(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))]

    def rising(logits, batch):
        rising.value += 1.0
        return logits.sum() * 0 + rising.value, torch.tensor(1.0)

    rising.value = 0.0
    with pytest.raises(UsageError, match="expected the loss to fall at some learning rate"):
        range_test(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), loss=rising)
