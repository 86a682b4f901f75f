"""Intervals for figures that have no formula of their own: the bootstrap, over images or over groups of images.

`N` images, `U` units that are resampled whole, `M` sums that the figures are made of, `S` figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float64]
Units = npt.NDArray[np.int64]

REPEATS = 2000
MOST_UNITS = 10_000
_AT_ONCE = 250
_SEED = 0


def units_of(n: int, groups: Sequence[Any] | npt.NDArray[Any] | None = None, most: int = MOST_UNITS) -> Units:
    """For each of `n` images the unit that it is resampled with `[N]`, from 0: its group, else the image alone.

    More than `most` units are dealt at random into `most` (Wolter, Introduction to Variance Estimation, 2007, ch. 2): the spread
    of sums over random units is that of sums over images, and the cost is bounded.
    """
    units = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(units.max()) + 1
    if count <= most:
        return units.astype(np.int64)
    dealt = np.argsort(_random_words(count, _SEED + 1), kind="stable") % most
    return dealt[units].astype(np.int64)


def bootstrap(
    sums: sparse.csr_array, statistic: Callable[[Floats], Floats], *, level: float = 0.95, seed: int = _SEED
) -> Floats:
    """The intervals `[S, 2]` at `level` of the figures that `statistic` makes of sums: `[R, M] -> [R, S]`.

    `sums [U, M]` are those of each unit. Units are drawn with replacement 2,000 times, and the interval runs between quantiles of
    the figures of these (Efron's percentiles); a figure that is NaN in a sample is left out of its quantiles, and an interval is
    NaN where all are. The words that units are drawn by are PCG64's, whose stream numpy promises to keep: the same sums give
    the same interval everywhere.
    """
    figures = np.concatenate([statistic(drawn @ sums) for drawn in _draws(sums.shape[0], seed)])
    tail = (1 - level) / 2
    empty = np.isnan(figures).all(axis=0)
    figures[:, empty] = 0.0
    low, high = np.nanquantile(figures, [tail, 1 - tail], axis=0)
    return np.where(empty[:, None], np.nan, np.stack([low, high], axis=1))


def _draws(units: int, seed: int) -> Any:
    """How often each unit is drawn `[R, U]`, some samples at a time."""
    for begin in range(0, REPEATS, _AT_ONCE):
        words = _random_words(_AT_ONCE * units, seed, begin)
        # The high half of word x units: even but for units / 2**32.
        drawn = ((words >> np.uint64(32)) * np.uint64(units)) >> np.uint64(32)
        rows = np.repeat(np.arange(_AT_ONCE, dtype=np.int64) * units, units)
        counts = np.bincount(rows + drawn.astype(np.int64), minlength=_AT_ONCE * units)
        yield counts.reshape(_AT_ONCE, units).astype(np.float64)


def _random_words(count: int, seed: int, *purpose: int) -> npt.NDArray[np.uint64]:
    return np.random.PCG64([seed, *purpose]).random_raw(count)
