"""Images that come as arrays: checked, and brought to uint8 `[N, C, H, W]`."""

from __future__ import annotations

import importlib.resources
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visus.data.decode import adapt_image
from visus.data.images import ArrayImages, Labels, Split
from visus.data.names import collect_names
from visus.errors import DataError, one_line

Pixels = npt.NDArray[np.uint8]

_MOST_CLASSES = 1_000_000
"""Where classes have no names: a stray label must not make a list of names as long as memory."""


def array_split(
    name: str, images: npt.ArrayLike, labels: npt.ArrayLike, classes: Sequence[str] | None, origin: object
) -> Split:
    """A part made of arrays; `DataError` naming `origin` where they do not fit together.

    `images` is `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]` with 1, 3 or 4 channels; `labels [N]` counts from 0.
    Without `classes` the labels' numbers are their names.
    """
    pixels = to_pixels(np.asarray(images), origin)
    numbers = check_labels(np.asarray(labels), len(pixels), classes, origin)
    names = name_classes(numbers, classes, origin)
    paths = collect_names(map(str, range(len(pixels))))
    return Split(name, ArrayImages(torch.from_numpy(pixels)), numbers, names, paths)


def to_pixels(images: npt.NDArray[Any], origin: object) -> Pixels:
    """Images as uint8 `[N, C, H, W]`, grey or RGB.

    Floats are taken as [0, 1], 16-bit numbers as 0 to 65535, alpha is composed on white. Where both the second and
    the last axis could be channels, the last one is.
    """
    if images.ndim not in (3, 4) or not images.size:
        raise DataError(
            f"{origin}: expected images [N, H, W], [N, H, W, C] or [N, C, H, W], found {images.shape}"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[-1] not in (1, 3, 4):
        images = np.moveaxis(images, 1, -1)
    if images.shape[-1] not in (1, 3, 4):
        raise DataError(f"{origin}: expected 1, 3 or 4 channels, found images of shape {images.shape}")
    scaled = _to_uint8(images, origin)
    if scaled.shape[-1] == 4:
        scaled = _on_white(scaled)
    # Writable, since torch warns of tensors over memory that is not.
    return np.require(np.moveaxis(scaled, -1, 1), requirements=["C", "W"])


def adapt_pixels(
    images: Tensor, channels: int, resize: int | None = None, interpolation: str = "bilinear"
) -> Tensor:
    """Images `[N, C, H, W]` with `channels` channels, shrunk to short side `resize`, as `decode_image` does to those in files."""
    if images.shape[1] == channels and (resize is None or min(images.shape[2:]) <= resize):
        return images
    adapted = [adapt_image(image.numpy(), channels, resize, interpolation) for image in images]
    return torch.from_numpy(np.ascontiguousarray(np.stack(adapted)))


def check_labels(
    labels: npt.NDArray[Any], count: int, classes: Sequence[str] | None, origin: object
) -> Labels:
    """Labels as int64 `[N]`; `DataError` for another length or type, or a label that has no class."""
    if labels.ndim != 1 or len(labels) != count:
        raise DataError(
            f"{origin}: expected {count} labels for {count} images, found labels of shape {labels.shape}"
        )
    if labels.dtype.kind not in "iuf":
        raise DataError(f"{origin}: expected whole numbers as labels, found {labels.dtype}")
    if labels.dtype.kind == "f" and (odd := np.flatnonzero(~(labels == np.floor(labels)))).size:
        raise DataError(
            f"{origin}: expected whole numbers as labels, found {labels[odd[0]]} for image {odd[0]}; correct it"
        )
    limit = len(classes) if classes is not None else _MOST_CLASSES
    if outside := np.flatnonzero((labels < 0) | (labels >= limit)).tolist():
        asked = f"from 0 to {limit - 1}" if classes is not None else f"from 0 (at most {limit:,} classes)"
        raise DataError(
            f"{origin}: expected labels {asked}, found {labels[outside[0]]} for image {outside[0]}"
            f"{f' and {len(outside) - 1} more' * (len(outside) > 1)}; correct them or the classes"
        )
    numbers: Labels = labels.astype(np.int64)
    return numbers


def name_classes(labels: Labels, classes: Sequence[str] | None, origin: object) -> tuple[str, ...]:
    """`classes`, or without them the numbers that `labels [N]` count through; `DataError` for a name that is there twice."""
    if classes is None:
        return tuple(map(str, range(int(labels.max()) + 1)))
    names = tuple(map(str, classes))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(
            f"{origin}: expected a name of its own for each class, found {', '.join(twice)} twice"
        )
    return names


def read_npz(path: str | os.PathLike[str], name: str = "train") -> Split:
    """An `.npz` file with `images`, `labels` and, if it likes, `classes`; pickled objects in it are refused."""
    arrays = load_npz(path)
    if not {"images", "labels"} <= set(arrays):
        raise DataError(
            f"{path}: expected arrays named images and labels, found {', '.join(arrays) or 'none'}; save them by these names"
        )
    classes = arrays.get("classes")
    if classes is not None and (classes.ndim != 1 or classes.dtype.kind not in "US"):
        raise DataError(
            f"{path}: expected a list of names as classes, found {classes.dtype} of shape {classes.shape}"
        )
    return array_split(
        name,
        arrays["images"],
        arrays["labels"],
        None if classes is None else classes.astype(str).tolist(),
        path,
    )


def read_digits() -> Split:
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn; `LICENSE.digits` says whose they are."""
    with importlib.resources.files("visus.data").joinpath("builtin/digits.npz").open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        return array_split("train", archive["images"], archive["labels"], None, "digits")


def load_npz(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Those of the arrays that are used; where one of them is missing, all."""
    try:
        # numpy leaves a file open that it opened and that turned out to be damaged.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = archive.files
            wanted = [name for name in names if name in ("images", "labels", "classes")]
            return {name: archive[name] for name in (wanted if {"images", "labels"} <= set(names) else names)}
    # What is damaged raises almost anything: BadZipFile, zlib.error, ValueError, EOFError, TypeError, MemoryError, ...
    except Exception as error:
        reason = one_line(error)
        # numpy advises to unpickle whatever is no archive.
        reason = "it holds objects, or is none" if "pickle" in reason else reason
        raise DataError(
            f"{path}: cannot be read as .npz: {reason}; write it again with numpy.savez, without objects"
        ) from None


def _to_uint8(images: npt.NDArray[Any], origin: object) -> Pixels:
    if images.dtype == np.uint8:
        return images
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255)
    if images.dtype.kind not in "iuf":
        raise DataError(f"{origin}: expected numbers as pixels, found {images.dtype}")
    top = 1 if images.dtype.kind == "f" else 65535 if images.dtype == np.uint16 else 255
    low, high = images.min(), images.max()
    if np.isnan(low):
        first = np.flatnonzero(np.isnan(images).any(axis=(1, 2, 3)))[0]
        raise DataError(f"{origin}: expected pixels from 0 to {top}, found NaN in image {first}; correct it")
    if not (low >= 0 and high <= top):
        raise DataError(
            f"{origin}: expected {images.dtype} pixels from 0 to {top}, found {low} to {high}; scale them"
        )
    return np.rint(images.astype(np.float64) * (255 / top)).astype(np.uint8)


def _on_white(images: Pixels) -> Pixels:
    alpha = images[..., 3:].astype(np.uint16)
    return ((images[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
