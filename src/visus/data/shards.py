"""Images in tar shards: an index of where each one is, so that any of them can be read by itself, in any order.

`N` images, `S` shards.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from visus.data.addresses import Place
from visus.data.decode import UndecodableError
from visus.data.images import Column, Skipped
from visus.data.names import Names, collect_names, read_names, separated
from visus.data.repeated import Repeated
from visus.errors import DataError, one_line
from visus.ops.rng import hash64

PART_NAMES = ("train", "val", "test")
INDEX_NAME = "index.npz"
_FORMAT = 1
_NUMBERS: dict[str, type[np.signedinteger[Any]]] = {
    "shard": np.int32,
    "offset": np.int64,
    "length": np.int64,
    "label": np.int32,
    "part": np.int8,
}
"""The rows of an index, and what is enough for them in memory; in a file all are of 64 bits."""


@dataclass(frozen=True)
class ShardIndex:
    """Where each image of a set of shards is, and what is known of it."""

    shards: Sequence[str]
    """`[S]`, names under the source."""
    stamps: npt.NDArray[np.int64]
    """`[S, 2]`: size in bytes, and a number that changes when the file does; 0 where it was not known."""
    paths: Sequence[str]
    """`[N]`, what identifies each image."""
    rows: Mapping[str, npt.NDArray[np.signedinteger[Any]]]
    """`[N]` each: shard, offset, length, label and part (0 train, 1 val, 2 test)."""
    classes: Sequence[str]
    crcs: npt.NDArray[np.uint32] | None = None
    """`[N]`, CRC-32 of each image, where it is known."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    channels: int = 3
    others: int = 0
    """Files that belong to no image."""
    skipped: tuple[Skipped, ...] = ()

    def names(self) -> Sequence[str]:
        """`[N]`: the paths, under the names of their parts where two have the same, as arrays for training and testing do."""
        if not self.has_twins:
            return self.paths
        parts = self.rows["part"].tolist()
        return collect_names(
            f"{PART_NAMES[part]}/{path}" for part, path in zip(parts, self.paths, strict=True)
        )

    @cached_property
    def has_twins(self) -> bool:
        """Whether a path is there more than once."""
        hashes = hash64(0, "shards", self.paths)
        hashes.sort()
        return bool((hashes[1:] == hashes[:-1]).any())

    def write(self, file: IO[bytes]) -> None:
        """As the content of `index.npz`; `docs/pack.md` describes it."""
        document = {
            "format": _FORMAT,
            "shards": list(self.shards),
            "classes": list(self.classes),
            "columns": list(self.columns),
            "channels": self.channels,
            "others": self.others,
            "skipped": [[each.path, each.reason] for each in self.skipped],
        }
        # As `numpy.savez` does it, which wants to have all at once.
        with zipfile.ZipFile(file, "w") as archive:
            for name, values in self.rows.items():
                _write_array(archive, name, values.astype(np.int64))
            _write_array(archive, "stamps", self.stamps)
            _write_texts(archive, "paths", self.paths)
            if self.crcs is not None:
                _write_array(archive, "crc", self.crcs)
            for place, texts in enumerate(self.columns.values()):
                _write_texts(archive, f"column{place}", texts)
            _write_texts(archive, "document", [json.dumps(document)])


def _write_array(archive: zipfile.ZipFile, name: str, array: npt.NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)


def _write_texts(archive: zipfile.ZipFile, name: str, texts: Iterable[str]) -> None:
    """As an array of bytes."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (sum(map(len, separated(texts))),)}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, header)
        for piece in separated(texts):
            entry.write(piece)


def parse_index(file: IO[bytes], origin: str) -> ShardIndex:
    """The index in a file; `DataError` naming `origin` where it is damaged, or of a later format."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            document = json.loads(arrays["document"].tobytes())
            if document["format"] != _FORMAT:
                raise DataError(
                    f"{origin}: expected format {_FORMAT}, found {document['format']}; update visus"
                )
            rows = {name: _narrowed(arrays[name], kind) for name, kind in _NUMBERS.items()}
            count = len(rows["shard"])
            index = ShardIndex(
                document["shards"],
                arrays["stamps"].astype(np.int64),
                _as_names(arrays["paths"], count),
                rows,
                document["classes"],
                arrays["crc"].astype(np.uint32) if "crc" in arrays else None,
                {
                    name: Repeated(_as_names(arrays[f"column{place}"], count)).texts()
                    for place, name in enumerate(document["columns"])
                },
                int(document["channels"]),
                int(document["others"]),
                tuple(Skipped(*each) for each in document["skipped"]),
            )
        _check(index)
    except DataError:
        raise
    # What is damaged raises almost anything.
    except Exception as error:
        reason = one_line(error)
        raise DataError(
            f"{origin}: cannot be read as an index of shards ({reason}); remove it, and the shards are read instead"
        ) from None
    return index


