"""Averages of a model's weights: over the last updates with fading weight, or over the last quarter of a run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class ExponentialAverage:
    """The average weights of `model`, in a copy of it: `module`.

    At step t (from 0) each parameter moves to the model's by 1 - d, with d = min(`decay`, (1 + t) / (10 + t)): the ramp of
    TensorFlow's ExponentialMovingAverage, so that short runs are not averaged with their beginning. Buffers (batch-norm
    statistics) are copied. Nothing waits for the device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights that update number `step` gave."""
        _move(self.module, model, 1 - min(self.decay, (1 + step) / (10 + step)))


class TailAverage:
    """Stochastic weight averaging: the plain mean of the weights after each update from number `start` on, in a copy: `module`.

    Until then it follows `model`. Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018; torch's
    `AveragedModel`, brought up to date at every update, where the paper does so once an epoch: short runs have few. Buffers are
    copied, but those of batch norm have to be `recomputed_batchnorm` before such weights are used.
    """

    def __init__(self, model: nn.Module, start: int) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False).eval()
        self.start = start

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights that update number `step` (from 0) gave."""
        _move(self.module, model, 1 / (1 + max(0, step - self.start)))

    def has_begun(self, steps: int) -> bool:
        """Whether after so many updates it is the mean of several."""
        return steps > self.start + 1


def last_quarter(steps: int) -> int:
    """The first of the last quarter of a run's updates, of which there is at least one."""
    return steps - max(1, steps // 4)


@contextmanager
def recomputed_batchnorm(average: nn.Module, model: nn.Module) -> Iterator[None]:
    """While it is open, every batch on which `average` is run adds to the statistics of its batch norms, which begin anew.

    Only of those that are in training mode in `model`, of which it is a copy in eval mode: what is frozen there stays as it is.
    Batches weigh the same, as in torch's `update_bn`, but dropout stays off, as it is when the statistics are used.
    """
    pairs = zip(average.modules(), model.modules(), strict=True)
    layers = [own for own, its in pairs if isinstance(own, _BatchNorm) and its.training]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        # torch's sign for a plain mean.
        layer.momentum = None
        layer.train()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()


@torch.no_grad()
def _move(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move the parameters of `average` to those of `model` by `share`, and copy the buffers."""
    averages: list[Tensor] = [p.data for p in average.parameters()]
    torch._foreach_lerp_(averages, [p.data for p in model.parameters()], share)
    for buffer, current in zip(average.buffers(), model.buffers(), strict=True):
        buffer.copy_(current)
