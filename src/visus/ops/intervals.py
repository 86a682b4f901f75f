"""How far a figure may be from the truth. An interval is (low, high)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

_ROUNDING = 1e-15
"""A variance below it is none: sums that are rounded."""

Interval = tuple[float, float]
Method = Literal["wilson", "exact", "bootstrap"]


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's interval for the proportion `correct` of `n`, `n` at least 1 (Wilson, Probable Inference, 1927)."""
    return share_interval(correct, n, level, "wilson")


def share_interval(
    correct: int, n: int, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson"
) -> Interval:
    """The interval for the proportion `correct` of `n`, `n` at least 1; `exact` is Clopper and Pearson's, never too short."""
    if method == "wilson":
        return _wilson(correct, n, level)
    from scipy import stats  # 20 MB, for those who ask for it

    interval = stats.binomtest(correct, n).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def interval_over(
    correct: npt.NDArray[np.bool_], units: npt.NDArray[np.int64] | None, level: float = 0.95
) -> Interval:
    """The interval for the share of `correct [n]`: Wilson's, or where those with the same number in `units [n]` belong together by
    `bounded_interval`, the variance summed over units and multiplied by `of_few`; one unit counts as one image.
    """
    if units is None:
        return wilson(int(correct.sum()), len(correct), level)
    share, count = float(correct.mean()), int(np.count_nonzero(np.bincount(units)))
    sums = np.bincount(units, correct - share) / len(correct)
    variance = float((sums**2).sum()) * of_few(count, level) if count > 1 else 0.0
    return bounded_interval(share, variance, count, level)


def share_at_least(correct: int, n: int, level: float = 0.95) -> float:
    """A bound that the true proportion is above with probability `level`, whatever it is (Clopper and Pearson, 1934)."""
    return float(special.betaincinv(correct, n - correct + 1, 1 - level)) if correct else 0.0


def mean_share_interval(correct: Sequence[int], n: Sequence[int], level: float = 0.95) -> Interval:
    """The interval of the mean of independent shares, `correct` of `n` each, such as a balanced accuracy.

    By `bounded_interval`, the variance of each share that of one with half an image of one more wrong: a class of two images, both
    right, is uncertain all the same.
    """
    near = [(x + 0.5) / (size + 1) for x, size in zip(correct, n, strict=True)]
    variance = sum(p * (1 - p) / size for p, size in zip(near, n, strict=True)) / len(n) ** 2
    mean = sum(x / size for x, size in zip(correct, n, strict=True)) / len(n)
    return bounded_interval(mean, variance, sum(n), level, at=sum(near) / len(n))


def of_few(units: float, level: float = 0.95) -> float:
    """By how much to multiply a variance that was seen among few independent `units`, for an interval at `level`: as Student's t
    makes it longer, and as the spread around their own mean is too small (Korn and Graubard, 1998; for groups see Cameron and
    Miller, A Practitioner's Guide to Cluster-Robust Inference, 2015). Fewer than two say nothing: NaN.
    """
    if units < 2:
        return math.nan
    tail = (1 + level) / 2
    return float(special.stdtrit(units - 1, tail) / special.ndtri(tail)) ** 2 * units / (units - 1)


def bounded_interval(
    figure: float, variance: float, n: float, level: float = 0.95, *, at: float | None = None
) -> Interval:
    """The interval of a figure between 0 and 1 whose variance is known: Wilson's, with as many images as a proportion of that
    variance would have (Korn and Graubard, Confidence Intervals for Proportions With Small Expected Number of Positive Counts,
    1998, have this for clustered samples). `n` is their number where the variance says nothing, as at 0 and 1; `at` is the
    figure that the variance belongs to, where it is another.
    """
    figure = min(1.0, max(0.0, figure))
    known = figure if at is None else at
    told = variance > _ROUNDING and 0 < known < 1
    size = known * (1 - known) / variance if told else n
    z = float(special.ndtri((1 + level) / 2))
    middle = (figure + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * math.sqrt(figure * (1 - figure) / size + z**2 / (4 * size**2))
    # The figure is inside, also where rounding is not of that mind: at 0 and 1 it is an end.
    return max(0.0, min(figure, middle - half)), min(1.0, max(figure, middle + half))


def _wilson(correct: int, n: int, level: float) -> Interval:
    """As Newcombe (Two-Sided Confidence Intervals for the Single Proportion, 1998) writes it, and scipy reckons it."""
    share, z = correct / n, float(special.ndtri(0.5 + 0.5 * level))
    size = 2 * (n + z**2)
    middle = (2 * n * share + z**2) / size
    half = z / size * math.sqrt(4 * n * share * (1 - share) + z**2)
    return middle - half if correct else 0.0, middle + half if correct < n else 1.0
