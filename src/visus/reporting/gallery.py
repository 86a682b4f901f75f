"""Which images the page shows: examples of the classes, mistakes, and those behind each cell of the confusion matrix.

`N` images, `K` classes. Everything is chosen by rule, so that the same run gives the same page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from visus.reporting.reading import Ints, Listing, Predictions, RunResults
from visus.reporting.thumbnails import Key

MOST_LISTED = 5000
"""Mistakes that the page knows; a hundred bytes each."""
_LOOKED_AT = 24
_PICTURED = 200
_MOST_CONFIDENT = 100
_EXAMPLES = 240
_EXAMPLES_OF_A_CLASS = 8
_RIGHT = 120
_RIGHT_OF_A_CLASS = 6
_MOST_CLASSES_RIGHT = 60


def examples(listing: Listing, share: int = 1) -> dict[str, list[Key]]:
    """Training images of each class, spread evenly over its list; of very many classes, of the first ones only.

    `share` is how many runs there are on the page, which have room for so many pictures together.
    """
    classes = listing.images.get("train", {})
    each = max(1, min(_EXAMPLES_OF_A_CLASS, _EXAMPLES // share // max(1, len(classes))))
    return {
        name: [("train", paths[place]) for place in spread(len(paths), each)]
        for name, paths in sorted(classes.items())[: max(1, _EXAMPLES // share)]
    }


def spread(n: int, most: int) -> list[int]:
    """At most `most` of `n` places, evenly apart."""
    return (
        sorted({(2 * place + 1) * n // (2 * most) for place in range(most)}) if n > most else list(range(n))
    )


def mistakes(predictions: Predictions) -> Ints:
    """Positions of the images that the model is wrong about, the surest first."""
    wrong = np.flatnonzero(~predictions.correct)
    return wrong[np.argsort(-predictions.confidence[wrong], kind="stable")]


def pictured(predictions: Predictions, wrong: Ints, share: int = 1) -> Ints:
    """Those of the ordered mistakes `wrong` to be shown as pictures: the surest, then some of every pair of classes in turn."""
    width = len(predictions.classes) + 1
    ranks = _rank_in_group(predictions.true[wrong] * width + predictions.predicted[wrong])
    first = np.arange(len(wrong)) < _MOST_CONFIDENT // share
    order = np.argsort(np.where(first, -1, ranks), kind="stable")
    return wrong[order[: _PICTURED // share]]


def said(predictions: Predictions, wrong: Ints) -> dict[str, str]:
    """Of the ordered mistakes `wrong` the first ones, to look closer at: their paths, and the classes that the model said."""
    known = wrong[np.isfinite(predictions.confidence[wrong])][:_LOOKED_AT]
    return {predictions.paths[place]: predictions.classes[predictions.predicted[place]] for place in known}


def right(predictions: Predictions, share: int = 1) -> Ints:
    """Some images of each class that the model is right about, the least sure first; none where there are many classes."""
    count = len(predictions.classes)
    if count > _MOST_CLASSES_RIGHT:
        return np.empty(0, dtype=np.int64)
    correct = np.flatnonzero(predictions.correct)
    order = correct[np.argsort(predictions.confidence[correct], kind="stable")]
    each = max(1, min(_RIGHT_OF_A_CLASS, _RIGHT // share // max(1, count)))
    return order[_rank_in_group(predictions.true[order]) < each]


def confusion_cells(results: RunResults) -> list[list[int]]:
    """`[true, predicted, images]` of every pair of classes that occurs."""
    counts = (results.evaluation or {}).get("confusion")
    if counts:
        table = np.asarray(counts)
        return [[int(t), int(p), int(table[t, p])] for t, p in np.argwhere(table)]
    if not results.predictions:
        return []
    pairs = np.stack([results.predictions.true, results.predictions.predicted], axis=1)
    cells, numbers = np.unique(pairs[pairs[:, 1] >= 0], axis=0, return_counts=True)
    return [[int(t), int(p), int(n)] for (t, p), n in zip(cells, numbers, strict=True)]


def rows(predictions: Predictions, positions: Sequence[int] | Ints) -> list[list[Any]]:
    """`[path, true, predicted, confidence, probability of the true class]` of images; `None` for no number."""
    return [
        [
            predictions.paths[place],
            int(predictions.true[place]),
            int(predictions.predicted[place]),
            _rounded(predictions.confidence[place]),
            _rounded(predictions.true_probability[place]),
        ]
        for place in positions
    ]


def _rank_in_group(groups: Ints) -> Ints:
    """How many before each are of the same group."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else order
    lengths = np.diff(np.r_[starts, len(ordered)])
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(ordered)) - np.repeat(starts, lengths)
    return ranks


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
