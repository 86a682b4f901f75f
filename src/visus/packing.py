"""What `visus pack` does: any source as tar shards, with an index of where each image is.

The shards are WebDataset's: `000000012.jpg` with `000000012.cls` (the class's number) and `000000012.json` (path, label, split,
position and other columns) beside it. `docs/pack.md` describes them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt

from visus.data.decode import WAY, UndecodableError
from visus.data.encoding import EncodedImage, Recoding, encode_images
from visus.data.images import Data, Skipped, Split
from visus.data.listing import fingerprint
from visus.data.names import join_names
from visus.data.shards import INDEX_NAME, PART_NAMES, ShardIndex
from visus.data.shardwriting import WrittenShards, read_written, write_shard
from visus.data.sources import read_source
from visus.errors import DataError, UsageError
from visus.files import replacing, write_json
from visus.ops.rng import permutation

_ABOUT = "pack.json"
_LOCK = ".pack.lock"
_FORMAT = 1
_QUALITY = 90


@dataclass(frozen=True)
class Packed:
    """What was written."""

    out: Path
    images: dict[str, int]
    """Of each part."""
    shards: int
    size_bytes: int
    skipped: tuple[Skipped, ...]
    """Files that could not be read."""

    def to_json(self) -> dict[str, Any]:
        """As plain values; the size in MiB."""
        return {
            "out": str(self.out.absolute()),
            "images": self.images,
            "shards": self.shards,
            "size_mb": round(self.size_bytes / 2**20, 3),
            "skipped": [asdict(each) for each in self.skipped],
        }


@dataclass
class _Progress:
    """What has happened, for whoever watches."""

    total: int
    progress: Callable[[int, int], None]
    say: Callable[[str], None]
    done: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def advance(self, count: int = 1) -> None:
        self.done += count
        self.progress(self.done, self.total)

    def skip(self, path: str, reason: str) -> None:
        self.skipped.append(Skipped(path, reason))
        self.say(f"skipped {path}: {reason}")


def pack_source(
    source: str,
    out: str | os.PathLike[str],
    *,
    cache_size: int | None = None,
    quality: int | None = None,
    shard_bytes: int = 500 * 2**20,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Packed:
    """Write the images of `source` to shards of about `shard_bytes` in the new folder `out`, which appear there one by one, whole.

    Files are taken as they are, arrays become PNGs; with `cache_size` every image is shrunk to that short side and becomes a JPEG
    of that `quality` (90). The same call goes on with what an interrupted one has left. Files that cannot be read are left out and
    listed. `UsageError` where `out` holds anything else: nothing is overwritten; `DataError` for a text with a byte of zero in it.
    """
    if quality is not None and cache_size is None:
        raise UsageError("--quality: files are taken as they are without --cache-size; leave it out")
    recoding = None if cache_size is None else Recoding(cache_size, quality or _QUALITY)
    data, folder = read_source(source), Path(out)
    parts = {name: part for name in PART_NAMES if (part := getattr(data, name)) is not None}
    _refuse_zero_bytes(data.source, parts)
    told = _Progress(sum(map(len, parts.values())), progress or _ignore, say or _ignore)
    told.skipped += data.skipped
    for line in (*data.notes, *(f"skipped {each.path}: {each.reason}" for each in data.skipped)):
        told.say(line)
    _refuse_inside(source, folder)
    about = {
        "format": _FORMAT,
        "shard_bytes": shard_bytes,
        "recoding": recoding and {**asdict(recoding), "way": WAY},
        "data": fingerprint(data),
    }
    with _claimed(folder, about):
        written = {
            name: _write_part(folder, part, recoding, shard_bytes, workers, told)
            for name, part in parts.items()
        }
        index = _make_index(data, folder, parts, written)
        # Written last: that it is there says that all is.
        with replacing(folder / INDEX_NAME) as temporary, temporary.open("wb") as file:
            index.write(file)
    images = {name: len(each.rows) // 5 for name, each in written.items()}
    return Packed(folder, images, len(index.shards), int(index.stamps[:, 0].sum()), tuple(told.skipped))


def _write_part(
    folder: Path,
    part: Split,
    recoding: Recoding | None,
    shard_bytes: int,
    workers: int | None,
    told: _Progress,
) -> WrittenShards:
    """The shards of a part: those that are there already, and the others."""
    written = read_written(folder, part.name)
    done = set(written.rows[4::5])
    # Whoever reads shards from end to end wants the classes mixed; the position says where each image was.
    order = permutation(0, "pack", 0, len(part)) if part.name == "train" else np.arange(len(part))
    rest = np.array([position for position in order.tolist() if position not in done], dtype=np.int64)
    if done:
        told.advance(len(done))
    with closing(encode_images(part, rest, recoding, workers)) as results:
        images = _good_ones(part, rest, results, told)
        following = next(images, None)
        while following is not None:
            following = write_shard(folder, part, following, images, shard_bytes, written)
    return written


def _good_ones(
    part: Split,
    positions: npt.NDArray[np.int64],
    results: Iterator[EncodedImage | UndecodableError],
    told: _Progress,
) -> Iterator[EncodedImage]:
    for position, result in zip(positions, results, strict=True):
        if isinstance(result, UndecodableError):
            told.skip(part.paths[position], str(result))
        else:
            yield result
        told.advance()


def _make_index(
    data: Data, folder: Path, parts: dict[str, Split], written: dict[str, WrittenShards]
) -> ShardIndex:
    tables = {name: each.table() for name, each in written.items()}
    packed = {name: part.subset(tables[name][:, 4]) for name, part in parts.items()}
    shards = [shard for each in written.values() for shard in each.shards]
    before = np.cumsum([0, *(len(each.shards) for each in written.values())])
    table = np.concatenate(list(tables.values()))
    of_part = np.repeat(np.arange(len(parts)), [len(each) for each in tables.values()])
    columns = sorted({column for part in packed.values() for column in part.columns})
    return ShardIndex(
        shards,
        # When a shard was written says nothing: it may have been copied. Its images have their CRC-32.
        np.array([[(folder / name).stat().st_size, 0] for name in shards], dtype=np.int64).reshape(-1, 2),
        join_names([part.paths for part in packed.values()]),
        {
            "shard": table[:, 0] + before[of_part],
            "offset": table[:, 1],
            "length": table[:, 2],
            "label": np.concatenate([part.labels for part in packed.values()]),
            "part": np.array([PART_NAMES.index(name) for name in parts])[of_part],
        },
        data.classes,
        table[:, 3].astype(np.uint32),
        {
            column: np.concatenate(
                [part.columns.get(column, np.full(len(part), "", object)) for part in packed.values()]
            )
            for column in columns
        },
        channels=max(part.images.channels for part in parts.values()),
    )


@contextlib.contextmanager
def _claimed(folder: Path, about: dict[str, Any]) -> Iterator[None]:
    """Hold `folder`, made if it is not there: empty, or with what an interrupted call for the same has left."""
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"{folder}: expected a folder to make it in, found none; make {folder.parent} first")
    there = {each.name for each in folder.iterdir()} if folder.is_dir() else set()
    if (folder.exists() and not folder.is_dir()) or (there and not _is_of(folder, about)):
        raise UsageError(f"{folder}: expected a new folder, found other things in it; choose another")
    folder.mkdir(exist_ok=True)
    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise UsageError(f"{folder}: another process is writing it; wait for it, or choose another") from None
    try:
        if (folder / INDEX_NAME).exists():
            raise UsageError(f"{folder}: is complete already; use it, or choose another folder")
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        write_json(folder / _ABOUT, about)
        yield
    finally:
        lock.release()
        (folder / _LOCK).unlink(missing_ok=True)


def _is_of(folder: Path, about: dict[str, Any]) -> bool:
    """Whether what is in `folder` was begun for just this."""
    try:
        return bool(json.loads((folder / _ABOUT).read_text(encoding="utf-8")) == about)
    except (OSError, ValueError):
        return False


def _refuse_zero_bytes(source: str, parts: dict[str, Split]) -> None:
    """`DataError` for a text with what stands between two texts in the index, which could not be read again."""
    for part in parts.values():
        for name, texts in (("path", part.paths), ("label", part.classes), *part.columns.items()):
            if (text := next((each for each in texts if "\0" in each), None)) is not None:
                raise DataError(
                    f"{source}: expected text as {name}, found a byte of zero in {text!r}; correct it, or leave it out"
                )


def _refuse_inside(source: str, folder: Path) -> None:
    """A source that is written into would be another one afterwards."""
    if Path(source).is_dir() and (os.path.realpath(folder) + os.sep).startswith(
        os.path.realpath(source) + os.sep
    ):
        raise UsageError(f"{folder}: expected a folder outside of {source}; choose another")


def _ignore(*_: object) -> None:
    """Nobody is told."""
