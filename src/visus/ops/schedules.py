"""Learning-rate schedules as pure functions of the step: the factor on the optimizer's rate for that update.

Steps count optimizer updates from 0.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from visus.errors import UsageError

Schedule = Callable[[int], float]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ScheduleSettings:
    """How the learning rate moves over a run."""

    schedule: Literal["multistep", "cosine", "onecycle", "constant"] = "multistep"
    milestones: tuple[float, ...] | None = None
    """Epochs after which `multistep` lowers the rate; half and three quarters of the run where not given."""
    gamma: float = 0.1
    """What `multistep` multiplies the rate by at each milestone."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs in which the rate rises from nothing, in a straight line, before the schedule's own factor is all there is."""

    @model_validator(mode="after")
    def _fit_together(self) -> ScheduleSettings:
        if self.schedule == "onecycle" and self.warmup_epochs:
            raise ValueError("onecycle has a warm-up of its own; leave --warmup-epochs out")
        if self.milestones is not None and self.schedule != "multistep":
            raise ValueError(
                f"milestones belong to multistep, not to {self.schedule}; leave --milestones out"
            )
        return self


def multistep(step: int, milestones: Sequence[float], gamma: float) -> float:
    """`gamma` to the number of `milestones` (in steps, ascending) that are reached."""
    return float(gamma ** bisect.bisect_right(milestones, step))


def cosine(step: int, total: int) -> float:
    """Half a cosine from 1 at step 0 to 0 at `total` (Loshchilov and Hutter, SGDR, 2017)."""
    return 0.5 * (1 + math.cos(math.pi * min(step, total) / total))


def onecycle(step: int, total: int, *, rise: float = 0.3, start: float = 1 / 25, end: float = 1e-4) -> float:
    """Up by a cosine over the first `rise` of the run, then down, as torch's `OneCycleLR` (Smith and Topin, 2018).

    `start` is the factor of the first step, `start * end` that of the last.
    """
    peak = rise * total - 1
    if step <= peak:
        return _between(start, 1.0, step / peak)
    return _between(1.0, start * end, (step - peak) / max(1.0, total - 1 - peak))


def warmup(step: int, steps: float) -> float:
    """In a straight line to 1, which step `steps - 1` reaches; the first step is not wasted on a rate of 0."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


def make_schedule(settings: ScheduleSettings, *, epochs: int, steps_per_epoch: int) -> Schedule:
    """The factor as a function of the step, for a run of `epochs` epochs."""
    if epochs < 1 or steps_per_epoch < 1:
        raise UsageError(
            f"expected at least one epoch and step, found {epochs} epochs of {steps_per_epoch} steps"
        )
    total = epochs * steps_per_epoch
    warm = settings.warmup_epochs * steps_per_epoch
    milestones = settings.milestones if settings.milestones is not None else (epochs / 2, epochs * 3 / 4)
    places = sorted(epoch * steps_per_epoch for epoch in milestones)
    shapes: dict[str, Schedule] = {
        "multistep": lambda step: multistep(step, places, settings.gamma),
        "cosine": lambda step: cosine(step, total),
        "onecycle": lambda step: onecycle(step, total),
        "constant": lambda _: 1.0,
    }
    shape = shapes[settings.schedule]
    return lambda step: shape(step) * warmup(step, warm)


def _between(first: float, last: float, fraction: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
