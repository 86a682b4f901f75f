"""The decode-once cache: decoded images in a file that is mapped into memory and serves later runs.

There is one such file for each source and way of decoding, in `visus/images` under the user's cache folder: pixels, then an index,
then what it is about, then a footer of fixed length, so that a file that was cut off has none. It grows by the same four, of which
the last ones count. `docs/cache.md` describes it.
Nothing here loads torch.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

import filelock
import numpy as np
import numpy.typing as npt

from visus.data.decode import WAY, DecodeSettings, Pixels, flat
from visus.data.names import NamesBuilder, find_names, read_names, separated, take
from visus.data.stored import DamagedCacheError, Index, StoredImages, lock_path, map_images
from visus.errors import UsageError
from visus.files import replacing, sync, write_text

_MAGIC = b"visus images 2\r\n"
_FOOTER = struct.Struct("<QQQI16s")
"""Where the index begins; the lengths of the index and of what the file is about; the CRC-32 of both; the magic."""
_ENOUGH = 100
"""Images that tell how long all of them will be."""
_SUFFIX = ".images"

Cache = Literal["auto", "ram", "disk", "off"]


@dataclass(frozen=True)
class Stamps:
    """What tells that a file is as it was: `[N]` bytes, and `[N]` when it was last written, in ns."""

    sizes: Index
    times: Index

    def subset(self, positions: Index) -> Stamps:
        """Those at `positions`."""
        return Stamps(self.sizes[positions], self.times[positions])


@dataclass(frozen=True)
class Entries:
    """What a cache file holds: names of images, stamps of their files, and for each pixels or a reason why there are none."""

    names: Sequence[str]
    stamps: Stamps
    images: StoredImages
    """Of those that could be decoded, in order."""
    places: Index
    """`[N]`: which of `images` each is; -1 where it could not be decoded."""
    reasons: dict[str, str]
    file_bytes: int
    """How long the file is with all of these; what lies behind was never completed."""

    def find(self, names: Sequence[str], stamps: Stamps) -> Index:
        """Where each of `names` is here, if its file is as it was; else -1."""
        if not len(self.names):
            return np.full(len(names), -1)
        places = np.arange(len(names)) if self.names == names else find_names(self.names, names)
        same = (
            (places >= 0)
            & (self.stamps.sizes[places] == stamps.sizes)
            & (self.stamps.times[places] == stamps.times)
        )
        return np.where(same, places, -1)

    def subset(self, positions: Index) -> Entries:
        """Those at `positions`, in that order; the same pixels."""
        names, places = take(self.names, positions), self.places[positions]
        good = places >= 0
        refused = {name: self.reasons[name] for name in take(names, np.flatnonzero(~good))}
        images = self.images.subset(places[good])
        return Entries(names, self.stamps.subset(positions), images, _ranks(good), refused, self.file_bytes)


class CacheWriter:
    """Writes a cache file from `begin` to its end: about `expected` images, in files of `expected_bytes` together."""

    def __init__(
        self, file: IO[bytes], limit_bytes: int, expected: int, expected_bytes: int, begin: int = 0
    ) -> None:
        self._file = file
        self._limit_bytes = limit_bytes
        self._expected = expected, expected_bytes
        self.begin = self._end = begin
        self.count = 0
        """Images that were added."""
        self._names = NamesBuilder()
        self._file_bytes = 0
        self._reasons: dict[str, str] = {}
        # One row each, in plain arrays: position, height, width, CRC, size and time of the file, and rank.
        self._rows = _Rows(7)

    def keep(self, entries: Entries, ranks: Index) -> None:
        """What `entries` say, whose pixels are in this file already; `ranks` are as for `add`."""
        images, bad = entries.images, entries.places < 0
        rows = np.zeros((len(entries.names), 7), dtype=np.int64)
        rows[bad, 0] = -1
        if images.crcs is not None:
            rows[~bad, :3], rows[~bad, 3] = images.places[:, 1:], images.crcs
        rows[:, 4], rows[:, 5], rows[:, 6] = entries.stamps.sizes, entries.stamps.times, ranks
        self._names.add(entries.names)
        self._rows.extend(rows)
        self._reasons |= entries.reasons

    def add(self, rank: int, name: str, size: int, time: int, result: Pixels | str) -> None:
        """The next image, or why it is none; the index lists it by its rank.

        `OverflowError` where the pixels get longer than they may, as soon as that shows.
        """
        self._names.add([name])
        self.count += 1
        self._file_bytes += size
        if isinstance(result, str):
            self._reasons[name] = result
            return self._rows.add(-1, 0, 0, 0, size, time, rank)
        if (self._end - self.begin + result.nbytes) * self._share() > self._limit_bytes:
            raise OverflowError
        content = flat(result).data
        self._file.write(content)
        self._rows.add(self._end, *result.shape[1:], zlib.crc32(content), size, time, rank)
        self._end += result.nbytes
        return None

    def _share(self) -> float:
        """How much longer all will be than what is there, at least: files come class by class, and classes may differ in size."""
        if self.count < _ENOUGH:
            return 1.0
        count, file_bytes = self._expected
        return max(1.0, min(count / self.count, file_bytes / max(1, self._file_bytes)))

    def finish(self, about: dict[str, Any]) -> None:
        """The index, what the file is `about`, and the footer."""
        rows = self._rows.table()
        order = np.argsort(rows[:, 6], kind="stable")
        rows, listed = rows[order, :6], take(self._names.finish(), order)
        names = np.frombuffer(b"".join(separated(listed)), np.uint8)
        reasons = json.dumps(self._reasons)
        buffer = io.BytesIO()
        np.savez(buffer, rows=rows, names=names, reasons=_as_bytes(reasons))
        index, images = buffer.getvalue(), int((rows[:, 0] >= 0).sum())
        described = json.dumps({**about, "images": images}).encode()
        crc = zlib.crc32(described, zlib.crc32(index))
        self._file.write(index)
        self._file.write(described)
        self._file.write(_FOOTER.pack(self._end, len(index), len(described), crc, _MAGIC))


class _Rows:
    """A table of whole numbers that grows by rows, without a Python object for each."""

    def __init__(self, columns: int) -> None:
        self._table = np.empty((1024, columns), dtype=np.int64)
        self._count = 0

    def add(self, *values: int) -> None:
        if self._count == len(self._table):
            self._table = np.concatenate([self._table, np.empty_like(self._table)])
        self._table[self._count] = values
        self._count += 1

    def extend(self, rows: Index) -> None:
        self._table = np.concatenate([self.table(), rows, np.empty_like(self._table)])
        self._count += len(rows)

    def table(self) -> Index:
        return self._table[: self._count]


def read_cache(path: Path, channels: int) -> Entries:
    """What is in a cache file, pixels not checked yet; `DamagedCacheError` where it is not whole, `OSError` where there is none."""
    length, end, index = _read_index(path)
    try:
        with np.load(io.BytesIO(index), allow_pickle=False) as arrays:
            rows, names, reasons = arrays["rows"], arrays["names"], arrays["reasons"]
        listed = read_names(names.tobytes()) if len(rows) else ()
        why: dict[str, str] = json.loads(reasons.tobytes())
    except Exception:
        _refuse()
    good = rows[:, 0] >= 0
    placed = np.concatenate([np.zeros((good.sum(), 1), np.int64), rows[good, :3]], axis=1)
    images = map_images(path, channels, placed, rows[good, 3].astype(np.uint32), end or None)
    return Entries(listed, Stamps(rows[:, 4], rows[:, 5]), images, _ranks(good), why, length)


def _ranks(good: npt.NDArray[np.bool_]) -> Index:
    """Which of those that are `good` each is; -1 for the others."""
    return np.where(good, np.cumsum(good) - 1, -1)


def _read_index(path: Path) -> tuple[int, int, bytes]:
    """The last index that is whole: how long the file was with it, where it begins, and itself."""
    with path.open("rb") as file:
        for length, end, index_bytes, about_bytes, crc in _footers(file, path):
            file.seek(end)
            index, about = file.read(index_bytes), file.read(about_bytes)
            if zlib.crc32(about, zlib.crc32(index)) == crc:
                return length, end, index
    _refuse()


def _footers(file: IO[bytes], path: Path) -> Iterator[tuple[int, int, int, int, int]]:
    """The last one, and the one before it where the file grew and that was not completed: where it ends, and what it says."""
    for length in _lengths(path):
        with contextlib.suppress(DamagedCacheError):
            yield length, *_read_footer(file, length)


def _lengths(path: Path) -> Iterator[int]:
    """How long the file is; and how long it was before it grew, where that was not completed."""
    length = path.stat().st_size
    yield length
    with contextlib.suppress(OSError, ValueError):
        before = int(_whole_path(path).read_text())
        if 0 <= before < length:
            yield before


def _read_footer(file: IO[bytes], length: int) -> tuple[int, int, int, int]:
    """Where the index begins, how long it and what follows are, and their CRC-32."""
    if length < _FOOTER.size:
        _refuse()
    file.seek(length - _FOOTER.size)
    end, index_bytes, about_bytes, crc, magic = _FOOTER.unpack(file.read(_FOOTER.size))
    if magic != _MAGIC or end + index_bytes + about_bytes + _FOOTER.size != length:
        _refuse()
    return end, index_bytes, about_bytes, crc


def _refuse() -> NoReturn:
    raise DamagedCacheError


def _as_bytes(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(os.fsencode(text), dtype=np.uint8)


def cache_folder() -> Path:
    """Where the caches of this user are; it need not exist. `OSError` where the user has no folder at all."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "visus" / "images"
    except RuntimeError as error:
        raise OSError(str(error)) from None


