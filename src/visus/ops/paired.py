"""Two classifiers on the same images.

`n` images; of them `first` are right with the first alone and `second` with the second alone. `U` units: groups of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from visus.ops.intervals import Interval, of_few

Ints = npt.NDArray[np.int64]

POWER = 0.8
_ROUNDING = 1e-12
"""A mean square below it is none: sums that are rounded."""


def paired_interval(n: float, first: float, second: float, level: float = 0.95) -> Interval:
    """The interval of the difference in accuracy, second less first. Of groups, the numbers are those that `worth` makes of them.

    Tango's score interval (Equivalence Test and Confidence Interval for the Difference in Proportions for the Paired-Sample
    Design, 1998): the differences that a test would not reject. Others (Wald's, Newcombe's, Bonett and Price's) covered less
    evenly in simulation.
    """
    z = float(stats.norm.ppf((1 + level) / 2))
    estimate = (second - first) / n
    edge = 1e-12

    def excess(difference: float, target: float) -> float:
        return _score(difference, n, first, second) - target

    low = high = estimate
    if excess(-1 + edge, z) > 0:
        low = optimize.brentq(excess, -1 + edge, estimate, args=(z,)) if estimate > -1 + edge else -1.0
    if excess(1 - edge, -z) < 0:
        high = optimize.brentq(excess, estimate, 1 - edge, args=(-z,)) if estimate < 1 - edge else 1.0
    return float(low), float(high)


def _score(difference: float, n: float, first: float, second: float) -> float:
    """The distance of what was seen from a true `difference`, in standard errors that hold if it is true."""
    b = -second - first + (2 * n - second + first) * difference
    c = -first * difference * (1 - difference)
    alone = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * alone + difference * (1 - difference))
    return (second - first - n * difference) / math.sqrt(max(variance, 1e-12))


class PValues(NamedTuple):
    """Two-sided, that both classifiers are right equally often; 1 where they never differ."""

    exact: float
    mid: float
    """Half of the chance of just this outcome counts (Fagerland et al., The McNemar Test for Binary Matched-Pairs Data, 2013): the
    exact test errs less often than it says, above all with few images that differ."""


def mcnemar(first: int, second: int) -> PValues:
    """Those of McNemar's test (1947)."""
    if first + second == 0:
        return PValues(1.0, 1.0)
    p = float(stats.binomtest(first, first + second).pvalue)
    half = float(stats.binom.pmf(first, first + second, 0.5))
    return PValues(p, p - half if first != second else p)


def worth(differences: Ints, units: Ints, level: float = 0.95) -> float:
    """How many independent images would tell the mean of `differences [n]` (-1, 0 or 1) as surely as these, of `units [n]`, do.

    By the variance over units, multiplied by `of_few`, as `interval_over` has it: at most `n`, since within a few groups the
    differences of a sample cancel out by chance; and the number of units where their spread says nothing.
    """
    mean, count = differences.mean(), int(np.count_nonzero(np.bincount(units)))
    sums = np.bincount(units, differences - mean)
    apart = float(((differences - mean) ** 2).sum())
    together = float((sums**2).sum()) * of_few(count, level) if count > 1 else 0.0
    told = min(apart, together) > _ROUNDING * len(differences)
    return len(differences) * min(1.0, apart / together) if told else float(count)


def grouped_mcnemar(sums: Ints) -> PValues:
    """As `mcnemar` over groups: that each group is as likely to speak for the one as for the other.

    `sums [U]` are those of each group: images right with the second alone, less those right with the first alone. All outcomes with
    other signs are counted (Fisher's randomisation test, The Design of Experiments, 1935, par. 21); of groups of one image it is
    McNemar's exact test.
    """
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    total, apart = int(sizes @ counts), abs(int(sums.sum()))
    if apart == 0:
        return PValues(1.0, 1.0)
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        chances = _flipped(chances, size, count)
    least = (total - apart) // 2
    p = 2 * float(chances[: least + 1].sum())
    return PValues(p, p - float(chances[least]))


def _flipped(chances: npt.NDArray[np.float64], size: int, count: int) -> npt.NDArray[np.float64]:
    """The `chances` of each sum of what speaks for one, with `count` more groups of `size`, each there or not with chance 1/2."""
    grown = np.zeros(len(chances) + size * count)
    for there, chance in enumerate(stats.binom.pmf(np.arange(count + 1), count, 0.5).tolist()):
        grown[there * size : there * size + len(chances)] += chance * chances
    return grown


def fewest_speaking(level: float = 0.95) -> int:
    """How many images, or groups, must all speak for one classifier before the exact test does: 6 at 95 %."""
    return math.ceil(math.log2(2 / (1 - level)))


def detectable_difference(n: float, differing: float, fewest: float, level: float = 0.95) -> float:
    """The smallest difference in accuracy that `n` images would show in four of five cases, where a share `differing` of them is
    right with one classifier only (Connor, Sample Size for Testing Differences in Proportions for the Paired-Sample Design, 1987).

    At least `fewest`, the share of the fewest images with which the exact test speaks, all of them for one classifier.
    """
    surely, mostly = stats.norm.ppf((1 + level) / 2), stats.norm.ppf(POWER)

    def excess(difference: float) -> float:
        spread = mostly * math.sqrt(max(0.0, differing - difference**2))
        return float(difference * math.sqrt(n) - surely * math.sqrt(differing) - spread)

    if differing <= fewest or excess(differing) <= 0:
        return max(differing, fewest)
    return max(fewest, float(optimize.brentq(excess, 0.0, differing)))


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """How often two classifiers say the same, beyond what chance gives (Cohen, 1960); `None` where both always say one thing."""
    names, coded = np.unique([*first, *second], return_inverse=True)
    one, other = np.split(coded, 2)
    shares = [np.bincount(each, minlength=len(names)) / len(one) for each in (one, other)]
    by_chance = float(shares[0] @ shares[1])
    return None if by_chance == 1 else float(((one == other).mean() - by_chance) / (1 - by_chance))
