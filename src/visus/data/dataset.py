"""Data sets in Python: one made of arrays for others to use, and others' for visus to use.

`N` images, `C` channels (1 or 3), `H` height, `W` width, `K` classes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset

from visus.data.arrays import Pixels, check_labels, name_classes, to_pixels
from visus.data.decode import image_to_pixels, pixels_to_image
from visus.data.images import ArrayImages, Labels, Split
from visus.errors import DataError, UsageError

_ORIGIN = "ArrayDataset"


class MapStyle(Protocol):
    """What has a length and, at each index below it, a pair of an image and its label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class ArrayDataset(Dataset[tuple[Any, Any]]):
    """Images and labels from arrays, as pairs for a `DataLoader`.

    `images` (array, tensor, or a list of either) is `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`: grey, RGB, or RGBA, composed on
    white; uint8, floats from 0 to 1, or uint16, kept as 8 bits. `labels [N]` are whole numbers from 0 to K - 1, be they floats.
    `classes` names the K classes; without it their numbers are their names. `transform` gets a `PIL.Image` (`L` or `RGB`), as those
    of torchvision do; without it an image is float32 `[C, H, W]` from 0 to 1. A label is an int, or with `to_onehot` float32 `[K]`.
    Raises `DataError` where images and labels do not fit.
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        classes: Sequence[str] | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        to_onehot: bool = False,
    ) -> None:
        # Arrays and not tensors: what is sent to a spawned worker goes through a pipe, and needs no large /dev/shm.
        self.pixels = to_pixels(_as_array(images, f"{_ORIGIN}, images"), _ORIGIN)
        self.labels = check_labels(
            _as_array(labels, f"{_ORIGIN}, labels"), len(self.pixels), classes, _ORIGIN
        )
        self.classes = name_classes(self.labels, classes, _ORIGIN)
        self.transform = transform
        self.to_onehot = to_onehot

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """An image and its label; negative indices count from the end, `IndexError` beyond it."""
        place = operator.index(index)
        return self._image(place), self._label(place)

    def _image(self, place: int) -> Any:
        pixels = self.pixels[place]
        if self.transform is None:
            return torch.from_numpy(pixels).to(torch.float32) / 255
        return self.transform(pixels_to_image(pixels))

    def _label(self, place: int) -> int | Tensor:
        label = int(self.labels[place])
        if not self.to_onehot:
            return label
        return functional.one_hot(torch.tensor(label), self.num_classes).to(torch.float32)


def is_map_style(source: object) -> bool:
    """Whether `source` can be asked for its length and for an item by its index."""
    return (
        hasattr(source, "__len__")
        and hasattr(source, "__getitem__")
        and not isinstance(source, IterableDataset)
    )


def read_dataset(dataset: MapStyle, origin: object) -> Split:
    """All of a map-style data set of `(image, int)`, in memory: images are PIL's, arrays or tensors, of one size.

    RGB, unless all are grey. Classes are `dataset.classes` where it has them. An `ArrayDataset` is taken as it is; `UsageError`
    where it has a transform. Other data sets are asked for each item once, with whatever they do to it.
    """
    classes = getattr(dataset, "classes", None)
    if isinstance(dataset, ArrayDataset):
        if dataset.transform is not None:
            raise UsageError(
                f"{origin}: expected images as they are, found a transform; leave it out, visus prepares and augments them"
            )
        pixels, labels = dataset.pixels, dataset.labels
    else:
        pixels, labels = _read_all(dataset, origin)
        labels = check_labels(labels, len(pixels), classes, origin)
    names = name_classes(labels, classes, origin)
    return Split(
        "train",
        ArrayImages(torch.from_numpy(pixels)),
        labels,
        names,
        [str(place) for place in range(len(pixels))],
    )


def _read_all(dataset: MapStyle, origin: object) -> tuple[Pixels, Labels]:
    images, labels = [], []
    for place in range(len(dataset)):
        image, label = _pair(dataset[place], f"{origin}, item {place}")
        images.append(image)
        labels.append(label)
    if not images:
        raise DataError(f"{origin}: expected pairs of an image and its label, found none")
    sizes = sorted({image.shape[1:] for image in images})
    if len(sizes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sizes[:3])
        raise DataError(
            f"{origin}: expected images of one size, found {shown}{', ...' * (len(sizes) > 3)}; resize them"
        )
    channels = max(len(image) for image in images)
    same = [np.broadcast_to(image, (channels, *sizes[0])) for image in images]
    # Stacked, views of pixels that lie channels last would lie so again.
    return np.ascontiguousarray(np.stack(same)), np.array(labels, dtype=np.int64)


def _pair(item: Any, origin: str) -> tuple[Pixels, int]:
    try:
        image, label = item
        number = operator.index(label)
    except (TypeError, ValueError):
        raise DataError(
            f"{origin}: expected a pair of an image and a whole number, found {_describe(item)}"
        ) from None
    if isinstance(image, Image.Image):
        return image_to_pixels(image), number
    return to_pixels(_as_array(image, origin)[None], origin)[0], number


def _describe(item: Any) -> str:
    if isinstance(item, tuple | list):
        return f"({', '.join(type(each).__name__ for each in item[:5])})"
    return type(item).__name__


def _as_array(values: Any, what: str) -> npt.NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    elif isinstance(values, list | tuple) and any(isinstance(each, Tensor) for each in values):
        values = [each.detach().cpu() if isinstance(each, Tensor) else each for each in values]
        values = [np.asarray(each) for each in values]
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: expected one array, or several of equal shape: {error}") from None
