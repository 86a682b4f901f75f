"""From what a model made of each image to figures with their intervals.

`N` images, `K` classes, `U` units that are resampled: images, or groups of images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import numpy as np
from scipy import sparse

from visus.errors import UsageError
from visus.ops.confusion import Averages, Counts, averages, class_shares
from visus.ops.intervals import (
    Interval,
    Method,
    bounded_interval,
    mean_share_interval,
    of_few,
    share_interval,
)
from visus.ops.ranking import pulls, ranking, ranking_variances, shrunk
from visus.ops.resampling import (
    Floats,
    Units,
    accelerated_interval,
    bootstrap,
    sums_over,
    units_of,
    variances,
)
from visus.outcomes import Outcomes

TOP = 5


@dataclass(frozen=True)
class Wanted:
    """What to say of the outcomes, and how surely."""

    level: float = 0.95
    """Of the intervals."""
    method: Method = "wilson"
    """Of those of shares: `wilson`, `exact` (Clopper and Pearson) or `bootstrap`; all else is resampled."""
    groups: Sequence[Any] | None = None
    """For each image what it belongs to, such as a patient; intervals then resample groups."""
    attributes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Columns to look at slices of, besides the classes: as `as_slices`."""
    accuracy: float | None = None
    """That a threshold of the confidence is sought for."""


class ClassScores(TypedDict):
    """One class; `None` where there is nothing to divide by."""

    name: str
    n: int
    """Images of it."""
    predicted: int
    """Images taken for it."""
    correct: int
    accuracy: float | None
    """Of its images: its recall."""
    ci95: Interval | None
    precision: float | None
    precision_ci95: Interval | None
    recall: float | None
    f1: float | None
    f1_ci95: Interval | None
    auroc: float | None
    """Against all other classes; the class's probability is the score."""
    auroc_ci95: Interval | None
    average_precision: float | None
    average_precision_ci95: Interval | None


@dataclass(frozen=True)
class Average:
    """Of the scores of the classes that have images; a class never predicted has a precision of 0."""

    precision: float
    precision_ci95: Interval | None
    recall: float
    recall_ci95: Interval | None
    f1: float
    f1_ci95: Interval | None
    auroc: float | None = None
    auroc_ci95: Interval | None = None
    average_precision: float | None = None
    average_precision_ci95: Interval | None = None


class Rankings(NamedTuple):
    """How the probabilities rank the images."""

    per_class: list[dict[str, Any]]
    """Area under the ROC curve and average precision of each class, with intervals."""
    macro: dict[str, Any]
    """Their means over the classes that have images, not all of them."""
    weighted: dict[str, Any]
    """These by the images of each class."""


def resample(outcomes: Outcomes, wanted: Wanted) -> dict[str, Any]:
    """The intervals of figures by name, a list of them where there is one for each class, from a bootstrap over units.

    Of what is between 0 and 1 by `bounded_interval`, which in simulation keeps its level where quantiles of the samples lose it:
    few images, or nearly all of them right. Of the loss, which has no upper end, by `accelerated_interval`.
    """
    classes, n = outcomes.classes, len(outcomes.labels)
    units = units_of(n, wanted.groups)
    sums = _sums(outcomes, units)
    if not np.isfinite(outcomes.losses).all():
        sums.data = np.nan_to_num(sums.data, nan=np.nan, posinf=np.nan)
    per_class = wanted.groups is not None or wanted.method == "bootstrap"

    def figures(drawn: Floats) -> Floats:
        there, said, right = (drawn[:, place * classes : (place + 1) * classes] for place in range(3))
        images, hits, top, losses, briers = drawn[:, 3 * classes :].T
        totals = [losses / images, hits / images, top / images, briers / images / 2]
        columns = [*totals, *averages(there, said, right)]
        shares = class_shares(there, said, right) if per_class else ()
        return np.concatenate([np.stack(columns, axis=1), *shares], axis=1)

    whole = np.asarray(sums.sum(axis=0))[None]
    estimates, samples = figures(whole)[0], bootstrap(sums, figures)
    spread = variances(samples, sums.shape[0], wanted.level)
    names = ["accuracy", "top5", "brier", *Averages._fields]
    concerned = [sums.shape[0]] * len(names) + (_concerned(sums, classes) if per_class else [])
    bounded = zip(estimates.tolist()[1:], spread.tolist()[1:], concerned, strict=True)
    intervals = [
        bounded_interval(*each, wanted.level) if np.isfinite(each).all() else None for each in bounded
    ]
    found: dict[str, Any] = dict(zip(names, intervals, strict=False))
    found["brier"] = found["brier"] and (2 * found["brier"][0], 2 * found["brier"][1])
    loss = np.zeros(sums.shape[0])
    np.add.at(loss, units, outcomes.losses - estimates[0])
    found["loss"] = interval_of(accelerated_interval(estimates[0], samples[:, 0], loss, wanted.level))
    for place, name in enumerate(("precision", "recall", "f1") if per_class else ()):
        begin = len(names) + place * classes
        found[name] = intervals[begin : begin + classes]
    return found


