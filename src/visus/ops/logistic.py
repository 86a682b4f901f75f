"""Multinomial logistic regression, and its predictions for images that it has not seen.

`N` images, `D` features, `K` classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from visus.ops.rng import permutation
from visus.ops.scratch import scratch_array

_ITERATIONS = 60
_FITTED = 100_000
"""Images that a model for others is fitted on: with some hundred features more of them do not change it."""
_AT_ONCE = 2**14

Array = npt.NDArray[Any]


def fit_logistic(
    features: Array, labels: Array, classes: int, *, penalty: float, class_weights: Array | None = None
) -> Array:
    """Weights `[D + 1, K]`, the last row the intercepts: the minimum of mean cross-entropy plus `penalty` / 2 times the squares.

    Images count as their `class_weights [K]` say, else alike. Found by L-BFGS from zero, in at most 60 steps; intercepts are not
    penalised.
    """
    inputs, targets = torch.from_numpy(np.asarray(features, dtype=np.float32)), torch.from_numpy(labels)
    counted = torch.from_numpy(np.ones(classes) if class_weights is None else class_weights).float()
    whole = counted[targets].sum()
    weights = torch.zeros(inputs.shape[1], classes, requires_grad=True)
    intercepts = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, intercepts], max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = penalty / 2 * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        # In pieces, so that a thousand classes do not make a table of all images.
        for begin in range(0, len(inputs), _AT_ONCE):
            some = slice(begin, begin + _AT_ONCE)
            logits = inputs[some] @ weights + intercepts
            part = functional.cross_entropy(logits, targets[some], counted, reduction="sum") / whole
            part.backward()  # type: ignore[no-untyped-call]
            loss = loss.detach() + part.detach()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return torch.cat([weights, intercepts[None]]).detach().numpy()


def predict_logistic(weights: Array, features: Array) -> Array:
    """Probabilities `[N, K]`, float64."""
    logits = (np.asarray(features, dtype=np.float32) @ weights[:-1] + weights[-1]).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Array = shares / shares.sum(axis=1, keepdims=True)
    return probabilities


def stratified_folds(labels: Array, folds: int, seed: int = 0) -> Array:
    """`[N]`: which fold each image is in, every class spread evenly over them."""
    order = permutation(seed, "folds", 0, len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def out_of_sample(
    features: Array,
    labels: Array,
    classes: int,
    *,
    penalty: float,
    folds: int = 5,
    seed: int = 0,
) -> Array:
    """Probabilities `[N, K]` of each image by a model fitted on the other folds, on 100,000 images or little more of these.

    They are float32, and many lie in a file.
    """
    fold = stratified_folds(labels, folds, seed)
    probabilities = scratch_array((len(labels), classes), np.float32)
    for number in range(folds):
        seen, class_weights = _thinned(np.flatnonzero(fold != number), labels, classes)
        weights = fit_logistic(
            features[seen], labels[seen], classes, penalty=penalty, class_weights=class_weights
        )
        held_out = np.flatnonzero(fold == number)
        for begin in range(0, len(held_out), _AT_ONCE):
            some = held_out[begin : begin + _AT_ONCE]
            probabilities[some] = predict_logistic(weights, features[some])
    return probabilities


def _thinned(places: Array, labels: Array, classes: int) -> tuple[Array, Array]:
    """Of `places` at most 100,000, or 200 of each class if that is more; and by how much each class counts for that, `[K]`."""
    most = max(200, _FITTED // classes)
    order = places[np.argsort(labels[places], kind="stable")]
    counts = np.bincount(labels[places], minlength=classes)
    # Every so manieth of each class.
    steps = -(-counts // most)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = order[rank % np.repeat(np.maximum(steps, 1), counts) == 0]
    weights = counts / np.maximum(np.bincount(labels[kept], minlength=classes), 1)
    return np.sort(kept), weights
