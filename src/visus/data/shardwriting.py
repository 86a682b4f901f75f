"""The shards that `visus pack` writes, and those that it finds of an earlier call."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visus.data.addresses import Place
from visus.data.encoding import EncodedImage
from visus.data.images import Split
from visus.data.samples import read_shard
from visus.data.webdataset import SHARD_SUFFIX
from visus.errors import UsageError
from visus.files import replacing


@dataclass
class WrittenShards:
    """The shards of a part, and a row for each image in them: shard, offset, length, CRC-32 and position."""

    shards: list[str] = field(default_factory=list)
    rows: array[int] = field(default_factory=lambda: array("q"))

    def table(self) -> npt.NDArray[np.int64]:
        """`[N, 5]`, in the order of positions."""
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, 5)
        return rows[np.argsort(rows[:, 4], kind="stable")]


def write_shard(
    folder: Path,
    part: Split,
    first: EncodedImage,
    others: Iterator[EncodedImage],
    shard_bytes: int,
    written: WrittenShards,
) -> EncodedImage | None:
    """Write `first` and as many of the `others` as one shard takes; the one that comes next."""
    name = _name(part.name, len(written.shards))
    labels = _labels(part.classes)
    following: EncodedImage | None = first
    rows = array("q")
    with (
        replacing(folder / name) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        while following is not None and (not rows or tar.offset < shard_bytes):
            position, content = following.position, following.content
            document = {
                "path": part.paths[position],
                "label": labels[part.labels[position]],
                "split": part.name,
                "position": position,
                **{column: values[position] for column, values in part.columns.items()},
            }
            key = f"{position:09}"
            _add(tar, f"{key}.cls", str(part.labels[position]).encode())
            _add(tar, f"{key}.json", json.dumps(document).encode())
            offset = _add(tar, f"{key}.{following.suffix}", content)
            rows.extend((len(written.shards), offset, len(content), zlib.crc32(content), position))
            following = next(others, None)
    written.shards.append(name)
    written.rows += rows
    return following


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Where the content begins. Neither time nor owner is written, so that the same images make the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    begin = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(content))
    return begin


def _labels(classes: Sequence[str]) -> list[str | int]:
    """The classes as JSON tells them: as numbers where they are numbers in that order, else as names."""
    numbers = [int(name) for name in classes if name.isdecimal() and name == str(int(name))]
    return list(numbers) if len(numbers) == len(classes) and numbers == sorted(numbers) else list(classes)


def read_written(folder: Path, part: str) -> WrittenShards:
    """The shards of a part that an interrupted call has finished."""
    place, written = Place(str(folder)), WrittenShards()
    names = [name for name in place.find(SHARD_SUFFIX, depth=1) if name.startswith(f"{part}-")]
    if names != [_name(part, number) for number in range(len(names))]:
        raise UsageError(
            f"{folder}: expected its shards one after the other, found some missing; choose another"
        )
    for number, name in enumerate(names):
        content = read_shard(place, name, place.stamp(name)[0])
        for offset, length, position, _ in np.array(content.numbers).reshape(-1, 4).tolist():
            crc = zlib.crc32(place.read(name, offset, length))
            written.rows.extend((number, offset, length, crc, position))
        written.shards.append(name)
    return written


def _name(part: str, number: int) -> str:
    return f"{part}-{number:06}{SHARD_SUFFIX}"
