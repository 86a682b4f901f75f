"""Images in files: read from where they were kept when they were decoded, else decoded again whenever they are needed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from visus.data.archives import Archive
from visus.data.cache import Cache, Stamps
from visus.data.decode import DecodeSettings, Pixels, UndecodableError
from visus.data.decoder import Decoder
from visus.data.images import Data, Images
from visus.data.isolated import Decoders, Watch, decode_here, decode_in_order
from visus.data.names import take
from visus.data.stored import DamagedCacheError, Index, StoredImages
from visus.errors import DataError, UsageError

# A `Path` for each of a million files takes longer than to ask the system about it.
_join, _stat = os.path.join, os.stat


@dataclass(frozen=True)
class Keeping:
    """Where `batches` is to keep what it decodes, and with how many processes."""

    cache: Cache = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.cache not in get_args(Cache):
            raise UsageError(f"expected {', '.join(get_args(Cache))} as the cache, found {self.cache!r}")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"expected 0 workers or more, found {self.workers}")


@dataclass(frozen=True)
class FileImages:
    """Image files under `root` or in `archive`, shrunk to short side `resize`; `decoded` has their pixels where they were kept."""

    root: Path
    paths: Sequence[str]
    channels: int = 3
    """3 (RGB), or 1 to read them as grey."""
    resize: int | None = None
    interpolation: str = "bilinear"
    max_pixels: int = 100_000_000
    decoded: StoredImages | None = None
    archive: Archive | None = None
    table: Path | None = None
    """What lists the files, where that is not their folder."""
    keeping: Keeping = Keeping()
    decoders: Decoders = field(default_factory=Decoders, compare=False, repr=False)
    """Where those are decoded that were not kept, while somebody trains on them."""

    seen: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What `batches` has found out about these very images."""

    @property
    def identity(self) -> str:
        """What names their source to the cache."""
        return self.archive.identity if self.archive else os.path.realpath(self.table or self.root)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width where all decoded images share them."""
        return None if self.decoded is None else self.decoded.size

    @property
    def settings(self) -> DecodeSettings:
        """How they are decoded."""
        return DecodeSettings(self.channels, self.resize, self.interpolation, self.max_pixels)

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, positions: Index) -> FileImages:
        """The images at `positions`, in that order."""
        decoded = None if self.decoded is None else self.decoded.subset(positions)
        return replace(self, paths=take(self.paths, positions), decoded=decoded, seen={})

    def read(self, position: int) -> Pixels:
        """One image, uint8 `[channels, H, W]`, decoded in this process.

        `DataError` for a file that cannot be used, or not any more.
        """
        if self.decoded is not None:
            # The same pixels can still be had from the file itself.
            with contextlib.suppress(DamagedCacheError):
                return self.decoded[position]
        try:
            return decode_here(position, self.source, self.settings)
        except UndecodableError as error:
            raise self._unusable(position, error) from None

    def read_apart(self, positions: Sequence[int]) -> list[Pixels]:
        """As `read` for each, decoded in a process that may die of it."""
        found = self.decoders.decode_all(positions, self.source, self.settings)
        for position, each in zip(positions, found, strict=True):
            if isinstance(each, UndecodableError):
                raise self._unusable(position, each)
        return cast("list[Pixels]", found)

    def _unusable(self, position: int, error: UndecodableError) -> DataError:
        return DataError(
            f"{self._where(position)}: expected an image, found that it cannot be used ({error}); remove it or copy it again"
        )

    def _where(self, position: int) -> str:
        path = self.paths[position]
        return f"{self.archive.identity}, {path}" if self.archive else str(self.root / path)

    def source(self, position: int) -> str | bytes:
        """Where one image is: the path of its file, or its bytes. `UndecodableError` where it is damaged in its archive."""
        path = self.paths[position]
        return self.archive.read(path, self._limit_bytes) if self.archive else _join(self.root, path)

    @property
    def _limit_bytes(self) -> int:
        # Eight bytes for a pixel are 16-bit RGBA without compression: nothing within `max_pixels` is longer, but for its metadata.
        return 8 * self.max_pixels + 2**20

    def sizes_bytes(self) -> Index:
        """How long each file is; -1 where there is none."""
        if self.archive:
            return self.archive.sizes_bytes(self.paths)
        size = partial(_size_bytes, os.fspath(self.root))
        return np.fromiter(map(size, self.paths), dtype=np.int64, count=len(self))

    def stamps(self) -> tuple[Stamps, dict[int, str]]:
        """What tells whether each file is still the same; and by their positions those that cannot be read, and why."""
        if self.archive:
            return Stamps(self.archive.sizes_bytes(self.paths), self.archive.times(self.paths)), {}
        sizes, times = np.full(len(self), -1, dtype=np.int64), np.full(len(self), -1, dtype=np.int64)
        unreadable: dict[int, str] = {}
        root = os.fspath(self.root)
        for position, name in enumerate(self.paths):
            path = _join(root, name)
            try:
                status = _stat(path)
            except (OSError, ValueError) as error:
                unreadable[position] = getattr(error, "strerror", None) or str(error)
                continue
            sizes[position], times[position] = status.st_size, status.st_mtime_ns
            if not os.access(path, os.R_OK):
                unreadable[position] = os.strerror(errno.EACCES)
        return Stamps(sizes, times), unreadable


def decode_all(
    images: FileImages, workers: int | None = None, watch: Watch | None = None
) -> Generator[Pixels | UndecodableError, None, None]:
    """The images in order, each decoded in a child process, or why it cannot be; for `watch` see `decode_in_order`."""
    return decode_in_order(len(images), images.source, images.settings, workers, watch)


def with_keeping(data: Data, keeping: Keeping) -> Data:
    """`data`, whose files `batches` keeps in this way."""
    parts = {name: getattr(data, name) for name in ("train", "val", "test")}
    kept = {
        name: replace(part, images=replace(part.images, keeping=keeping, seen={}))
        for name, part in parts.items()
        if part and isinstance(part.images, FileImages)
    }
    return replace(data, **kept)


def cache_in_use(images: Images) -> Literal["ram", "disk", "off"]:
    """Where decoded images are."""
    if not isinstance(images, FileImages):
        return "ram"
    return "off" if images.decoded is None else "ram" if images.decoded.path is None else "disk"


def small_size(images: Images, largest: int) -> tuple[int, int] | None:
    """Height and width of image files that all share them, if these are at most `largest`, by their headers alone."""
    if not isinstance(images, FileImages):
        return None
    shared = None
    with Decoder(images.settings) as decoder:
        for position in range(len(images)):
            try:
                size = decoder.size(images.source(position))
            except UndecodableError:
                continue
            if max(size) > largest or shared not in (None, size):
                return None
            shared = size
    return shared


def _size_bytes(root: str, name: str) -> int:
    try:
        return _stat(_join(root, name)).st_size
    # A name with a byte of zero in it.
    except (OSError, ValueError):
        return -1
