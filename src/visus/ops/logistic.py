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

_ITERATIONS = 60

Array = npt.NDArray[Any]


def fit_logistic(features: Array, labels: Array, classes: int, *, penalty: float) -> Array:
    """Weights `[D + 1, K]`, the last row the intercepts: the minimum of mean cross-entropy plus `penalty` / 2 times the squares.

    Found by L-BFGS from zero, in at most 60 steps; intercepts are not penalised.
    """
    inputs, targets = torch.from_numpy(np.asarray(features, dtype=np.float32)), torch.from_numpy(labels)
    weights = torch.zeros(inputs.shape[1], classes, requires_grad=True)
    intercepts = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, intercepts], max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(inputs @ weights + intercepts, targets)
        loss = loss + penalty / 2 * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
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
    features: Array, labels: Array, classes: int, *, penalty: float, folds: int = 5, seed: int = 0
) -> Array:
    """Probabilities `[N, K]` of each image by a model fitted on the other folds."""
    fold = stratified_folds(labels, folds, seed)
    probabilities = np.empty((len(labels), classes))
    for number in range(folds):
        held_out = fold == number
        weights = fit_logistic(features[~held_out], labels[~held_out], classes, penalty=penalty)
        probabilities[held_out] = predict_logistic(weights, features[held_out])
    return probabilities
