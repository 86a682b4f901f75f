"""What a pass over shards has found, kept for later runs: over the network it is a pass over everything."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visus.data.cache import cache_folder
from visus.data.shards import ShardIndex, parse_index
from visus.errors import DataError
from visus.files import replacing


def recall_scan(identity: str, names: Sequence[str], stamps: npt.NDArray[np.int64]) -> ShardIndex | None:
    """The index of shards that are as they were when it was kept: of the same `names [S]` and `stamps [S, 2]`."""
    with contextlib.suppress(OSError, DataError):
        with _path(identity, names).open("rb") as file:
            index = parse_index(file, identity)
        # A file system that tells no times cannot say that a shard is as it was.
        if list(index.shards) == list(names) and np.array_equal(index.stamps, stamps) and stamps[:, 1].all():
            return index
    return None


def keep_scan(identity: str, index: ShardIndex) -> None:
    """Keep `index` for `recall_scan`, in the place of an earlier one of the same shards. Where there is no room, it is not kept."""
    with contextlib.suppress(OSError):
        path = _path(identity, index.shards)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            index.write(file)


def _path(identity: str, names: Sequence[str]) -> Path:
    key = hashlib.sha256("\0".join([identity, *names]).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache_folder().parent / "shards" / f"{key}.npz"
