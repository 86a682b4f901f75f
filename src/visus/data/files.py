"""Images in files: read from where they were kept when they were decoded, else decoded again whenever they are needed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from visus.data.archives import Archive
from visus.data.cache import DamagedCacheError, Index, Stamps, StoredImages
from visus.data.decode import Pixels, UndecodableError, decode_image
from visus.data.images import Images
from visus.data.isolated import Decoder, DecodeSettings, decode_in_order
from visus.errors import DataError


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
        return replace(self, paths=[self.paths[position] for position in positions], decoded=decoded)

    def read(self, position: int) -> Pixels:
        """One image, uint8 `[channels, H, W]`; `DataError` for a file that cannot be used, or not any more."""
        if self.decoded is not None:
            # The same pixels can still be had from the file itself.
            with contextlib.suppress(DamagedCacheError):
                return self.decoded[position]
        try:
            return decode_image(self.source(position), **vars(self.settings))
        except UndecodableError as error:
            raise DataError(
                f"{self._where(position)}: expected an image, found that it cannot be used ({error}); "
                "remove it or copy it again"
            ) from None

    def _where(self, position: int) -> str:
        path = self.paths[position]
        return f"{self.archive.identity}, {path}" if self.archive else str(self.root / path)

    def source(self, position: int) -> str | bytes:
        """Where one image is: the path of its file, or its bytes. `UndecodableError` where it is damaged in its archive."""
        path = self.paths[position]
        return self.archive.read(path, self._limit_bytes) if self.archive else str(self.root / path)

    @property
    def _limit_bytes(self) -> int:
        # Eight bytes for a pixel are 16-bit RGBA without compression: nothing within `max_pixels` is longer, but for its metadata.
        return 8 * self.max_pixels + 2**20

    def sizes_bytes(self) -> list[int]:
        """How long each file is; -1 where there is none."""
        if self.archive:
            return list(map(int, self.archive.sizes_bytes(self.paths)))
        return [_size_bytes(self.root / path) for path in self.paths]

    def stamps(self) -> tuple[Stamps, dict[int, str]]:
        """What tells whether each file is still the same; and by their positions those that cannot be read, and why."""
        if self.archive:
            return Stamps(self.archive.sizes_bytes(self.paths), self.archive.times(self.paths)), {}
        sizes, times = np.full(len(self), -1, dtype=np.int64), np.full(len(self), -1, dtype=np.int64)
        unreadable: dict[int, str] = {}
        for position, name in enumerate(self.paths):
            path = self.root / name
            try:
                status = path.stat()
            except (OSError, ValueError) as error:
                unreadable[position] = getattr(error, "strerror", None) or str(error)
                continue
            sizes[position], times[position] = status.st_size, status.st_mtime_ns
            if not os.access(path, os.R_OK):
                unreadable[position] = os.strerror(errno.EACCES)
        return Stamps(sizes, times), unreadable


def decode_all(
    images: FileImages, workers: int | None = None
) -> Generator[Pixels | UndecodableError, None, None]:
    """The images in order, each decoded in a child process, or why it cannot be."""
    return decode_in_order(len(images), images.source, images.settings, workers)


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


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