def _narrowed(values: npt.NDArray[Any], kind: type[np.signedinteger[Any]]) -> Any:
    """`values` as numbers of that kind; `ValueError` for some that it does not have."""
    narrowed = values.astype(kind)
    if not np.array_equal(narrowed, values):
        raise ValueError("numbers out of range")
    return narrowed


def _check(index: ShardIndex) -> None:
    """`ValueError` for numbers that lead out of something."""
    rows, count = index.rows, len(index.paths)
    limits = {"shard": len(index.shards), "label": len(index.classes), "part": len(PART_NAMES)}
    lengths = {len(each) for each in rows.values()} | ({count} if index.crcs is None else {len(index.crcs)})
    if index.stamps.shape != (len(index.shards), 2) or lengths != {count}:
        raise ValueError("lengths differ")
    if any((rows[name] < 0).any() or (rows[name] >= limit).any() for name, limit in limits.items()):
        raise ValueError("numbers out of range")
    ends = index.stamps[:, 0][rows["shard"]] if count else rows["shard"]
    if (
        (rows["offset"] < 0).any()
        or (rows["length"] < 0).any()
        or (rows["offset"] + rows["length"] > ends).any()
    ):
        raise ValueError("an image lies outside of its shard")


class ShardArchive:
    """The images in shards, read by `names [N]`, which are those of the index: 28 bytes of memory for each.

    It may be shared by threads, sent to another process and used after a fork. A shard that has changed is a `DataError`.
    """

    def __init__(self, place: Place, index: ShardIndex, names: Sequence[str], identity: str) -> None:
        self.place = place
        self.identity = identity
        self._shards = tuple(index.shards)
        self._stamps = index.stamps
        hashes = hash64(0, "shards", names)
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        if (twins := np.flatnonzero(self._hashes[1:] == self._hashes[:-1])).size:
            twin = names[order[twins[0] + 1]]
            raise DataError(f"{identity}: expected each image once, found {twin} twice; pack it again")
        self._shard: npt.NDArray[np.int32] = index.rows["shard"][order].astype(np.int32)
        self._offsets = index.rows["offset"][order]
        self._lengths: npt.NDArray[np.uint32] = np.minimum(index.rows["length"][order], 2**32 - 1).astype(
            np.uint32
        )
        self._crcs = None if index.crcs is None else index.crcs[order]
        self._seen: set[tuple[int, int]] = set()

    def read(self, name: str, limit_bytes: int) -> bytes:
        """As `Archive`."""
        place = self._find([name])[0]
        shard, length = int(self._shard[place]), int(self._lengths[place])
        if length > limit_bytes:
            raise UndecodableError(f"too large: {length:,} bytes, the limit is {limit_bytes:,}")
        self._refuse_changed(shard)
        content = self.place.read(self._shards[shard], int(self._offsets[place]), length)
        if len(content) != length:
            raise UndecodableError(f"{self._shards[shard]} ends in the midst of it", lasting=False)
        if self._crcs is not None and zlib.crc32(content) != self._crcs[place]:
            raise UndecodableError(f"damaged in {self._shards[shard]}", lasting=False)
        return content

    def sizes_bytes(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """As `Archive`."""
        return self._lengths[self._find(names)].astype(np.int64)

    def times(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """The CRC-32 of each image, where it is known; else what changes with its shard."""
        places = self._find(names)
        return (
            self._stamps[self._shard[places], 1]
            if self._crcs is None
            else self._crcs[places].astype(np.int64)
        )

    def _find(self, names: Sequence[str]) -> npt.NDArray[np.intp]:
        return np.searchsorted(self._hashes, hash64(0, "shards", names))

    def _refuse_changed(self, shard: int) -> None:
        """Asked for each image where that costs nothing, else once in each process."""
        seen = (os.getpid(), shard)
        if seen in self._seen and not self.place.is_local:
            return
        size, stamp = self.place.stamp(self._shards[shard])
        expected = self._stamps[shard]
        if size != expected[0] or expected[1] not in (0, stamp):
            raise DataError(
                f"{self.place.url(self._shards[shard])}: has changed since its images were listed; start again"
            )
        self._seen.add(seen)


def _as_names(content: npt.NDArray[np.uint8], count: int) -> Names:
    # One empty name is no bytes, and so is none.
    names = read_names(content.data) if content.size else collect_names([""] * min(count, 1))
    if len(names) != count:
        raise ValueError("lengths differ")
    return names
