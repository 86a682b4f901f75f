"""A learning rate found by a range test: it rises over some steps, and the loss shows where it is too much.

The test is that of Smith, Cyclical Learning Rates for Training Neural Networks (2017), with the rate rising by a factor.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from visus.data.batching import Batch
from visus.devices import generators_kept
from visus.errors import UsageError
from visus.loop import Loss, Pairs, TrainBatches, cross_entropy, fit

_SMOOTHING = 0.9
_DIVERGED = 4.0
"""Times the least loss; beyond it the test ends."""
_BELOW_LEAST = 10.0
"""How far below the rate of the least loss the rate to train with lies: there it still falls fast, and there is room above."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test found."""

    rates: list[float]
    losses: list[float]
    """Of each rate; an average over those before it, in which the latest weigh most."""
    lr: float
    """To train with: a tenth of the rate at which the loss was least."""

    def to_json(self) -> dict[str, Any]:
        """`lr, rates[], losses[]`."""
        return {"lr": self.lr, "rates": self.rates, "losses": self.losses}


class _EnoughError(Exception):
    """The test has seen what it wanted."""


def range_test(
    model: nn.Module,
    train: TrainBatches | Pairs,
    *,
    optimizer: Optimizer,
    loss: Loss | None = None,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    **options: Any,
) -> RangeTest:
    """Train a copy of `model` over `steps` updates, the rate rising from `lowest` to `highest`, and see what becomes of the loss.

    Model, optimizer and the generators of torch, numpy and Python are left as they are; one that a `DataLoader` has of its own is
    not. With several groups the rate is that of the first; the others keep their proportion to it. `train`, `loss` and `options`
    are as for `fit`. Batches are begun anew where there are fewer than steps.
    Raises `UsageError` where the loss does not fall anywhere.
    """
    model, optimizer = copy.deepcopy((model, optimizer))
    base = optimizer.param_groups[0]["lr"]
    growth = math.log(highest / lowest) / max(1, steps - 1)
    watch = _Watch(loss or cross_entropy, optimizer, steps)
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with generators_kept():
            fit(
                model,
                train,
                optimizer=optimizer,
                epochs=steps,
                schedule=lambda step: lowest * math.exp(growth * step) / base,
                loss=watch,
                **options,
            )
    except _EnoughError:
        pass
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
    return watch.finish()


class _Watch:
    """A loss that is written down, with the rate at which it was met."""

    def __init__(self, loss: Loss, optimizer: Optimizer, steps: int) -> None:
        self._loss, self._optimizer, self._steps = loss, optimizer, steps
        self._rates: list[float] = []
        self._sums: list[tuple[float, float]] = []
        self._losses: list[float] = []

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        value, normaliser = self._loss(logits, batch)
        rate = float(self._optimizer.param_groups[0]["lr"])
        if not self._rates or rate != self._rates[-1]:
            self._close_step()
            self._rates.append(rate)
            self._sums = []
        self._sums.append((float(value.detach()), float(normaliser)))
        return value, normaliser

    def _close_step(self) -> None:
        """The step before is whole: its loss joins the others, and says whether it was the last."""
        if not self._sums:
            return
        total, weight = (sum(each) for each in zip(*self._sums, strict=True))
        self._losses.append(total / weight)
        smooth = self._smoothed()
        ended = not math.isfinite(smooth[-1]) or smooth[-1] > _DIVERGED * min(smooth)
        if ended or len(self._losses) == self._steps:
            raise _EnoughError

    def _smoothed(self) -> list[float]:
        """Exponential averages, the weight of the first ones corrected as in Adam."""
        average, smooth = 0.0, []
        for count, value in enumerate(self._losses, start=1):
            average = _SMOOTHING * average + (1 - _SMOOTHING) * value
            smooth.append(average / (1 - _SMOOTHING**count))
        return smooth

    def finish(self) -> RangeTest:
        """The rate to take."""
        smooth = [each for each in self._smoothed() if math.isfinite(each)]
        rates = self._rates[: len(smooth)]
        least = min(range(len(smooth)), key=smooth.__getitem__, default=0)
        if least == 0:
            raise UsageError(
                "expected the loss to fall at some learning rate, found that it falls at none; look at the data and the labels"
            )
        return RangeTest(rates, smooth, float(f"{rates[least] / _BELOW_LEAST:.2g}"))
