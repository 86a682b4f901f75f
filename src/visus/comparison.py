"""What `visus compare` does: which of several runs is better on the same test images, and whether that is more than chance.

It reads run folders only: `config.yaml`, `evaluation.json`, the groups in `split.csv` and the table of predictions. `N` images.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from visus.errors import DataError, UsageError, first_of
from visus.ops.intervals import Interval
from visus.ops.paired import (
    Ints,
    PValues,
    cohens_kappa,
    detectable_difference,
    fewest_speaking,
    grouped_mcnemar,
    mcnemar,
    paired_interval,
    worth,
)
from visus.ops.resampling import Units
from visus.ops.significance import holm
from visus.runs import RunFolder
from visus.tested_runs import TestedRun, read_run, row_of, units_of_runs

TOO_FEW = "expected at least two different runs to compare; name each once"


@dataclass(frozen=True)
class Pair:
    """Two runs on the same images; differences are `b` less `a`."""

    a: str
    b: str
    n: int
    groups: int | None
    """How many groups of images intervals and p-values count; `None` where they count images."""
    difference: float
    difference_ci95: Interval
    mcnemar_p: float
    """Exact; over groups by `grouped_mcnemar`."""
    mcnemar_mid_p: float
    p_adjusted: float
    """The exact one, by Holm's method for all pairs."""
    flipped: list[dict[str, str]]
    """Images that one of them has right: `path`, `label`, `a`, `b`."""
    only_a: int
    only_b: int
    """Images that this one alone has right."""
    agreement: float
    """Share of images of which both say the same."""
    kappa: float | None
    """The same beyond chance (Cohen)."""
    detectable: float | None
    """The smallest difference that so many images, differing as often, would show in four of five cases; `None` where they, or
    their groups, are too few to show any."""
    per_class: list[dict[str, Any]]
    """`name`, `n`, `difference`, `ci95`, `p`, `p_adjusted`: Holm's method for all classes of the pair."""


@dataclass(frozen=True)
class Pool:
    """Runs of the same settings but for their seeds."""

    runs: list[str]
    accuracy: float
    """Mean."""
    accuracy_sd: float | None
    """Over seeds; `None` of one run."""
    lowest: float
    highest: float


@dataclass(frozen=True)
class PoolPair:
    """Two pools; differences are those of mean accuracies, `b` less `a`, and hold for other seeds and other images too."""

    a: int
    b: int
    """Places in `pools`."""
    difference: float
    difference_ci95: Interval
    p: float


@dataclass(frozen=True)
class Comparison:
    """What there is to say of runs on the same images."""

    runs: list[TestedRun]
    pairs: list[Pair]
    pools: list[Pool]
    pool_pairs: list[PoolPair]
    units: Units | None
    """The group of each image `[N]`, where groups are counted."""

    def rows(self) -> list[dict[str, Any]]:
        """What a leaderboard says of each run."""
        return [row_of(run, self.units) for run in self.runs]

    def to_json(self) -> dict[str, Any]:
        """The document of `visus compare --json`."""
        return {
            "runs": self.rows(),
            "pairs": [vars(pair) for pair in self.pairs],
            "pools": [vars(pool) for pool in self.pools],
            "pool_pairs": [vars(pair) for pair in self.pool_pairs],
        }


