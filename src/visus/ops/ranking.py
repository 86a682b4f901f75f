"""How well scores tell the images of one class from all others: one against the rest. `N` images.

Both figures come with the derivative by each image's weight. Their squares add up to the variance (the infinitesimal jackknife:
Jaeckel, 1972), which for the area under the ROC curve is that of DeLong et al. (1988); derivatives of images that belong
together are added up before they are squared.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from visus.ops.intervals import of_few
from visus.ops.resampling import Units, sums_over

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_FEW_UNITS = 200
"""Up to so many, each is left out in its turn."""


class Ranking(NamedTuple):
    """Areas under the ROC and the precision-recall curve, and their derivatives `[N]` by the images' weights."""

    auroc: float
    average_precision: float
    auroc_influence: Floats
    average_precision_influence: Floats
    average_precision_without: Floats
    """What it is without each image `[N]`; without the only positive one, as it is."""


def ranking(scores: npt.NDArray[np.floating], positive: Bools) -> Ranking:
    """How `scores [N]` rank the `positive [N]` images, of which there are some and not all.

    The area under the ROC curve is the chance that a positive image has the higher score, ties counting half. Average precision
    is the mean precision at the scores of the positive images, without interpolation, as scikit-learn has it.
    """
    n = len(scores)
    order = np.argsort(scores, kind="stable")
    ordered, is_positive = scores[order], positive[order].astype(np.float64)
    # For each image, in order: where the images of its own score begin, and where those of a higher one.
    begins = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    run = np.cumsum(np.bincount(begins, minlength=n)) - 1
    ends = np.append(begins[1:], n)
    below_positive = np.concatenate(([0.0], np.cumsum(is_positive)))
    first, after = begins[run], ends[run]
    area, *of_area = _roc(is_positive, below_positive, first, after)
    average, *of_average = _precision_recall(is_positive, below_positive, first, after)
    of_images = np.empty((3, n))
    of_images[:, order] = *of_area, *of_average
    return Ranking(area, average, *of_images)


def pulls(
    found: Ranking, scores: npt.NDArray[np.floating], positive: Bools, units: Units | None = None
) -> Floats:
    """How far each image, or each unit of `units [N]` from 0, pulls both areas `[2, U]`: squares add up to the variances.

    The derivatives, and their sums over units. That of the average precision over at most 200 units is how far it is from the one
    without the unit (the jackknife: Tukey, 1958), since the derivatives of a few spread too little.
    """
    sums = sums_over(units, np.stack(found[2:4]))
    if units is not None and (count := sums.shape[1]) <= _FEW_UNITS:
        changes = found.average_precision - _precisions_without_each(scores, positive, units, count)
        # Without a unit that has all positive images there is no such figure.
        sums[1] = np.nan_to_num(changes) * np.sqrt((count - 1) / count)
    return sums


def ranking_variances(
    found: Ranking,
    pulled: Floats,
    positive: Bools,
    *,
    level: float = 0.95,
    units: Units | None = None,
) -> tuple[float, float]:
    """The variances of both areas, for an interval at `level`, from `pulls`; `units [N]` are images that belong together.

    That of the average precision grows by `of_few`, of the scarcer kind of image or of the units that hold some. Scores that tell
    the images apart nearly always leave next to no variance to see; that of the area under the ROC curve is therefore at least
    what Hanley and McNeil (1982) have for the area `shrunk`, and grows by `of_few` with `units` only: with both, its interval held
    the truth too often.
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    scarcer = min(positives, negatives)
    roc, precision = (float((each**2).sum()) for each in pulled)
    among = scarcer if units is None else len(np.unique(units[positive == (scarcer == positives)]))
    growth = of_few(max(2, among), level)
    area = shrunk(found.auroc, scarcer)
    expected = area * (1 - area)
    expected += (positives - 1) * (area / (2 - area) - area**2)
    expected += (negatives - 1) * (2 * area**2 / (1 + area) - area**2)
    if units is not None:
        roc *= growth
    return max(roc, expected / (positives * negatives)), growth * precision


def _precisions_without_each(
    scores: npt.NDArray[np.floating], positive: Bools, units: Units, count: int
) -> Floats:
    """The average precision without the images of each of `count` units; NaN where no positive one is left."""
    order = np.argsort(scores[positive])
    own, owners = scores[positive][order], units[positive][order]
    # Among the positive images, in order: how many lie at the score of each image, or below it.
    passed = np.searchsorted(own, scores, side="right")
    images, hits = (_at_least(each, len(own)) for each in (passed, passed[positive]))
    found = np.full(count, np.nan)
    ends = np.cumsum(np.bincount(units))[:-1]
    for unit, inside in enumerate(np.split(np.argsort(units, kind="stable"), ends)):
        kept = owners != unit
        if kept.any():
            left_images = images - _at_least(passed[inside], len(own))
            left_hits = hits - _at_least(passed[inside[positive[inside]]], len(own))
            found[unit] = (left_hits[kept] / left_images[kept]).mean()
    return found


def _at_least(passed: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.intp]:
    """How many images lie at the score of each of `count` positive ones, in order, or above it, by how many each has `passed`."""
    return np.bincount(passed, minlength=count + 1)[:0:-1].cumsum()[::-1]


def shrunk(area: float, images: float) -> float:
    """An area as though half of one image more than `images` were wrong: never 0 or 1."""
    return (area * images + 0.5) / (images + 1)


def _roc(
    is_positive: Floats, below: Floats, first: npt.NDArray[np.intp], after: npt.NDArray[np.intp]
) -> tuple[float, Floats]:
    n, positives = len(is_positive), below[-1]
    negatives = n - positives
    # Half of those tied count as below.
    positive_below = (below[first] + below[after]) / 2
    negative_below = (first + after) / 2 - positive_below
    placement = np.where(is_positive > 0, negative_below / negatives, 1 - positive_below / positives)
    area = float(placement[is_positive > 0].mean())
    # With n - 1 in the place of n, as DeLong has it.
    own = np.where(is_positive > 0, positives, negatives)
    return area, (placement - area) / np.sqrt(own * np.maximum(own - 1, 1))


def _precision_recall(
    is_positive: Floats, below: Floats, first: npt.NDArray[np.intp], after: npt.NDArray[np.intp]
) -> tuple[float, Floats, Floats]:
    n, positives = len(is_positive), below[-1]
    at_least = n - first.astype(np.float64)
    hits = positives - below[first]
    precision = hits / at_least
    total = float((precision * is_positive).sum())
    average = total / positives
    # An image moves the precision at every threshold that it passes.
    gains = np.cumsum(is_positive / at_least)[after - 1]
    costs = np.cumsum(is_positive * precision / at_least)[after - 1]
    change = is_positive * (precision + gains - average) - costs
    # Of an image left out: what the precision at each threshold that it passes, not its own, rises or falls by.
    each = is_positive / (at_least * np.maximum(at_least - 1, 1))
    falls = each * (at_least - hits)
    without_negative = (total + np.cumsum(each * hits)[after - 1]) / positives
    others = total - precision - np.cumsum(falls)[after - 1] + falls
    without_positive = others / (positives - 1) if positives > 1 else average
    return average, change / positives, np.where(is_positive > 0, without_positive, without_negative)
