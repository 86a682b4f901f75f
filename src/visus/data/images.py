"""What a data set is to the rest of visus: parts of labelled images.

`N` images, `C` channels (1 or 3), `H` height, `W` width. Pixels are uint8, 0 to 255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visus.data.names import take
from visus.errors import DataError, first_of

Labels = npt.NDArray[np.int64]
Column = npt.NDArray[np.object_]
"""`[N]`, text; empty where there is nothing."""


@dataclass(frozen=True)
class ArrayImages:
    """Images of one size, in memory: `pixels [N, C, H, W]`."""

    pixels: Tensor

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.pixels.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[2], self.pixels.shape[3]

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, positions: npt.NDArray[np.int64]) -> ArrayImages:
        """The images at `positions`, in that order."""
        return ArrayImages(self.pixels[torch.from_numpy(positions)])


class Images(Protocol):
    """The images of a part, wherever they are."""

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels, where all images share them."""

    def __len__(self) -> int: ...

    def subset(self, positions: npt.NDArray[np.int64]) -> Images:
        """The images at `positions`, in that order."""


@dataclass(frozen=True)
class Split:
    """One part of a data set: `train`, `val` or `test`."""

    name: str
    images: Images
    labels: Labels
    """`[N]`, indices into `classes`."""
    classes: tuple[str, ...]
    paths: Sequence[str]
    """What identifies each image: its path relative to the source, or its index there."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """What else a table says of each image, by its column's name. Images of one `group` are never in different parts."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def absent_classes(self) -> list[str]:
        """Those of `classes` that no image here has, in their order."""
        absent = np.setdiff1d(np.arange(len(self.classes)), self.labels)
        return [self.classes[index] for index in absent.tolist()]

    def subset(self, positions: npt.NDArray[np.int64], name: str | None = None) -> Split:
        """The images at `positions`, in that order."""
        return replace(
            self,
            name=name or self.name,
            images=self.images.subset(positions),
            labels=self.labels[positions],
            paths=take(self.paths, positions),
            columns={name: values[positions] for name, values in self.columns.items()},
        )


def map_classes(split: Split, classes: Sequence[str]) -> Split:
    """`split` with its labels as indices into a model's `classes`, by name; `DataError` for classes that the model lacks."""
    places = {name: place for place, name in enumerate(classes)}
    if unknown := [name for name in split.classes if name not in places]:
        raise DataError(
            f"expected classes that the model has ({first_of(classes)}), found others: {first_of(unknown)}; "
            "leave them out, or train a model that knows them"
        )
    numbers = np.array([places[name] for name in split.classes], dtype=np.int64)
    return replace(split, labels=numbers[split.labels], classes=tuple(classes))


@dataclass(frozen=True)
class Skipped:
    """A file that was left out."""

    path: str
    """Relative to the source."""
    reason: str


@dataclass(frozen=True)
class Data:
    """A data set with its parts."""

    source: str
    classes: tuple[str, ...]
    train: Split | None = None
    val: Split | None = None
    test: Split | None = None
    notes: tuple[str, ...] = ()
    """What was understood, for people to read."""
    skipped: tuple[Skipped, ...] = ()
    """Files that could not be used."""