def compare_runs(paths: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Every two of the runs in the folders `paths`, two at least; `DataError` where they were tested on different images."""
    runs = [read_run(path) for path in paths]
    if len({Path(path).resolve() for path in paths}) < len(paths) or len(paths) < 2:
        raise UsageError(TOO_FEW)
    for other in runs[1:]:
        refuse_other_images(runs[0], other)
    return compare_tested(runs)


def compare_tested(runs: Sequence[TestedRun], *, with_first_only: bool = False) -> Comparison:
    """As `compare_runs`, of runs that were read; with `with_first_only` each with the first."""
    units = units_of_runs(runs)
    couples = (
        itertools.combinations(runs, 2) if not with_first_only else ((runs[0], each) for each in runs[1:])
    )
    found = [_pair(a, b, units) for a, b in couples]
    adjusted = holm([each["mcnemar_p"] for each in found])
    pairs = [Pair(**each, p_adjusted=float(p)) for each, p in zip(found, adjusted, strict=True)]
    members: dict[str, list[TestedRun]] = {}
    for run in runs:
        members.setdefault(run.kind, []).append(run)
    pools = list(members.values())
    several = len(pools) > 1 and any(len(each) > 1 for each in pools)
    places = itertools.combinations(range(len(pools)), 2) if several and not with_first_only else ()
    return Comparison(
        list(runs),
        pairs,
        [_pool(each) for each in pools],
        [_pool_pair(pools, a, b, units) for a, b in places],
        units,
    )


def leaderboard(runs: Sequence[RunFolder]) -> tuple[list[Comparison], dict[str, str]]:
    """The runs by the images that they were tested on, the best first, each compared with the best; and why others are left out."""
    tested: dict[object, list[TestedRun]] = {}
    left_out = {}
    for folder in runs:
        try:
            run = read_run(folder.path)
        except (DataError, UsageError) as error:
            left_out[str(folder.path)] = str(error)
            continue
        tested.setdefault(run.tested_on, []).append(run)
    boards = [sorted(each, key=lambda run: -run.accuracy) for each in tested.values()]
    return [compare_tested(each, with_first_only=True) for each in boards], left_out


def refuse_other_images(run: TestedRun, other: TestedRun) -> None:
    """`DataError` that says how the test images of the two differ, where they do."""
    if run.tested_on == other.tested_on:
        return
    had, has = set(run.paths), set(other.paths)
    if only := sorted(had ^ has):
        how = f"{len(had - has)} only in the one and {len(has - had)} only in the other ({first_of(only, 3)})"
    elif run.labels != other.labels:
        how = "images of the same names have other labels"
    else:
        how = "images of the same names have another content"
    raise DataError(
        f"{run.name} and {other.name}: expected the same test images, found different ones: {how}; compare runs of the same "
        "data and split"
    )


def _pair(a: TestedRun, b: TestedRun, units: Units | None) -> dict[str, Any]:
    difference = b.correct.astype(np.int64) - a.correct
    only_a, only_b = _alone(difference)
    same = np.array(a.predictions) == np.array(b.predictions)
    n, p = _worth(difference, units), _p_values(difference, units)
    return {
        "a": a.name,
        "b": b.name,
        "n": a.n,
        "groups": None if units is None else int(units.max()) + 1,
        "difference": float(difference.mean()),
        "difference_ci95": _interval(difference, n),
        "mcnemar_p": p.exact,
        "mcnemar_mid_p": p.mid,
        "flipped": [
            {"path": a.paths[i], "label": a.labels[i], "a": a.predictions[i], "b": b.predictions[i]}
            for i in np.flatnonzero(difference).tolist()
        ],
        "only_a": only_a,
        "only_b": only_b,
        "agreement": float(same.mean()),
        "kappa": cohens_kappa(a.predictions, b.predictions),
        "detectable": _detectable(difference, units, n),
        "per_class": _per_class(np.array(a.labels), difference, units),
    }


def _per_class(labels: npt.NDArray[Any], difference: Ints, units: Units | None) -> list[dict[str, Any]]:
    names, places = np.unique(labels, return_inverse=True)
    order = np.argsort(places, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(places))[:-1])
    classes = [(difference[part], None if units is None else units[part]) for part in parts]
    p_values = [_p_values(*each).exact for each in classes]
    return [
        {
            "name": name,
            "n": len(each[0]),
            "difference": float(each[0].mean()),
            "ci95": _interval(each[0], _worth(*each)),
            "p": p,
            "p_adjusted": float(adjusted),
        }
        for name, each, p, adjusted in zip(names.tolist(), classes, p_values, holm(p_values), strict=True)
    ]


def _worth(difference: Ints, units: Units | None) -> float:
    """How many independent images tell as much."""
    return len(difference) if units is None else worth(difference, units)


def _detectable(difference: Ints, units: Units | None, n: float) -> float | None:
    """Of images that tell as much as `n` independent ones."""
    images, fewest = len(difference), fewest_speaking()
    sizes = np.sort(np.ones(images) if units is None else np.bincount(units))
    if len(sizes) < fewest:
        return None
    differing = np.count_nonzero(difference) / images
    return detectable_difference(n, differing, float(sizes[:fewest].sum()) / images)


def _interval(difference: Ints, n: float) -> Interval:
    """Of images that tell as much as `n` independent ones."""
    return paired_interval(n, *(n * each / len(difference) for each in _alone(difference)))


def _p_values(difference: Ints, units: Units | None) -> PValues:
    if units is None:
        return mcnemar(*_alone(difference))
    return grouped_mcnemar(np.bincount(units, difference).astype(np.int64))


def _alone(difference: Ints) -> tuple[int, int]:
    """How many images are right with the one alone, and with the other."""
    return int((difference < 0).sum()), int((difference > 0).sum())


def _pool(runs: Sequence[TestedRun]) -> Pool:
    figures = [run.accuracy for run in runs]
    spread = float(np.std(figures, ddof=1)) if len(runs) > 1 else None
    return Pool([run.name for run in runs], float(np.mean(figures)), spread, min(figures), max(figures))


def _pool_pair(pools: Sequence[Sequence[TestedRun]], a: int, b: int, units: Units | None = None) -> PoolPair:
    """The variance is that over images, or groups of them, of the mean difference, and that over seeds of each pool; the degrees of
    freedom are Welch's and Satterthwaite's. What is shared by both is counted twice, so that the interval is rather too long."""
    means = [np.mean([run.correct for run in pools[place]], axis=0) for place in (a, b)]
    difference = means[1] - means[0]
    estimate = float(difference.mean())
    sums = np.bincount(np.arange(len(difference)) if units is None else units, difference - estimate)
    over_images = float(sums.var(ddof=1)) * len(sums) / len(difference) ** 2, len(sums) - 1
    terms = [over_images, *_seed_terms(pools, a, b)]
    variance = sum(each for each, _ in terms)
    if not variance:
        return PoolPair(a, b, estimate, (estimate, estimate), 1.0 if estimate == 0 else 0.0)
    freedom = variance**2 / sum(each**2 / degrees for each, degrees in terms)
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    p = 2 * float(stats.t.sf(abs(estimate) / math.sqrt(variance), freedom))
    return PoolPair(a, b, estimate, (estimate - half, estimate + half), p)


def _seed_terms(pools: Sequence[Sequence[TestedRun]], a: int, b: int) -> list[tuple[float, int]]:
    """The variances over seeds that are part of that of the difference, each with its degrees of freedom.

    A single run shows none: it is taken to vary as the runs of all pools do around their means (of one pool, that is the test of a
    single case by Crawford and Howell, 1998).
    """
    freedom = sum(len(pool) - 1 for pool in pools)
    alone = sum(len(pools[place]) == 1 for place in (a, b))
    terms = []
    for place, pool in enumerate(pools):
        if (k := len(pool)) > 1:
            weight = (place in (a, b)) / k + alone * (k - 1) / freedom
            terms.append((weight * float(np.var([run.accuracy for run in pool], ddof=1)), k - 1))
    return terms
