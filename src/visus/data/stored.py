"""Decoded images one after the other, in blocks of memory or in a file that is mapped into it. Nothing here loads torch."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import filelock
import numpy as np
import numpy.typing as npt

from visus.data.decode import Pixels, flat

_BLOCK_BYTES = 64 * 2**20

Index = npt.NDArray[np.int64]


class DamagedCacheError(Exception):
    """A cache file, or an image in it, is not as it was written."""


@dataclass(frozen=True)
class StoredImages:
    """Decoded images, `[H, W, C]` one after the other in `blocks` of bytes. Read in order of their positions, or any other."""

    channels: int
    blocks: Sequence[npt.NDArray[np.uint8]]
    places: Index
    """`[N, 4]`: block, first byte in it, height and width of each image."""
    crcs: npt.NDArray[np.uint32] | None = None
    """`[N]`, CRC-32 of the pixels of each image in a file."""
    checked: npt.NDArray[np.bool_] | None = None
    """`[N]`, whether the pixels were compared with their CRC since the file was mapped."""
    path: Path | None = None
    """The file, where that is where they are."""

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Pixels]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> Pixels:
        """One image, `[channels, H, W]`, as `decode_image` gives it; `DamagedCacheError` where the file has changed under it."""
        block, first, height, width = map(int, self.places[position])
        pixels = self.blocks[block][first : first + self.channels * height * width]
        if self.crcs is not None and self.checked is not None:
            if not self.checked[position] and zlib.crc32(pixels.data) != self.crcs[position]:
                self._give_up_file()
            self.checked[position] = True
            # Torch warns of memory that cannot be written.
            pixels = np.array(pixels)
        return pixels.reshape(height, width, self.channels).transpose(2, 0, 1)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Of images in a file another process gets the path, and maps it for itself."""
        if self.path is None:
            return super().__reduce__()
        return map_images, (self.path, self.channels, self.places, self.crcs)

    def subset(self, positions: Index) -> StoredImages:
        """The images at `positions`, in that order; the same memory."""
        crcs = None if self.crcs is None else self.crcs[positions]
        checked = None if self.checked is None else self.checked[positions]
        return StoredImages(self.channels, self.blocks, self.places[positions], crcs, checked, self.path)

    def checksums(self) -> npt.NDArray[np.uint32]:
        """CRC-32 of the pixels of each image, `[N]`; those in a file are known without reading them."""
        if self.crcs is not None:
            return self.crcs
        return np.fromiter((zlib.crc32(flat(pixels).data) for pixels in self), np.uint32, len(self))

    def _give_up_file(self) -> NoReturn:
        """The next run shall decode again; this one goes on with what is whole.

        Whoever writes to the file now meets the same image later.
        """
        if self.path is not None:
            lock = filelock.FileLock(lock_path(self.path))
            with (
                contextlib.suppress(OSError, filelock.Timeout, NotImplementedError),
                lock.acquire(blocking=False),
            ):
                self.path.unlink()
        raise DamagedCacheError

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, where all images share them."""
        sizes = self.places[:, 2:]
        same = len(sizes) > 0 and bool((sizes == sizes[0]).all())
        return (int(sizes[0, 0]), int(sizes[0, 1])) if same else None

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return int(self.channels * self.places[:, 2:].prod(axis=1).sum())


def lock_path(path: Path) -> Path:
    """What whoever writes the file `path` holds meanwhile."""
    return path.with_name(f"{path.name}.lock")


def map_images(
    path: Path, channels: int, places: Index, crcs: npt.NDArray[np.uint32], pixels_bytes: int | None = None
) -> StoredImages:
    """The images at `places` of the file `path`, of which the first `pixels_bytes` are mapped into memory."""
    mapped = np.memmap(path, dtype=np.uint8, mode="r", shape=pixels_bytes)
    # A plain array over the same memory: slices of np.memmap are slow to make.
    blocks = [np.asarray(mapped).view(np.ndarray)]
    return StoredImages(channels, blocks, places, crcs, np.zeros(len(places), dtype=np.bool_), path)


class MemoryWriter:
    """Takes decoded images into memory, up to `limit_bytes`."""

    def __init__(self, channels: int, limit_bytes: int) -> None:
        self._channels = channels
        self._limit_bytes = limit_bytes
        self._taken = 0
        self._blocks: list[npt.NDArray[np.uint8]] = []
        self._end = 0
        self._places: list[tuple[int, int, int, int]] = []

    def add(self, pixels: Pixels) -> None:
        """The next image, `[channels, H, W]`; `OverflowError` where it finds no room."""
        self._taken += pixels.nbytes
        if self._taken > self._limit_bytes:
            raise OverflowError
        if not self._blocks or self._end + pixels.nbytes > len(self._blocks[-1]):
            # Memory that nothing was written to is not taken from the machine yet.
            self._blocks.append(np.empty(max(_BLOCK_BYTES, pixels.nbytes), dtype=np.uint8))
            self._end = 0
        self._blocks[-1][self._end : self._end + pixels.nbytes] = flat(pixels)
        self._places.append((len(self._blocks) - 1, self._end, *pixels.shape[1:]))
        self._end += pixels.nbytes

    def finish(self) -> StoredImages:
        """All that was added, in order."""
        if self._blocks:
            self._blocks[-1] = self._blocks[-1][: self._end]
        return StoredImages(self._channels, self._blocks, np.array(self._places, np.int64).reshape(-1, 4))
