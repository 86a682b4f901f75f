"""Which images an epoch is made of, and in which order: pure functions of (seed, epoch)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from visus.ops.rng import permutation, uniform

Sampler = Literal["shuffle", "balanced"]
"""`shuffle`: each image once; `balanced`: as many, drawn with replacement so that each class is equally likely."""
Integers = npt.NDArray[np.int64]


def draw_epoch(seed: int, epoch: int, labels: Integers, sampler: Sampler) -> Integers:
    """The numbers `[N]` of an epoch's images, in their order, for `labels [N]`: the remainder by N is the position of an image.

    One that is there for the k-th time (from 0) has its position + k * N, so that it can be augmented otherwise each time.
    """
    n = len(labels)
    if sampler == "shuffle":
        return permutation(seed, "order", epoch, n)
    order = draw_balanced(seed, epoch, labels)
    return order + n * earlier(order)


def draw_balanced(seed: int, epoch: int, labels: Integers) -> Integers:
    """As many positions as there are `labels [N]`, with replacement: first a class, of those that have images, then one of them."""
    by_class = np.argsort(labels, kind="stable")
    _, firsts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    for_class, for_image = uniform(seed, "balanced", epoch, np.arange(len(labels)), 2).T
    chosen = (for_class * len(counts)).astype(np.int64)
    places = firsts[chosen] + (for_image * counts[chosen]).astype(np.int64)
    drawn: Integers = by_class[places]
    return drawn


def earlier(order: Integers) -> Integers:
    """How often each value of `order [N]` stands before its place."""
    by_value = np.argsort(order, kind="stable")
    _, firsts, counts = np.unique(order[by_value], return_index=True, return_counts=True)
    times = np.empty_like(order)
    times[by_value] = np.arange(len(order)) - np.repeat(firsts, counts)
    return times
