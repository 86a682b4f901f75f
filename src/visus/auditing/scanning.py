"""One look at every image of a data set: what later checks need of it, in little memory.

`N` images of all parts together, in the order train, val, test.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from visus.data.decode import Pixels, UndecodableError, flat, pixels_to_image
from visus.data.excluding import image_names
from visus.data.files import FileImages, decode_all
from visus.data.images import ArrayImages, Data, Split
from visus.ops.scratch import scratch_array

SIDE = 32
"""Of the thumbnails, in pixels."""
THUMB_BYTES = 3 * SIDE**2
_ORIENTATION = 0x0112
_BLUR_SIDE = 256
"""Sharpness is judged at this size at most, or a photograph would be the blurrier the more pixels it has."""

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pool:
    """All images of a data set, under one index."""

    names: list[str]
    labels: npt.NDArray[np.int64]
    parts: npt.NDArray[np.int64]
    """0 train, 1 val, 2 test."""
    classes: tuple[str, ...]
    columns: dict[str, npt.NDArray[np.object_]]
    """Of tables: what they say of each image; empty where a part has no such column."""

    def __len__(self) -> int:
        return len(self.names)


PARTS = ("train", "val", "test")


@dataclass
class Scan:
    """What was seen of each image; rows of those that could not be read are zero."""

    readable: npt.NDArray[np.bool_]
    reasons: dict[int, str]
    """Why an image could not be read."""
    digests: npt.NDArray[np.void]
    """Of the decoded pixels and their shape, 16 bytes; equal for equal images."""
    thumbs: Bytes
    """`[N, 32, 32, 3]`."""
    height: Floats
    width: Floats
    mean: Floats
    """Of the grey image, 0 to 255."""
    contrast: Floats
    """Standard deviation of the grey image."""
    spread: Floats
    """Largest less smallest value of a channel, of the channel where that is most."""
    sharpness: Floats
    """Variance of the Laplacian over the variance of the image: little where it is blurred."""
    grey: npt.NDArray[np.bool_]
    """Red, green and blue are the same everywhere."""
    file_bytes: Floats
    """-1 for arrays."""
    formats: list[str] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    orientations: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """EXIF's, 1 where there is none."""


def pool_images(data: Data, val: str | None = None) -> tuple[Pool, list[Split]]:
    """All images of `data`, and its parts in the order of the pool; `val` names another source of the validation part."""
    parts = {name: part for name in PARTS if (part := getattr(data, name)) is not None and len(part)}
    names = image_names({name: part.paths for name, part in parts.items()}, val)
    columns = sorted({name for part in parts.values() for name in part.columns})
    empty = {name: np.full(len(part), "", dtype=object) for name, part in parts.items()}
    pool = Pool(
        [each for name in parts for each in names[name]],
        np.concatenate([part.labels for part in parts.values()]),
        np.concatenate([np.full(len(part), PARTS.index(name)) for name, part in parts.items()]),
        data.classes,
        {
            column: np.concatenate([part.columns.get(column, empty[name]) for name, part in parts.items()])
            for column in columns
        },
    )
    return pool, list(parts.values())


def scan_images(
    parts: list[Split],
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Scan:
    """Look at every image of `parts` once, at full size; those of many have their thumbnails in a file."""
    total = sum(map(len, parts))
    scan = _empty_scan(total)
    position = 0
    for part in parts:
        for number, pixels in enumerate(_decoded(part, workers)):
            if isinstance(pixels, UndecodableError):
                scan.reasons[position] = str(pixels)
            else:
                _look(scan, position, pixels)
            _look_at_file(scan, position, part, number)
            position += 1
            progress(position, total)
    return scan


def _empty_scan(n: int) -> Scan:
    columns: dict[str, Any] = {
        name: np.zeros(n) for name in ("height", "width", "mean", "contrast", "spread", "sharpness")
    }
    return Scan(
        readable=np.zeros(n, dtype=np.bool_),
        reasons={},
        digests=np.zeros(n, dtype="V16"),
        thumbs=scratch_array((n, SIDE, SIDE, 3), np.uint8),
        grey=np.zeros(n, dtype=np.bool_),
        file_bytes=np.full(n, -1.0),
        orientations=np.ones(n, dtype=np.int64),
        **columns,
    )


def _decoded(part: Split, workers: int | None) -> Iterator[Pixels | UndecodableError]:
    if isinstance(part.images, ArrayImages):
        yield from part.images.pixels.numpy()
        return
    assert isinstance(part.images, FileImages)
    with closing(decode_all(replace(part.images, channels=3, resize=None, decoded=None), workers)) as images:
        yield from images


def pixel_digest(pixels: Pixels) -> bytes:
    """16 bytes that are the same for images of the same shape and pixels."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(flat(pixels).data)
    return digest.digest()


def _look(scan: Scan, position: int, pixels: Pixels) -> None:
    scan.readable[position] = True
    scan.digests[position] = np.void(pixel_digest(pixels))
    scan.height[position], scan.width[position] = pixels.shape[1:]
    scan.grey[position] = len(pixels) == 1 or (
        np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2])
    )
    image = pixels_to_image(pixels)
    scan.thumbs[position] = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("RGB"))
    scan.spread[position] = _spread(image)
    image.thumbnail((_BLUR_SIDE, _BLUR_SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    scan.mean[position], scan.contrast[position] = grey.mean(), grey.std()
    scan.sharpness[position] = _laplacian_variance(grey) / max(grey.var(), 1e-9)


def _spread(image: Image.Image) -> int:
    """The largest difference between two values of one channel."""
    extrema = image.getextrema()
    pairs = [extrema] if image.mode == "L" else extrema
    return max(int(high) - int(low) for low, high in pairs)  # type: ignore[misc,arg-type]


def _laplacian_variance(grey: Floats) -> float:
    """Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, 2000; 0 for less than 3 x 3 pixels."""
    if min(grey.shape) < 3:
        return 0.0
    inner = grey[1:-1, 1:-1]
    return float((grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner).var())


def _look_at_file(scan: Scan, position: int, part: Split, number: int) -> None:
    """Its size, and what its header says; of an array nothing."""
    kind, mode = "", ""
    if isinstance(part.images, FileImages):
        try:
            source = part.images.source(number)
            scan.file_bytes[position] = len(source) if isinstance(source, bytes) else os.stat(source).st_size  # noqa: PTH116
            if scan.readable[position]:
                kind, mode, scan.orientations[position] = _read_header(source)
        except (UndecodableError, OSError):
            # Whatever is wrong with the file is said by the reason against it.
            scan.reasons.setdefault(position, "cannot be read")
    scan.formats.append(kind)
    scan.modes.append(mode)


def _read_header(source: str | bytes) -> tuple[str, str, int]:
    """Format, mode and orientation of an image that was decoded before, so that nothing in it surprises Pillow here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            try:
                orientation = int(image.getexif().get(_ORIENTATION, 1))
            # As in `visus.data.decode`: EXIF that cannot be read is no reason against pixels that are whole.
            except Exception:
                orientation = 1
            return image.format or "", image.mode, orientation
