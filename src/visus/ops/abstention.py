"""What a model is worth that may say nothing: it answers where it is confident enough. `N` images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visus.ops.intervals import share_at_least

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

THRESHOLDS = np.concatenate(([0.0], 1 - 10 ** (-np.arange(1, 33) / 8)))
"""From 0 to 0.9999, denser towards 1. Fixed beforehand: a threshold that is chosen on the images would need another bound."""


@dataclass(frozen=True)
class Point:
    """Where the model answers from `threshold` on."""

    coverage: float
    """The share of images that it answers."""
    threshold: float
    n: int
    accuracy: float
    """On those."""


@dataclass(frozen=True)
class Abstention:
    """The lowest threshold of which the accuracy wanted can be promised."""

    wanted_accuracy: float
    threshold: float
    coverage: float
    n: int
    accuracy: float
    at_least: float
    """The true accuracy from the threshold on is above this, with probability `level` for all thresholds together."""
    level: float


def coverage_curve(confidences: Floats, correct: Bools, points: int = 100) -> list[Point]:
    """Accuracy against coverage, the most confident first, at up to `points` coverages; equal confidences stay together."""
    order = np.argsort(-confidences, kind="stable")
    ordered, right = confidences[order], np.cumsum(correct[order])
    n = len(order)
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, n)
    wanted = np.unique(np.ceil(np.arange(1, points + 1) * n / points).astype(np.int64))
    chosen = np.unique(ends[np.searchsorted(ends, wanted)])
    return [
        Point(float(k / n), float(ordered[k - 1]), int(k), float(right[k - 1] / k)) for k in chosen.tolist()
    ]


def coverage_area(confidences: Floats, correct: Bools) -> float:
    """The area under accuracy against coverage: the mean accuracy over all coverages (1 less the AURC of Geifman et al., 2019).

    Among images of equal confidence, the mean over their orders.
    """
    order = np.argsort(-confidences, kind="stable")
    ordered = confidences[order]
    begins = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    sizes = np.diff(np.append(begins, len(order)))
    shares = np.add.reduceat(correct[order].astype(np.float64), begins) / sizes
    right = np.cumsum(np.repeat(shares, sizes))
    return float((right / np.arange(1, len(order) + 1)).mean())


def threshold_for(
    wanted_accuracy: float, confidences: Floats, correct: Bools, level: float = 0.95
) -> Abstention | None:
    """The threshold of `THRESHOLDS` that answers most and whose accuracy is surely `wanted_accuracy`; `None` where none is.

    Clopper and Pearson's one-sided bound, with what it may err shared among all thresholds (Bonferroni), holds for all of them at
    once, so that the choice spoils nothing. For images that are drawn independently, as those to come are.
    """
    best = None
    share = 1 - (1 - level) / len(THRESHOLDS)
    for threshold in THRESHOLDS[::-1]:
        answered = confidences >= threshold
        n, right = int(answered.sum()), int(correct[answered].sum())
        bound = share_at_least(right, n, share)
        if n and bound >= wanted_accuracy:
            best = Abstention(wanted_accuracy, float(threshold), n / len(correct), n, right / n, bound, level)
    return best
