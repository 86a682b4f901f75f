"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class ExponentialAverage:
    """The average weights of `model`, in a copy of it: `module`.

    At step t (from 0) each parameter moves to the model's by 1 - d, with d = min(`decay`, (1 + t) / (10 + t)): the ramp of
    TensorFlow's ExponentialMovingAverage, so that short runs are not averaged with their beginning. Buffers (batch-norm
    statistics) are copied. Nothing waits for the device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights that update number `step` gave."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = [p.data for p in self.module.parameters()]
        torch._foreach_lerp_(averages, [p.data for p in model.parameters()], 1 - decay)
        for average, current in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(current)
