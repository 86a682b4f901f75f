"""Intervals for figures that have no formula of their own: the bootstrap, over images or over groups of images.

`N` images, `U` units that are resampled whole, `M` sums that the figures are made of, `S` figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse, special

from visus.ops.intervals import of_few

Floats = npt.NDArray[np.float64]
Units = npt.NDArray[np.int64]

REPEATS = 2000
MOST_UNITS = 2000
"""As many as samples: either leaves a variance uncertain by three per cent."""
_OF_A_STREAM = 250
"""Samples that one generator draws."""
_AT_ONCE = 50
"""Of these; a divisor of theirs."""
_SEED = 0
_ROUNDING = 1e-12
"""Share of a figure that a sum of many numbers may be off by."""


def units_of(n: int, groups: Sequence[Any] | npt.NDArray[Any] | None = None, most: int = MOST_UNITS) -> Units:
    """For each of `n` images the unit that it is resampled with `[N]`, from 0: its group, else the image alone.

    More than `most` units are dealt at random into `most` (Wolter, Introduction to Variance Estimation, 2007, ch. 2): the spread
    of sums over random units is that of sums over images, and the cost is bounded.
    """
    units = np.arange(n) if groups is None else _numbered(groups)
    count = int(units.max()) + 1
    if count <= most:
        return units.astype(np.int64)
    words = np.random.PCG64([_SEED + 1]).random_raw(count)
    dealt = np.argsort(words, kind="stable") % most
    return dealt[units].astype(np.int64)


def sums_over(units: Units | None, values: Floats) -> Floats:
    """`values [M, N]` of images summed over `units [N]`: `[M, U]`; without units each image is one."""
    return values if units is None else np.stack([np.bincount(units, each) for each in values])


def bootstrap(sums: sparse.csr_array, statistic: Callable[[Floats], Floats], *, seed: int = _SEED) -> Floats:
    """2,000 samples `[R, S]` of the figures that `statistic` makes of sums, `[R, M] -> [R, S]`.

    `sums [U, M]` are those of each unit; a sample is as many units, drawn with replacement (Efron, 1979). The words that units are
    drawn by are PCG64's, whose stream numpy promises to keep: the same sums give the same samples everywhere.
    """
    return np.concatenate([statistic(drawn @ sums) for drawn in _draws(sums.shape[0], seed)])


def variances(samples: Floats, units: int, level: float) -> Floats:
    """The variance of each figure `[S]` from its bootstrap `samples [R, S]`, for an interval at `level`, by `of_few`.

    Samples in which a figure is NaN are left out; NaN where there is one unit only.
    """
    known = np.isfinite(samples)
    count = known.sum(axis=0)
    filled = np.where(known, samples, 0.0)
    mean = filled.sum(axis=0) / np.maximum(count, 1)
    squares = (np.where(known, samples - mean, 0.0) ** 2).sum(axis=0)
    spread = squares / np.maximum(count - 1, 1) * of_few(units, level)
    return np.where(count > 1, spread, np.nan)


def accelerated_interval(
    figure: float, samples: Floats, influence: Floats, level: float = 0.95
) -> tuple[float, float]:
    """The BCa interval of a figure from its bootstrap `samples [R]` (Efron, Better Bootstrap Confidence Intervals, 1987).

    `influence [U]` is how far each unit pulls the figure, up to a factor. NaN where a sample is, and where no unit pulls it, as
    when there is one only.
    """
    cubes, squares = float((influence**3).sum()), float((influence**2).sum())
    if not squares > len(influence) * (_ROUNDING * figure) ** 2 or not np.isfinite(samples).all():
        return math.nan, math.nan
    acceleration = cubes / (6 * squares**1.5)
    below = (np.sum(samples < figure) + np.sum(samples <= figure)) / 2 / len(samples)
    shift = float(special.ndtri(np.clip(below, 1 / len(samples), 1 - 1 / len(samples))))
    z = shift + special.ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(samples, special.ndtr(shift + z / (1 - acceleration * z)))
    return float(low), float(high)


def _numbered(groups: Sequence[Any] | npt.NDArray[Any]) -> Units:
    """Groups as numbers from 0, in the order in which they come."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(each, len(numbers)) for each in groups], dtype=np.int64)


def _draws(units: int, seed: int) -> Iterator[Floats]:
    """How often each unit is drawn `[R, U]`, some samples at a time."""
    rows = np.repeat(np.arange(_AT_ONCE, dtype=np.int64) * units, units)
    for begin in range(0, REPEATS, _OF_A_STREAM):
        words = np.random.PCG64([seed, begin])
        for _ in range(0, _OF_A_STREAM, _AT_ONCE):
            # The high half of word x units: even but for units / 2**32.
            drawn = words.random_raw(_AT_ONCE * units)
            drawn >>= np.uint64(32)
            drawn *= np.uint64(units)
            drawn >>= np.uint64(32)
            counts = np.bincount(rows + drawn.astype(np.int64), minlength=_AT_ONCE * units)
            yield counts.reshape(_AT_ONCE, units).astype(np.float64)
