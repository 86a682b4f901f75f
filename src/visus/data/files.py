"""Images in files: decoded once, kept in memory where they fit, else decoded again whenever they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visus.data.archives import ZipArchive
from visus.data.arrays import adapt_pixels
from visus.data.decode import Pixels, UndecodableError, decode_image, read_size
from visus.data.images import ArrayImages, Data, Images, Skipped, Split
from visus.errors import DataError

_WINDOW = 64
"""Images in flight while decoding, so that memory stays bounded."""


@dataclass(frozen=True)
class FileImages:
    """Image files under `root` or in `archive`, shrunk to short side `resize`; `decoded` has their pixels if they fit in memory."""

    root: Path
    paths: Sequence[str]
    channels: int = 3
    """3 (RGB), or 1 to read them as grey."""
    resize: int | None = None
    interpolation: str = "bilinear"
    max_pixels: int = 100_000_000
    decoded: Sequence[Pixels] | None = None
    archive: ZipArchive | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width where all decoded images share them."""
        sizes = {pixels.shape[1:] for pixels in self.decoded or ()}
        return sizes.pop() if len(sizes) == 1 else None

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, positions: npt.NDArray[np.int64]) -> FileImages:
        """The images at `positions`, in that order."""
        decoded = None if self.decoded is None else [self.decoded[position] for position in positions]
        return replace(self, paths=[self.paths[position] for position in positions], decoded=decoded)

    def read(self, position: int) -> Pixels:
        """One image, uint8 `[channels, H, W]`; raises `UndecodableError`."""
        if self.decoded is not None:
            return self.decoded[position]
        path = self.paths[position]
        return decode_image(
            self.archive.read(path, self._limit_bytes) if self.archive else self.root / path,
            channels=self.channels,
            resize=self.resize,
            interpolation=self.interpolation,
            max_pixels=self.max_pixels,
        )

    def header_size(self, position: int) -> tuple[int, int] | None:
        """Height and width of one image by its header; `None` where it has none."""
        path = self.paths[position]
        try:
            return read_size(self.archive.read(path, self._limit_bytes) if self.archive else self.root / path)
        except UndecodableError:
            return None

    @property
    def _limit_bytes(self) -> int:
        # Eight bytes for a pixel are 16-bit RGBA without compression: nothing within `max_pixels` is longer, but for its metadata.
        return 8 * self.max_pixels + 2**20

    def sizes_bytes(self) -> list[int]:
        """How long each file is; -1 where there is none."""
        if self.archive:
            return [self.archive.size_bytes(path) for path in self.paths]
        return [_size_bytes(self.root / path) for path in self.paths]


def decode_once(
    data: Data,
    *,
    channels: int = 3,
    resize: int | None,
    interpolation: str = "bilinear",
    max_bad: float = 0.01,
    max_pixels: int = 100_000_000,
    memory_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> Data:
    """`data` with every file decoded once: bad ones left out and listed, pixels kept while they take at most `memory_bytes`.

    Arrays get their channels and their size in the same way. More than `max_bad` of the set bad, or a class without an image left
    to train on, is a `DataError`. `progress(done, total)` is called now and then.
    """
    every = {name: getattr(data, name) for name in ("train", "val", "test")}
    parts = {name: part for name, part in every.items() if part and isinstance(part.images, FileImages)}
    total = sum(map(len, parts.values()))
    done = 0
    skipped: list[Skipped] = []

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done, total)

    for name, part in parts.items():
        assert isinstance(part.images, FileImages)
        images = replace(
            part.images, channels=channels, resize=resize, interpolation=interpolation, max_pixels=max_pixels
        )
        parts[name], bad, memory_bytes = _decode_part(part, images, memory_bytes, count)
        skipped += bad
    for name, part in every.items():
        if part and isinstance(part.images, ArrayImages):
            pixels = adapt_pixels(part.images.pixels, channels, resize, interpolation)
            parts[name] = replace(part, images=ArrayImages(pixels))
    _refuse_too_many(skipped, total, max_bad, data.source)
    if "train" in parts and skipped:
        _refuse_lost_classes(every["train"], parts["train"], data.source)
    return replace(data, **parts, skipped=(*data.skipped, *skipped))


def _decode_part(
    part: Split, images: FileImages, memory_bytes: int, count: Callable[[int], None]
) -> tuple[Split, list[Skipped], int]:
    """`part` with those of `images` that are whole, the others, and how much memory is left."""
    kept: list[Pixels] | None = [] if memory_bytes > 0 else None
    good: list[int] = []
    bad: list[Skipped] = []
    for position, result in enumerate(decode_all(images)):
        if isinstance(result, UndecodableError):
            bad.append(Skipped(part.paths[position], str(result)))
        else:
            good.append(position)
            memory_bytes -= result.nbytes
            kept = _keep(kept, result, memory_bytes)
        if (position + 1) % _WINDOW == 0:
            count(_WINDOW)
    count(len(images) % _WINDOW)
    positions = np.array(good, dtype=np.int64)
    whole = replace(images.subset(positions), decoded=kept)
    return replace(part.subset(positions), images=whole), bad, memory_bytes


def _keep(kept: list[Pixels] | None, pixels: Pixels, free: int) -> list[Pixels] | None:
    """`kept` with `pixels` added; nothing at all once memory is used up."""
    if kept is None or free < 0:
        return None
    kept.append(pixels)
    return kept


def decode_all(images: FileImages) -> Iterator[Pixels | UndecodableError]:
    """The images in order, decoded by as many threads as there are processors (Pillow lets go of the interpreter's lock)."""

    def attempt(position: int) -> Pixels | UndecodableError:
        try:
            return images.read(position)
        except UndecodableError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        positions = iter(range(len(images)))
        waiting = [pool.submit(attempt, position) for position in islice(positions, _WINDOW)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(attempt, position) for position in islice(positions, 1)]


def _refuse_too_many(skipped: list[Skipped], total: int, max_bad: float, source: str) -> None:
    if len(skipped) > max_bad * total:
        first = "; ".join(f"{each.path}: {each.reason}" for each in skipped[:3])
        raise DataError(
            f"{source}: {len(skipped)} of {total} files are no images that can be used, more than --max-bad {max_bad:g} allows "
            f"({first}{'; ...' if len(skipped) > 3 else ''}); remove them or copy them again"
        )


def _refuse_lost_classes(before: Split, after: Split, source: str) -> None:
    counts = [np.bincount(part.labels, minlength=len(part.classes)) for part in (before, after)]
    if lost := [name for name, had, has in zip(before.classes, *counts, strict=True) if had and not has]:
        raise DataError(
            f"{source}: expected training images of every class, found none that can be used of {', '.join(lost)}"
        )


def small_size(images: Images, largest: int) -> tuple[int, int] | None:
    """Height and width of image files that all share them, if these are at most `largest`, by their headers alone."""
    if not isinstance(images, FileImages):
        return None
    shared = None
    for position in range(len(images)):
        size = images.header_size(position)
        if size is not None and (max(size) > largest or shared not in (None, size)):
            return None
        shared = size or shared
    return shared


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