def counts_folder() -> Path:
    """Where what was counted of cached images is; it need not exist."""
    return cache_folder().parent / "counts"


def describe_source(source: str, settings: DecodeSettings) -> dict[str, Any]:
    """What a cache of `source` is about: it serves whoever asks for just this. Another Pillow or torch may give other pixels."""
    versions = {name: version(name) for name in ("pillow", "torch")}
    return {"source": source, **versions, "way": WAY, **asdict(settings)}


def cache_path(about: dict[str, Any]) -> Path:
    """The file for what `describe_source` says."""
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / (key + _SUFFIX)


def room_bytes(folder: Path) -> int:
    """How much a cache in `folder` may take: half of what is free on its disk."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return shutil.disk_usage(there).free // 2


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of the cache file `path`; `on_wait` is called if another process has it. `OSError` where there can be none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(lock_path(path))
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        on_wait()
        lock.acquire()
    except NotImplementedError as error:
        raise OSError(str(error)) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def writing_cache(
    path: Path, limit_bytes: int, expected: tuple[int, int], about: dict[str, Any]
) -> Iterator[CacheWriter]:
    """A writer of about so many images, in files of so many bytes, whose file takes the place of `path` in one step once all is
    written.

    Called under the lock. The file may have `limit_bytes` of pixels.
    """
    _clear(path)
    # What a power cut leaves of it is known by its checksums.
    with replacing(path, durable=False) as temporary, temporary.open("wb") as file:
        writer = CacheWriter(file, limit_bytes, *expected)
        yield writer
        writer.finish(about)
    _whole_path(path).unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """What processes left that were killed as they wrote goes: whoever has the lock writes now."""
    for left in _unfinished(path):
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def growing_cache(
    path: Path, whole: int, limit_bytes: int, expected: tuple[int, int], about: dict[str, Any]
) -> Iterator[CacheWriter]:
    """A writer as `writing_cache` gives it, but behind what is in the file already, of which nothing changes.

    Whoever has it mapped goes on. `whole`, which is `file_bytes` of the entries that it had, is kept beside it until all is on the
    disk: then a process may be killed at any moment. Called under the lock.
    """
    _clear(path)
    before, end = path.stat().st_size, 0
    write_text(_whole_path(path), str(whole))
    completed = False
    try:
        with path.open("ab") as file:
            writer = CacheWriter(file, limit_bytes, *expected, begin=before)
            try:
                yield writer
                if writer.count:
                    writer.finish(about)
            finally:
                end = file.tell()
        sync(path)
        completed = writer.count > 0
    finally:
        # What another left unfinished is still there, and not to be believed, unless all is behind it now.
        if completed or (_cut(path, before, end) and whole == before):
            _whole_path(path).unlink(missing_ok=True)


def _cut(path: Path, length: int, end: int) -> bool:
    """Make the file `length` long again, unless others wrote behind `end`, whom no lock kept away; whether it is."""
    with contextlib.suppress(OSError):
        if length < path.stat().st_size <= end:
            os.truncate(path, length)
        return path.stat().st_size == length
    return False


@dataclass(frozen=True)
class CacheFile:
    """One file of the decode-once cache."""

    path: str
    source: str | None
    """`None` where the file is damaged."""
    images: int
    size_bytes: int
    last_used: datetime.datetime
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain values; the time in ISO 8601, the size in MiB."""
        return {
            "path": self.path,
            "source": self.source,
            "images": self.images,
            "size_mb": round(self.size_bytes / 2**20, 3),
            "last_used": self.last_used.isoformat(timespec="seconds"),
            "settings": self.settings,
        }

    def __str__(self) -> str:
        used = f"{self.size_bytes / 2**20:.1f} MB, used {self.last_used:%Y-%m-%d %H:%M}"
        if self.source is None:
            return f"{self.path}: damaged, {used}"
        side = self.settings.get("resize")
        size = f"short side {side} ({self.settings.get('interpolation')})" if side else "full size"
        kind = "grey" if self.settings.get("channels") == 1 else "RGB"
        return f"{self.source}: {self.images} images, {kind}, {size}, {used}"