def _concerned(sums: sparse.csr_array, classes: int) -> list[int]:
    """How many units each class's precision, recall and F1 are figures of, `[3 K]`: those with images that count for it."""
    there, said = (sums[:, place * classes : (place + 1) * classes] > 0 for place in range(2))
    return [int(count) for each in (said, there, there + said) for count in each.sum(axis=0)]


def rank_classes(outcomes: Outcomes, units: Units | None, level: float) -> Rankings:
    """Each class against the rest, read from the probabilities one class at a time."""
    n = len(outcomes.labels)
    shares = np.bincount(outcomes.labels, minlength=outcomes.classes) / n
    per_class = [dict[str, Any](zip(_RANKING_KEYS, [None] * 4, strict=True)) for _ in shares]
    figures, spread, near = np.zeros((3, outcomes.classes, 2))
    # What the average precision is without an image: the mean over all images, and over those of the class.
    without, without_own = np.zeros((2, outcomes.classes))
    plain, weighted = np.zeros((2, 2, n if units is None else int(units.max()) + 1))
    ranked = np.flatnonzero((shares > 0) & (shares < 1))
    for place in ranked.tolist():
        # An output that is no number is below all that are.
        scores = np.nan_to_num(outcomes.probabilities.column(place), nan=-1.0)
        positive = outcomes.labels == place
        found = ranking(scores, positive)
        figures[place], pulled = found[:2], pulls(found, scores, positive, units)
        spread[place] = ranking_variances(found, pulled, positive, level=level, units=units)
        plain += pulled / len(ranked)
        weighted += pulled * shares[place]
        scarcer = n * min(shares[place], 1 - shares[place])
        near[place] = shrunk(found.auroc, scarcer), found.average_precision
        left = found.average_precision_without
        without[place], without_own[place] = left.mean(), left[positive].mean()
        per_class[place] = _ranked(figures[place], spread[place], near[place], scarcer, level)
    if not len(ranked):
        return Rankings(per_class, per_class[0], per_class[0])
    mean = shares @ figures
    # Another image of a class adds to its weight, too.
    weighted += sums_over(units, (figures[outcomes.labels].T - mean[:, None]) / n)
    # At least what the classes have each for itself: see `ranking_variances`.
    least = spread[ranked].sum(axis=0) / len(ranked) ** 2, shares**2 @ spread
    plain_mean = figures[ranked].mean(axis=0)
    spreads = (
        np.maximum(_variances(plain, plain_mean[1], units, level), least[0]),
        np.maximum(_variances(weighted, mean[1], units, level), least[1]),
    )
    excess = weighted_excess = 0.0
    if units is None:
        # Few images flatter the average precision; by how much, the jackknife tells (Quenouille, Bias in Estimation, 1956).
        excess = (n - 1) * (without[ranked].mean() - plain_mean[1])
        # Without an image its class weighs less, too.
        weighted_excess = shares @ (n * without - without_own) - (n - 1) * mean[1]
    return Rankings(
        per_class,
        _ranked(plain_mean, spreads[0], near[ranked].mean(axis=0), n, level, excess=excess),
        _ranked(mean, spreads[1], shares @ near, n, level, excess=weighted_excess),
    )


def class_scores(
    table: Counts,
    classes: Sequence[str],
    wanted: Wanted,
    resampled: Mapping[str, Any],
    rankings: Sequence[Mapping[str, Any]],
) -> list[ClassScores]:
    """The scores of each class, from the confusion `[K, K + 1]`. F1 is a function of the share of right images among those that
    are of a class or taken for it, and its interval that of this share."""
    there, said, right = table.sum(axis=1), table[:, :-1].sum(axis=0), table[:, :-1].diagonal()
    shares = class_shares(there, said, right)
    found = []
    for place, name in enumerate(classes):
        n, predicted, correct = int(there[place]), int(said[place]), int(right[place])
        precision, recall, f1 = (_number(each[place]) for each in shares)
        spread = {key: resampled[key][place] for key in ("recall", "precision", "f1") if key in resampled}
        either = share(correct, n + predicted - correct, wanted, None)
        scores: Any = {
            "name": name,
            "n": n,
            "predicted": predicted,
            "correct": correct,
            "accuracy": recall,
            "ci95": share(correct, n, wanted, spread.get("recall")),
            "precision": precision,
            "precision_ci95": share(correct, predicted, wanted, spread.get("precision")),
            "recall": recall,
            "f1": f1,
            "f1_ci95": spread["f1"] if "f1" in spread else either and (_f1(either[0]), _f1(either[1])),
            **rankings[place],
        }
        found.append(scores)
    return found


