"""How far a classifier's confidence is from its accuracy.

`N` images; `confidences [N]` are the probabilities of the predicted classes, `correct [N]` says whether these are right.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from visus.ops.intervals import Interval, interval_over

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BINS = 15
_FEWEST_SHOWN = 10
"""Images of a bin that people are shown: the interval of fewer says nothing, and such points lie over one another."""
_GRID = 2000
_NARROWEST = 1e-3
_STEPS = 2**40
"""Equal parts of an interval in which a zero is sought."""


@dataclass(frozen=True)
class Bin:
    """Images of about the same confidence."""

    low: float
    """The lowest confidence among them."""
    high: float
    n: int
    confidence: float
    """Their mean."""
    accuracy: float
    ci95: Interval
    """Of the accuracy."""


def reliability_bins(
    confidences: Floats, correct: Bools, level: float = 0.95, units: npt.NDArray[np.int64] | None = None
) -> list[Bin]:
    """15 bins of equally many images, fewer where these would be less than ten; `units [N]` are images that belong together."""
    found = []
    for members in _equal_mass(confidences, _FEWEST_SHOWN):
        inside, right = confidences[members], correct[members]
        interval = interval_over(right, None if units is None else units[members], level)
        means = float(inside.mean()), float(right.mean())
        found.append(Bin(float(inside[0]), float(inside[-1]), len(members), *means, interval))
    return found


def debiased_calibration_error(confidences: Floats, correct: Bools) -> float:
    """Root mean square gap between confidence and accuracy over 15 bins of equally many images, less what chance alone adds.

    The plain form finds error in perfectly calibrated models, the more so the fewer images there are. In each bin the variance of
    the accuracy, a(1 - a) / (n - 1), is taken off the squared gap (Kumar et al., Verified Uncertainty Calibration, 2019; compared
    with others in Roelofs et al., Mitigating Bias in Calibration Error Estimation, 2022). 0 where that leaves less than nothing.
    """
    total = 0.0
    for members in _equal_mass(confidences):
        accuracy = correct[members].mean()
        gap = confidences[members].mean() - accuracy
        chance = accuracy * (1 - accuracy) / max(1, len(members) - 1)
        total += len(members) / len(confidences) * (gap**2 - chance)
    return math.sqrt(max(0.0, total))


def calibration_error_interval(
    confidences: Floats, correct: Bools, level: float = 0.95, units: npt.NDArray[np.int64] | None = None
) -> Interval | None:
    """The interval of the error that `debiased_calibration_error` estimates.

    `None` where nothing is known of how far it spreads: of one image, and where each bin is all right or all wrong.

    The gaps of the bins are near normal, so that the sum of their squares follows a noncentral chi-square distribution, whose
    noncentrality is the error sought: its scale and degrees of freedom are those that give the same mean and variance
    (Satterthwaite, 1946), and the interval holds the noncentralities under which what was seen is not unlikely. `units [N]`
    are images that belong together.
    """
    if len(confidences) < 2:
        return None
    bins = _equal_mass(confidences)
    weights = np.array([len(members) for members in bins]) / len(confidences)
    gaps = np.array([(confidences[members] - correct[members]).mean() for members in bins])
    covariance = _gap_covariance(confidences, correct, bins, units)
    spread = np.sqrt(np.outer(weights, weights)) * covariance
    mean, square = float(np.trace(spread)), float((spread * spread.T).sum())
    if not mean > 0:
        return None
    scale, freedom = square / mean, mean**2 / square
    seen = float(weights @ gaps**2) / scale
    tail = (1 - level) / 2
    low, high = (_noncentrality(seen, freedom, share) for share in (1 - tail, tail))
    return math.sqrt(scale * low), min(1.0, math.sqrt(scale * high))


def plain_calibration_error(confidences: Floats, correct: Bools) -> float:
    """Mean absolute gap over 15 bins of equal width (Naeini et al., 2015; Guo et al., 2017), biased upwards."""
    bins = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
    sums = np.bincount(bins, confidences - correct, minlength=BINS)
    return float(np.abs(sums).sum() / len(confidences))


def smooth_calibration_error(confidences: Floats, correct: Bools) -> float:
    """The smooth calibration error of Blasiok and Nakkiran (Smooth ECE, 2023): no bins, and continuous in the confidences.

    What is left of `correct` less confidence is smoothed along the confidences by a Gaussian that is reflected at 0 and 1; the
    error is the mean size of the result, at that width of the Gaussian which equals it. On a grid of 2,000 confidences;
    nothing below 0.001 is told apart.
    """
    cells = np.minimum((confidences * _GRID).astype(np.int64), _GRID - 1)
    residuals = np.bincount(cells, correct - confidences, minlength=_GRID) / len(confidences)

    # Mirrored at both ends, and so periodic: each wave of it is damped by itself.
    waves = np.fft.rfft(np.concatenate([residuals, residuals[::-1]]))
    squares = (np.pi * np.arange(len(waves))) ** 2 / 2

    def excess(width: float) -> float:
        smooth = np.fft.irfft(waves * np.exp(-squares * width**2))[:_GRID]
        return float(np.abs(smooth).sum()) - width

    if excess(_NARROWEST) <= 0:
        return excess(_NARROWEST) + _NARROWEST
    return _zero(excess, _NARROWEST, 1.0)


def _equal_mass(confidences: Floats, fewest: int = 2) -> list[npt.NDArray[np.int64]]:
    """Positions in bins of equally many images, at least `fewest` if there are so many, by rising confidence."""
    order = np.argsort(confidences, kind="stable")
    return np.array_split(order, min(BINS, max(1, len(order) // fewest)))


def _gap_covariance(
    confidences: Floats,
    correct: Bools,
    bins: list[npt.NDArray[np.int64]],
    units: npt.NDArray[np.int64] | None,
) -> Floats:
    """Of the gaps of the bins, whose confidences are taken as given; units that fill several bins tie these together."""
    deviations = np.zeros(len(confidences))
    places = np.empty(len(confidences), dtype=np.int64)
    for place, members in enumerate(bins):
        right = correct[members]
        # As a(1 - a) / (n - 1) where no images belong together.
        deviations[members] = (right - right.mean()) / math.sqrt(len(members) * max(1, len(members) - 1))
        places[members] = place
    if units is None:
        return np.diag(np.bincount(places, deviations**2, minlength=len(bins)))
    sums = np.zeros((int(units.max()) + 1, len(bins)))
    np.add.at(sums, (units, places), deviations)
    return sums.T @ sums


def _noncentrality(seen: float, freedom: float, share: float) -> float:
    """The noncentrality under which a share `share` of all samples is below `seen`; 0 where none has so few."""
    central = float(special.chdtr(freedom, seen))

    def excess(noncentrality: float) -> float:
        if not noncentrality:
            return central - share
        return float(special.chndtr(seen, freedom, noncentrality)) - share

    if central <= share:
        return 0.0
    top = seen + 1
    while excess(top) > 0:
        top *= 2
    return _zero(excess, 0.0, top)


def _zero(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that falls from `low` to `high` comes to 0; by the standard library: a run needs no other part of
    `scipy.optimize`, which takes 20 MB."""

    def at(step: int) -> float:
        return low + (high - low) * step / _STEPS

    return at(bisect_left(range(_STEPS), True, key=lambda step: falling(at(step)) <= 0))