def list_caches() -> list[CacheFile]:
    """The files of the decode-once cache, the one used last first."""
    folder = cache_folder()
    found = [_describe(path) for path in folder.glob(f"*{_SUFFIX}")] if folder.is_dir() else []
    return sorted((each for each in found if each), key=lambda each: each.last_used, reverse=True)


def remove_caches(source: str) -> tuple[list[CacheFile], list[CacheFile]]:
    """Remove the caches of `source` (a path, or `all`): those removed, and those left because they are being written.

    `UsageError` for a source that has none.
    """
    named = {source, os.path.realpath(source)}
    wanted = [each for each in list_caches() if source == "all" or each.source in named]
    if not wanted and source != "all":
        raise UsageError(f"{source}: no decoded images of it are kept; see visus cache ls")
    removed = [each for each in wanted if _remove(Path(each.path))]
    if source == "all" and cache_folder().is_dir():
        for lock in cache_folder().glob(f"*{_SUFFIX}.lock"):
            _remove(lock.with_suffix(""))
        shutil.rmtree(counts_folder(), ignore_errors=True)
    return removed, [each for each in wanted if each not in removed]


def mark_used(path: Path) -> None:
    """Note the time, for `list_caches`."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _describe(path: Path) -> CacheFile | None:
    """`None` for one that has just been removed."""
    try:
        status = path.stat()
        with path.open("rb") as file:
            _, end, index_bytes, about_bytes, _ = next(_footers(file, path))
            file.seek(end + index_bytes)
            about = json.loads(file.read(about_bytes))
        source, images = str(about.pop("source")), int(about.pop("images"))
    except OSError:
        return None
    except (StopIteration, ValueError, KeyError, AttributeError, TypeError):
        source, images, about = None, 0, {}
    used = datetime.datetime.fromtimestamp(status.st_mtime).astimezone()
    return CacheFile(str(path), source, images, status.st_size, used, about)


def _remove(path: Path) -> bool:
    """Whether the file could be removed: not while it is written. A run that uses it keeps what it has mapped."""
    lock = filelock.FileLock(lock_path(path))
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return False
    try:
        for each in (path, *_unfinished(path), _whole_path(path), lock_path(path)):
            each.unlink(missing_ok=True)
    finally:
        lock.release()
    return True


def _whole_path(path: Path) -> Path:
    """Where the length is that the file had when it was last whole, while it grows."""
    return path.with_name(f"{path.name}.whole")


def _unfinished(path: Path) -> Iterator[Path]:
    return path.parent.glob(f".{path.name}.*.tmp")
