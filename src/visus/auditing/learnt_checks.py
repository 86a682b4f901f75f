"""Checks that need features: labels that a model doubts, and images far from all others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from visus.auditing.findings import Finding, some_names
from visus.auditing.scanning import Pool
from visus.ops.confident_learning import estimated_errors, label_doubts
from visus.ops.logistic import out_of_sample

_FOLDS = 5
_PENALTY = 1e-4
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


def find_label_errors(
    pool: Pool, places: Array, features: Array, known: Array | None = None
) -> tuple[list[Finding], list[str]]:
    """A finding for each of the images at `places` whose label a model doubts that was fitted without it; and notes.

    At most as many as confident learning estimates, the most doubtful. `features [N, D]` are of these images; `known [N, K]` are
    probabilities by a model that was not trained on them, NaN where it was.
    """
    labels = pool.labels[places]
    counts = np.bincount(labels, minlength=len(pool.classes))
    large = np.flatnonzero(counts >= _LEAST)
    judged = np.isin(labels, large)
    if len(large) < 2:
        return [], [f"labels were not judged: fewer than two classes have {_LEAST} images"]
    own, number = labels[judged], np.searchsorted(large, labels[judged])
    probabilities = out_of_sample(features[judged], number, len(large), penalty=_PENALTY, folds=_FOLDS)
    if known is not None:
        given = known[judged][:, large]
        probabilities = np.where(np.isnan(given), probabilities, given)
    majority = np.bincount(number).max() / len(number)
    accuracy = (probabilities.argmax(axis=1) == number).mean()
    note = f"labels were judged by a model that is right for {100 * accuracy:.1f} % of the images it has not seen"
    if accuracy - majority < _SKILL * (1 - majority):
        return [], [f"{note}, too few to tell wrong labels"]
    doubts = label_doubts(number, probabilities)
    order = np.argsort(doubts, kind="stable")[: round(estimated_errors(number, probabilities))]
    findings = []
    for image in order[doubts[order] < _DOUBT]:
        best = int(probabilities[image].argmax())
        name, label = pool.names[places[judged][image]], pool.classes[own[image]]
        message = (
            f"{name}: labelled {label} ({100 * probabilities[image, number[image]]:.1f} % by the model), "
            f"looks like {pool.classes[large[best]]} ({100 * probabilities[image, best]:.0f} %)"
        )
        # Labels to score by are for a person to correct.
        drop = () if pool.parts[places[judged][image]] == 2 else (name,)
        findings.append(Finding("label_error", "medium", message, (name,), float(doubts[image]), drop))
    return findings, [note]


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
