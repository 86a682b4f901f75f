"""The validation part that visus makes where none is given."""

from __future__ import annotations

import numpy as np

from visus.data.images import Labels, Split
from visus.errors import UsageError
from visus.ops.rng import hash64


def held_out(paths: list[str], labels: Labels, fraction: float, seed: int) -> Labels:
    """Positions of the images to set aside, ascending.

    A hash of (seed, path) orders the images of each class, and the first round(fraction * n) are taken: a pure function of the
    names, so that adding images elsewhere, or listing them in another order, moves none. `fraction` is in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise UsageError(f"expected a validation fraction from 0 up to 1, found {fraction}")
    hashes = hash64(seed, "split", paths)
    taken = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        taken.append(members[np.argsort(hashes[members], kind="stable")][: round(fraction * len(members))])
    return np.sort(np.concatenate(taken)) if taken else np.empty(0, dtype=np.int64)


def split_off(split: Split, name: str, fraction: float, seed: int) -> tuple[Split, Split]:
    """`split` without a stratified `fraction` of its images, and those, as a part called `name`."""
    away = held_out(list(split.paths), split.labels, fraction, seed)
    stay = np.setdiff1d(np.arange(len(split)), away)
    return split.subset(stay), split.subset(away, name)
