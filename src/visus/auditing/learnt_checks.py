"""Checks that need features: labels that a model doubts, and images far from all others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from visus.auditing.findings import Finding, some_names
from visus.auditing.scanning import Pool
from visus.display import plural
from visus.ops.confident_learning import estimated_errors, label_doubts
from visus.ops.logistic import out_of_sample

_FOLDS = 5
_DOUBT = 0.05
"""A label is called wrong that gets a smaller share than this of what its class usually gets; from `benchmarks/audit.py`."""
_SKILL = 0.5
"""Of the way from the share of the largest class to 1, that a model's accuracy must have come before its doubts count."""
_LEAST = 10
"""Images of a class, below which its probabilities say nothing."""
_NEIGHBOURS = 10
_REFERENCES = 10_000
_AT_ONCE = 1000
_FAR = 8.0
"""Robust standard deviations of the distance to the tenth neighbour from the median on a logarithmic scale."""

Array = npt.NDArray[Any]


def unseen_probabilities(pool: Pool, places: Array, features: Array) -> Array:
    """`[N, K]` for the images at `places`: by logistic regression on the `features [N, D]` of those in the other folds."""
    labels = pool.labels[places]
    if not _judgeable(labels):
        return np.zeros((len(places), len(pool.classes)), dtype=np.float32)
    # As strong as scikit-learn's (C = 1): a weaker one lets the model of a small set be sure of anything.
    return out_of_sample(features, labels, len(pool.classes), penalty=1 / len(labels), folds=_FOLDS)


def find_label_errors(pool: Pool, places: Array, probabilities: Array) -> tuple[list[Finding], list[str]]:
    """A finding for each of the images at `places` whose label is doubtful by `probabilities [N, K]`; and notes.

    These are of models that have not seen the image. At most as many as confident learning estimates, the most doubtful.
    """
    labels = pool.labels[places]
    if not _judgeable(labels):
        return [], [
            f"labels of {plural(len(places), 'image')} were not judged: not two of their classes have {_LEAST} each"
        ]
    judged = np.bincount(labels)[labels] >= _LEAST
    if not judged.all():
        places, labels, probabilities = places[judged], labels[judged], probabilities[judged]
    majority = np.bincount(labels).max() / len(labels)
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    note = (
        f"labels of {plural(len(labels), 'image')} were judged by a model that is right for {100 * accuracy:.1f} % "
        "of them without having seen them"
    )
    if accuracy - majority < _SKILL * (1 - majority):
        return [], [f"{note}, too few to tell wrong labels"]
    doubts = label_doubts(labels, probabilities)
    order = np.argsort(doubts, kind="stable")[: round(estimated_errors(labels, probabilities))]
    doubtful = order[doubts[order] < _DOUBT]
    return [_doubt(pool, places[image], probabilities[image], doubts[image]) for image in doubtful], [note]


def _judgeable(labels: Array) -> bool:
    return bool((np.bincount(labels, minlength=1) >= _LEAST).sum() >= 2)


def _doubt(pool: Pool, place: int, probabilities: Array, doubt: float) -> Finding:
    name, label, best = pool.names[place], int(pool.labels[place]), int(probabilities.argmax())
    message = (
        f"{name}: labelled {pool.classes[label]} ({100 * probabilities[label]:.1f} % by the model), "
        f"looks like {pool.classes[best]} ({100 * probabilities[best]:.0f} %)"
    )
    # Labels to score by are for a person to correct.
    drop = () if pool.parts[place] == 2 else (name,)
    return Finding("label_error", "medium", message, (name,), float(doubt), drop)


def find_outliers(pool: Pool, places: Array, features: Array) -> list[Finding]:
    """The images at `places` whose tenth neighbour in `features [N, D]` is unusually far, in one finding."""
    if len(places) <= 3 * _NEIGHBOURS:
        return []
    distances = np.log(neighbour_distances(features) + 1e-9)
    centre = np.median(distances)
    scale = 1.4826 * np.median(np.abs(distances - centre))
    far = np.flatnonzero(distances > centre + max(_FAR * scale, np.log(1.5)))
    if not len(far):
        return []
    names = tuple(pool.names[places[image]] for image in far[np.argsort(-distances[far])])
    times = float(np.exp(distances.max() - centre))
    message = (
        f"far from all others in features (up to {times:.1f} times as far as usual): {some_names(names)}"
    )
    return [Finding("odd_image", "low", message, names, times)]


def neighbour_distances(features: Array) -> Array:
    """`[N]`: from each image to its tenth neighbour, among at most 10,000 evenly chosen others, so that time grows with N alone."""
    reference = features[:: -(-len(features) // _REFERENCES)]
    squares = (reference**2).sum(axis=1)
    distances = np.empty(len(features))
    for begin in range(0, len(features), _AT_ONCE):
        block = features[begin : begin + _AT_ONCE]
        table = (block**2).sum(axis=1)[:, None] + squares - 2 * (block @ reference.T)
        # The nearest of all may be the image itself.
        nearest = np.partition(table, _NEIGHBOURS, axis=1)[:, _NEIGHBOURS]
        distances[begin : begin + _AT_ONCE] = np.sqrt(np.maximum(nearest, 0))
    return distances
