"""What mean and standard deviation are reckoned from: how often each value occurs."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visus.data.cache import counts_folder
from visus.data.crops import centre_crop
from visus.data.decode import Pixels, pixels_to_image
from visus.data.stored import StoredImages
from visus.files import replacing

_CRC = struct.Struct("<I")
_changing = threading.Lock()
"""One for all counts, which processes send to each other."""


class PixelCounts:
    """How often each value occurs in each channel of the middle `size` of images."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        self.images = 0
        self.size = size
        self._counts = np.zeros((channels, 256), dtype=np.int64)

    def add(self, pixels: Pixels) -> None:
        """One more image, `[C, h, w]`, whole; from any thread, in any order."""
        # Pillow counts twice as fast as numpy, and torch would do it with threads of its own.
        middle = centre_crop(torch.from_numpy(pixels), self.size).numpy()
        found = np.array(pixels_to_image(middle).histogram()).reshape(self._counts.shape)
        with _changing:
            self._counts += found
            self.images += 1

    def take(self, other: PixelCounts) -> None:
        """The images of another one, of as many channels and the same size."""
        self._counts += other._counts
        self.images += other.images

    def empty(self) -> PixelCounts:
        """Another one, without images."""
        return PixelCounts(len(self._counts), self.size)

    def add_all(self, pixels: Tensor) -> None:
        """Images of that size, `[N, C, H, W]`."""
        for channel, count in enumerate(self._counts):
            count += torch.bincount(pixels[:, channel].flatten(), minlength=256).numpy()
        self.images += len(pixels)

    def save(self, path: Path) -> None:
        """Write them to a file, with their CRC-32."""
        content = self._counts.astype("<i8").tobytes()
        with replacing(path, durable=False) as temporary:
            temporary.write_bytes(content + _CRC.pack(zlib.crc32(content)))

    def load(self, path: Path, images: int) -> None:
        """Take those of so many `images` from a file; `OSError` or `ValueError` where it has none."""
        whole = path.read_bytes()
        content, crc = whole[: -_CRC.size], whole[-_CRC.size :]
        if crc != _CRC.pack(zlib.crc32(content)):
            raise ValueError
        self._counts += np.frombuffer(content, "<i8").reshape(self._counts.shape)
        self.images += images

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of each channel, of values from 0 to 1. A channel that never changes gets a standard deviation of 1."""
        values, counts = torch.arange(256, dtype=torch.float64) / 255, torch.from_numpy(self._counts)
        means = [float((count * values).sum() / count.sum()) for count in counts]
        variances = [
            float((count * (values - mean) ** 2).sum() / count.sum())
            for count, mean in zip(counts, means, strict=True)
        ]
        return tuple(means), tuple(variance**0.5 or 1.0 for variance in variances)


def kept_counts(images: StoredImages, size: tuple[int, int], count: Callable[[], PixelCounts]) -> PixelCounts:
    """What `count` finds of the middle `size` of `images` in a cache file; kept beside it, so that a later run need not read them.

    It is known again by the checksums of the images. Where there is no room, it is not kept.
    """
    path, counts = _path(images, size), PixelCounts(images.channels, size)
    with contextlib.suppress(OSError, ValueError):
        counts.load(path, len(images))
        return counts
    counts = count()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        counts.save(path)
    return counts


def _path(images: StoredImages, size: tuple[int, int]) -> Path:
    key = hashlib.sha256(repr((images.channels, size)).encode())
    for column in (images.checksums(), images.places[:, 2:]):
        key.update(np.ascontiguousarray(column).data)
    return counts_folder() / key.hexdigest()[:16]