def balanced_interval(
    per_class: Sequence[ClassScores], wanted: Wanted, resampled: Interval | None
) -> Interval | None:
    """Of the mean of the classes' accuracies, which are independent of each other where images are."""
    if wanted.groups is not None or wanted.method == "bootstrap":
        return resampled
    there = [each for each in per_class if each["n"]]
    correct, sizes = [each["correct"] for each in there], [each["n"] for each in there]
    return mean_share_interval(correct, sizes, wanted.level)


def average(kind: str, means: Averages, resampled: Mapping[str, Any], rankings: Mapping[str, Any]) -> Average:
    """The plain (`macro`) or `weighted` means with their intervals."""
    figures: dict[str, Any] = {}
    for name in ("precision", "recall", "f1"):
        figures[name] = float(getattr(means, f"{kind}_{name}"))
        figures[f"{name}_ci95"] = resampled[f"{kind}_{name}"]
    return Average(**figures, **rankings)


def share(correct: int, n: int, wanted: Wanted, resampled: Interval | None) -> Interval | None:
    """The interval of a share; `None` where there is nothing to divide by."""
    if not n:
        return None
    if wanted.groups is not None or wanted.method == "bootstrap":
        return resampled
    return share_interval(correct, n, wanted.level, wanted.method)


def interval_of(pair: tuple[float, float]) -> Interval | None:
    """Two numbers as an interval; `None` where one is none."""
    return pair if all(map(math.isfinite, pair)) else None


def check_groups(groups: Sequence[Any], n: int) -> Sequence[Any]:
    """`groups`; `UsageError` where they are not those of `n` images, or one."""
    if len(groups) != n:
        raise UsageError(f"expected a group for each of {n} images, found {len(groups)}")
    if len(set(groups)) < 2:
        raise UsageError("expected images of at least two groups, found one; leave the groups out")
    return groups


def _sums(outcomes: Outcomes, units: Units) -> sparse.csr_array:
    """Of each unit `[U, 3 K + 5]`: images of each class, taken for it, right; images, right, right in the top, losses, Brier's."""
    classes, n = outcomes.classes, len(outcomes.labels)
    said = outcomes.predictions < classes
    right = outcomes.correct
    in_top = (outcomes.ranks < TOP) | (classes <= TOP)
    blocks = [
        (units, outcomes.labels, np.ones(n)),
        (units[said], classes + outcomes.predictions[said], np.ones(int(said.sum()))),
        (units[right], 2 * classes + outcomes.labels[right], np.ones(int(right.sum()))),
    ]
    for place, values in enumerate((np.ones(n), right, in_top, outcomes.losses, outcomes.briers)):
        blocks.append((units, np.full(n, 3 * classes + place), values.astype(np.float64)))
    rows, columns, values = (np.concatenate(each) for each in zip(*blocks, strict=True))
    shape = int(units.max()) + 1, 3 * classes + 5
    return sparse.coo_array((values, (rows, columns)), shape=shape).tocsr()


_RANKING_KEYS = ("auroc", "auroc_ci95", "average_precision", "average_precision_ci95")


def _ranked(
    figures: Floats, spread: Floats, near: Floats, n: float, level: float, *, excess: float = 0.0
) -> dict[str, Any]:
    """Both areas with their intervals; the average precision is too high by `excess` on average."""
    true = figures - [0.0, excess]
    intervals = [
        bounded_interval(figure, variance, n, level, at=at)
        for figure, variance, at in zip(true.tolist(), spread.tolist(), near.tolist(), strict=True)
    ]
    pairs = [float(figures[0]), intervals[0], float(figures[1]), intervals[1]]
    return dict(zip(_RANKING_KEYS, pairs, strict=True))


def _variances(pulled: Floats, precision: float, units: Units | None, level: float) -> Floats:
    """Of the means of both areas; that of the average precision, which is `precision`, by `_of_few_pulls`."""
    spread = np.asarray((pulled**2).sum(axis=1))
    if units is not None:
        return spread * of_few(pulled.shape[1], level)
    spread[1] = _of_few_pulls(pulled[1], precision, level)
    return spread


def _of_few_pulls(pulled: Floats, figure: float, level: float) -> float:
    """The variance of a `figure` that few of its images may have `pulled [N]`, longer by `of_few` with the degrees of freedom of
    Satterthwaite (1946), but no more so than that of a share of N images."""
    squares = pulled**2
    variance = float(squares.sum())
    if not variance:
        return 0.0
    freedom = variance**2 / float((squares**2).sum())
    return max(variance, min(variance * of_few(freedom + 1, level), figure * (1 - figure) / len(pulled)))


def _f1(share: float) -> float:
    """From the share of right images among those of a class or taken for it."""
    return 2 * share / (1 + share)


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
