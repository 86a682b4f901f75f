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

from visus.data.decode import Pixels, UndecodableError, decode_image
from visus.data.images import Data, Skipped, Split
from visus.errors import DataError

_WINDOW = 64
"""Images in flight while decoding, so that memory stays bounded."""


@dataclass(frozen=True)
class FileImages:
    """Image files under `root`, as RGB, shrunk to short side `resize`; `decoded` holds their pixels where they fit in memory."""

    root: Path
    paths: Sequence[str]
    resize: int | None = None
    interpolation: str = "bilinear"
    max_pixels: int = 100_000_000
    decoded: Sequence[Pixels] | None = None

    @property
    def channels(self) -> int:
        """3: files are always taken as RGB."""
        return 3

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
        """One image, uint8 `[3, H, W]`; raises `UndecodableError`."""
        if self.decoded is not None:
            return self.decoded[position]
        return decode_image(
            self.root / self.paths[position],
            resize=self.resize,
            interpolation=self.interpolation,
            max_pixels=self.max_pixels,
        )


def decode_once(
    data: Data,
    *,
    resize: int | None,
    interpolation: str = "bilinear",
    max_bad: float = 0.01,
    max_pixels: int = 100_000_000,
    memory_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> Data:
    """`data` with every file decoded once: bad ones left out and listed, pixels kept while they take at most `memory_bytes`.

    Parts that are arrays stay as they are. More than `max_bad` of the set bad, or a class without an image left, is a `DataError`.
    `progress(done, total)` is called now and then.
    """
    every = {name: getattr(data, name) for name in ("train", "val", "test")}
    parts = {name: part for name, part in every.items() if part and isinstance(part.images, FileImages)}
    if not parts:
        return data
    total = sum(len(part) for part in parts.values())
    done, free = 0, memory_bytes
    skipped: list[Skipped] = []
    for name, part in parts.items():
        assert isinstance(part.images, FileImages)
        images = replace(part.images, resize=resize, interpolation=interpolation, max_pixels=max_pixels)
        kept: list[Pixels] | None = [] if free > 0 else None
        good: list[int] = []
        for position, result in enumerate(_decode_all(images)):
            if isinstance(result, UndecodableError):
                skipped.append(Skipped(part.paths[position], str(result)))
            else:
                good.append(position)
                free -= result.nbytes
                kept = _keep(kept, result, free)
            done += 1
            if progress and (done % _WINDOW == 0 or done == total):
                progress(done, total)
        whole = replace(part, images=images).subset(np.array(good, dtype=np.int64))
        parts[name] = replace(whole, images=replace(whole.images, decoded=kept))
    _refuse_too_many(skipped, total, max_bad, data.source)
    if "train" in parts:
        _refuse_lost_classes(parts["train"], data)
    return replace(data, **parts, skipped=(*data.skipped, *skipped))


def _keep(kept: list[Pixels] | None, pixels: Pixels, free: int) -> list[Pixels] | None:
    """`kept` with `pixels` added; nothing at all once memory is used up."""
    if kept is None or free < 0:
        return None
    kept.append(pixels)
    return kept


def _decode_all(images: FileImages) -> Iterator[Pixels | UndecodableError]:
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


def _refuse_lost_classes(train: Split, data: Data) -> None:
    counts = np.bincount(train.labels, minlength=len(data.classes))
    if lost := [name for name, count in zip(data.classes, counts, strict=True) if not count]:
        raise DataError(
            f"{data.source}: expected training images of every class, found none that can be used of {', '.join(lost)}"
        )
