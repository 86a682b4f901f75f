"""Parts of a data set on which a model does worse than on the rest. `N` images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from visus.ops.intervals import Interval, interval_over, wilson
from visus.ops.significance import holm

Bools = npt.NDArray[np.bool_]

_MOST_VALUES = 50
_FEWEST = 5


@dataclass(frozen=True)
class Slice:
    """The images that share a value."""

    column: str
    value: str
    n: int
    correct: int
    accuracy: float
    ci95: Interval
    rest_accuracy: float
    """Of all other images."""
    p: float
    """How often chance alone would leave so few right among these."""
    p_adjusted: float
    """By Holm's method, for all slices that were looked at."""
    beyond_chance: bool


@dataclass(frozen=True)
class LeftOut:
    """What is no slice though it might be expected, and why."""

    column: str
    values: tuple[str, ...]
    """Those of the column that are left out; none where it is the whole column."""
    reason: str


def slice_scores(
    attributes: Mapping[str, Sequence[str]],
    correct: Bools,
    *,
    level: float = 0.95,
    units: npt.NDArray[np.int64] | None = None,
) -> list[Slice]:
    """The accuracy of every slice: the images with one value of an attribute `[N]`, of at least 5, where there are others too.

    Whether a slice is worse than the rest is asked of Fisher's exact test, one-sided; where images belong together (`units [N]`),
    of a t-test whose variance is summed over units, with as many degrees of freedom as the slice or the rest has units, less one;
    where units agree among themselves, so that there is no variance, of how likely chance would part them so. A slice is beyond
    chance where its p-value, corrected for all that were looked at, is at most 1 - `level`.
    """
    found = []
    for column, values in attributes.items():
        names, inverse = np.unique(np.asarray(values, dtype=object).astype(str), return_inverse=True)
        sizes = np.bincount(inverse, minlength=len(names))
        rights = np.bincount(inverse, correct, minlength=len(names)).astype(np.int64)
        for place, (name, n, right) in enumerate(zip(names, sizes.tolist(), rights.tolist(), strict=True)):
            if n < _FEWEST or n == len(correct):
                continue
            if units is None:
                p, interval = _fisher(right, n, correct), wilson(right, n, level)
            else:
                inside = inverse == place
                p = _t_test(inside, correct, units)
                interval = interval_over(correct[inside], units[inside], level)
            found.append((column, str(name), n, right, interval, p))
    adjusted = holm([each[-1] for each in found])
    total, everyone = int(correct.sum()), len(correct)
    return [
        Slice(
            column,
            name,
            n,
            right,
            right / n,
            interval,
            (total - right) / (everyone - n),
            p,
            corrected,
            corrected <= 1 - level,
        )
        for (column, name, n, right, interval, p), corrected in zip(found, adjusted.tolist(), strict=True)
    ]


def small_values(attributes: Mapping[str, Sequence[str]]) -> list[LeftOut]:
    """The values that `slice_scores` passes over, since fewer than 5 images have them."""
    found = []
    for column, values in attributes.items():
        few = sorted(name for name, n in Counter(values).items() if n < _FEWEST)
        if few:
            found.append(LeftOut(column, tuple(few), f"fewer than {_FEWEST} images"))
    return found


def as_attributes(columns: Mapping[str, Sequence[Any]]) -> tuple[dict[str, list[str]], list[LeftOut]]:
    """Columns `[N]` as attributes, and those that cannot be one. A column of one value is passed over without a word."""
    found = {name: as_slices(values) for name, values in columns.items()}
    sizes = {name: len(set(columns[name])) for name, values in found.items() if values is None}
    left_out = [
        LeftOut(name, (), f"{size} values, more than {_MOST_VALUES}")
        for name, size in sizes.items()
        if size > 1
    ]
    return {name: values for name, values in found.items() if values is not None}, left_out


def as_slices(values: Sequence[Any]) -> list[str] | None:
    """A column as an attribute: as it is where it has at most 50 values; fractions, and numbers beyond that, in quarters.

    `None` where it has one value only, or more than 50 that are no numbers.
    """
    if all(isinstance(value, float) for value in values):
        return quarters(values)
    distinct = set(values)
    if len(distinct) <= _MOST_VALUES:
        return [str(value) for value in values] if len(distinct) > 1 else None
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return quarters(numbers)


def quarters(numbers: npt.ArrayLike) -> list[str]:
    """Numbers `[N]` by the quarter that each is in, named by its range; `unknown` for what is no number."""
    values = np.asarray(numbers, dtype=np.float64)
    known = values[np.isfinite(values)]
    edges = np.unique(np.quantile(known, [0.25, 0.5, 0.75])) if len(known) else np.empty(0)
    places = np.searchsorted(edges, values, side="left")
    names = {}
    for place in range(len(edges) + 1):
        inside = known[np.searchsorted(edges, known, side="left") == place]
        if len(inside):
            names[place] = f"{inside.min():.4g} to {inside.max():.4g}"
    return [
        names[place] if np.isfinite(value) else "unknown" for place, value in zip(places, values, strict=True)
    ]


def _fisher(right: int, n: int, correct: Bools) -> float:
    """P(as few right or fewer among n drawn without replacement).

    From how likely each number of right ones is against the one before, and so against the likeliest: no factorial is needed.
    """
    rights, wrongs = int(correct.sum()), int((~correct).sum())
    fewest, most = max(0, n - wrongs), min(n, rights)
    likeliest = (n + 1) * (rights + 1) // (len(correct) + 2) - fewest
    before = np.arange(fewest, most)
    ratios = (rights - before) * (n - before) / ((before + 1) * (wrongs - n + before + 1))
    below, above = np.cumprod(1 / ratios[:likeliest][::-1])[::-1], np.cumprod(ratios[likeliest:])
    chances = np.concatenate((below, [1.0], above))
    return float(chances[: right - fewest + 1].sum() / chances.sum())


def _t_test(inside: Bools, correct: Bools, units: npt.NDArray[np.int64]) -> float:
    here, there = correct[inside].mean(), correct[~inside].mean()
    here_units, there_units = (np.count_nonzero(np.bincount(units[each])) for each in (inside, ~inside))
    count = min(here_units, there_units)
    if count < 2:
        return 1.0
    influence = np.where(inside, (correct - here) / inside.sum(), -(correct - there) / (~inside).sum())
    variance = float((np.bincount(units, influence) ** 2).sum()) * count / (count - 1)
    if variance == 0:
        return 1.0 if here >= there else 1 / math.comb(here_units + there_units, here_units)
    return float(special.stdtr(count - 1, (here - there) / variance**0.5))
