"""Images that come as arrays: checked, and brought to uint8 `[N, C, H, W]`."""

from __future__ import annotations

import gzip
import importlib.resources
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from visus.data.images import ArrayImages, Labels, Split
from visus.errors import DataError

Pixels = npt.NDArray[np.uint8]

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def array_split(
    name: str, images: npt.ArrayLike, labels: npt.ArrayLike, classes: Sequence[str] | None, origin: object
) -> Split:
    """A part made of arrays; `DataError` naming `origin` where they do not fit together.

    `images` is `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]` with 1, 3 or 4 channels; `labels [N]` counts from 0.
    Without `classes` the labels' numbers are their names.
    """
    pixels = to_pixels(np.asarray(images), origin)
    numbers = check_labels(np.asarray(labels), len(pixels), classes, origin)
    names = tuple(classes) if classes is not None else tuple(map(str, range(int(numbers.max()) + 1)))
    if len(names) < 2:
        raise DataError(f"{origin}: expected images of at least two classes, found {len(names)}")
    paths = [str(index) for index in range(len(pixels))]
    return Split(name, ArrayImages(torch.from_numpy(pixels)), numbers, names, paths)


def to_pixels(images: npt.NDArray[Any], origin: object) -> Pixels:
    """Images as uint8 `[N, C, H, W]`, grey or RGB.

    Floats are taken as [0, 1], 16-bit numbers as 0 to 65535, alpha is composed on white. Where both the second and
    the last axis could be channels, the last one is.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not images.size:
        raise DataError(
            f"{origin}: expected images [N, H, W], [N, H, W, C] or [N, C, H, W], found {images.shape}"
        )
    if images.shape[-1] not in (1, 3, 4):
        images = np.moveaxis(images, 1, -1)
    if images.shape[-1] not in (1, 3, 4):
        raise DataError(f"{origin}: expected 1, 3 or 4 channels, found images of shape {images.shape}")
    scaled = _to_uint8(images, origin)
    if scaled.shape[-1] == 4:
        scaled = _on_white(scaled)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, 1))


def check_labels(
    labels: npt.NDArray[Any], count: int, classes: Sequence[str] | None, origin: object
) -> Labels:
    """Labels as int64 `[N]`; `DataError` for another length or type, or a label that has no class."""
    if labels.ndim != 1 or len(labels) != count:
        raise DataError(
            f"{origin}: expected {count} labels for {count} images, found labels of shape {labels.shape}"
        )
    if labels.dtype.kind not in "iu" and not (
        labels.dtype.kind == "f" and np.all(labels == np.floor(labels))
    ):
        raise DataError(f"{origin}: expected whole numbers as labels, found {labels.dtype}")
    numbers: Labels = labels.astype(np.int64)
    limit = len(classes) if classes is not None else int(np.iinfo(np.int64).max)
    if numbers.min() < 0 or numbers.max() >= limit:
        upper = "" if classes is None else f" to {limit - 1}"
        raise DataError(
            f"{origin}: expected labels from 0{upper}, found {numbers.min()} to {numbers.max()}; correct them or the classes"
        )
    return numbers


def read_npz(path: str | os.PathLike[str], name: str = "train") -> Split:
    """An `.npz` file with `images`, `labels` and, if it likes, `classes`; pickled objects in it are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = {"images", "labels"} - set(archive.files)
            if missing:
                raise DataError(
                    f"{path}: expected arrays named images and labels, found {', '.join(archive.files) or 'none'}"
                )
            classes = [str(each) for each in archive["classes"]] if "classes" in archive.files else None
            return array_split(name, archive["images"], archive["labels"], classes, path)
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read as .npz ({error}); write it again with numpy.savez"
        ) from None


def read_idx(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """An IDX file (the format of MNIST), gzipped or not; `DataError` where it is damaged.

    Two zero bytes, a type, the number of axes, then each axis's length as big-endian int32, then the values.
    """
    try:
        with Path(path).open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else Path(path).open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; copy it again") from None
    axes = content[3] if len(content) > 3 else 0
    if len(content) < 4 + 4 * axes or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise DataError(f"{path}: expected an IDX file, found other bytes; copy it again")
    shape = [int(n) for n in np.frombuffer(content[4 : 4 + 4 * axes], dtype=">u4")]
    dtype = np.dtype(_IDX_TYPES[content[2]])
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize if shape else -1
    if len(content) - 4 - 4 * axes != expected:
        raise DataError(
            f"{path}: expected {expected} bytes for {shape}, found {len(content) - 4 - 4 * axes}; copy it again"
        )
    return np.frombuffer(content, dtype, offset=4 + 4 * axes).reshape(shape).astype(dtype.newbyteorder("="))


def read_digits() -> Split:
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn; `LICENSE.digits` says whose they are."""
    with importlib.resources.files("visus.data").joinpath("builtin/digits.npz").open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        return array_split("train", archive["images"], archive["labels"], None, "digits")


def _to_uint8(images: npt.NDArray[Any], origin: object) -> Pixels:
    if images.dtype == np.uint8:
        return images
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255)
    if images.dtype.kind not in "iuf":
        raise DataError(f"{origin}: expected numbers as pixels, found {images.dtype}")
    top = 1 if images.dtype.kind == "f" else 65535 if images.dtype == np.uint16 else 255
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= top):
        raise DataError(
            f"{origin}: expected {images.dtype} pixels from 0 to {top}, found {low} to {high}; scale them"
        )
    return np.rint(images.astype(np.float64) * (255 / top)).astype(np.uint8)


def _on_white(images: Pixels) -> Pixels:
    alpha = images[..., 3:].astype(np.uint16)
    return ((images[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
