"""The validation part that visus makes where none is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np

from visus.data.images import Labels, Split
from visus.errors import DataError, UsageError
from visus.ops.groups import named_apart
from visus.ops.rng import hash64

_ROUNDING = 1e-9


def held_out(paths: Sequence[str], labels: Labels, fraction: float, seed: int) -> Labels:
    """Positions of the images to set aside, ascending.

    A hash of (seed, path) orders the images of each class, and the first round(fraction * n) are taken: a pure function of the
    names, so that adding images elsewhere, or listing them in another order, moves none. `fraction` is in [0, 1).
    """
    _check_fraction(fraction)
    hashes = hash64(seed, "split", paths)
    taken = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        taken.append(members[np.argsort(hashes[members], kind="stable")][: round(fraction * len(members))])
    return np.sort(np.concatenate(taken)) if taken else np.empty(0, dtype=np.int64)


def held_out_groups(groups: Sequence[str], labels: Labels, fraction: float, seed: int) -> Labels:
    """As `held_out`, for whole groups: those of one name in `groups [N]` are all set aside, or none of them.

    A hash of (seed, group) orders the groups. Each in its turn is taken if that brings the shares of the classes that are set
    aside nearer to `fraction`, all classes counting alike (the sum over them of the distances), and leaves some of every class to
    train on. Where none does, the one that goes least too far is taken. So the choice depends on the seed and on which classes
    each group has, not on the order of the images. `DataError` where there is no group that can be taken.
    """
    _check_fraction(fraction)
    if not fraction or not len(labels):
        return np.empty(0, dtype=np.int64)
    names = sorted(set(groups))
    numbers = {name: number for number, name in enumerate(names)}
    of_image = np.fromiter((numbers[group] for group in groups), dtype=np.int64, count=len(groups))
    order = np.argsort(hash64(seed, "split groups", names), kind="stable")
    del numbers
    chosen = np.zeros(len(names), dtype=np.bool_)
    chosen[list(_choose_groups(of_image, labels, order, fraction))] = True
    return np.flatnonzero(chosen[of_image])


def _choose_groups(of_image: Labels, labels: Labels, order: Labels, fraction: float) -> Iterator[int]:
    """The groups, by number, that are taken of those in `order`."""
    totals = np.bincount(labels)
    taken = [0.0] * len(totals)
    composition = _compositions(of_image, labels, len(order))
    spare: tuple[float, int] | None = None
    found = False
    for group in order.tolist():
        gain = 0.0
        for label, count in composition(group):
            before, after = taken[label] / totals[label], (taken[label] + count) / totals[label]
            gain += abs(fraction - before) - abs(fraction - after)
            if after == 1:
                break
        else:
            if gain > _ROUNDING:
                found = True
                for label, count in composition(group):
                    taken[label] += count
                yield group
            elif spare is None or gain > spare[0]:
                spare = (gain, group)
    if not found:
        if spare is None:
            raise DataError(
                "expected groups of which some can be set aside for validation, found classes that lie in one group each; "
                "give validation images, or a column split"
            )
        yield spare[1]


def _compositions(of_image: Labels, labels: Labels, groups: int) -> Callable[[int], list[tuple[int, int]]]:
    """A function that tells of a group its classes and how many images it has of each: lists of all would be large."""
    classes = int(labels.max()) + 1
    pairs = of_image * classes
    pairs += labels
    pairs.sort()
    begins = np.searchsorted(pairs, np.arange(groups + 1) * classes)

    def composition(group: int) -> list[tuple[int, int]]:
        of_group = pairs[begins[group] : begins[group + 1]] % classes
        return [(label, sum(1 for _ in images)) for label, images in groupby(of_group.tolist())]

    return composition


def split_off(split: Split, name: str, fraction: float, seed: int) -> tuple[Split, Split]:
    """`split` without a stratified `fraction` of its images, and those, as a part called `name`; groups stay together."""
    if "group" in split.columns:
        groups = named_apart(split.columns["group"], split.paths)
        away = held_out_groups(groups, split.labels, fraction, seed)
    else:
        away = held_out(split.paths, split.labels, fraction, seed)
    stays = np.ones(len(split), dtype=np.bool_)
    stays[away] = False
    return split.subset(np.flatnonzero(stays)), split.subset(away, name)


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise UsageError(f"expected a validation fraction from 0 up to 1, found {fraction}")
