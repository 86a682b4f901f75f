"""Groups of images, as a table names them: an image without one, that is `""`, counts as one of its own.

Nothing here loads scipy, or torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy.typing as npt

Groups = Sequence[Any] | npt.NDArray[Any]


def named_apart(groups: Groups, names: Iterable[object] | None = None) -> list[Any]:
    """The group of each image; that of one without is called by its place, or its name in `names`, after a byte of zero."""
    names = range(len(groups)) if names is None else names
    return [group if group != "" else f"\0{name}" for group, name in zip(groups, names, strict=True)]


def count_groups(groups: Groups) -> int:
    """How many there are, each image without one counting for one."""
    return len(set(named_apart(groups)))


def counted_groups(groups: Groups) -> Sequence[Any] | None:
    """`groups` of images to count, each without one apart; `None` where no two share one, or all do, so that images count."""
    apart = named_apart(groups)
    return apart if 1 < len(set(apart)) < len(apart) else None


def is_one_group(groups: Groups) -> bool:
    """Whether all images, two at least, share a group."""
    return len(groups) > 1 and groups[0] != "" and len(set(groups)) == 1
