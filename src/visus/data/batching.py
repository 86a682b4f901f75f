"""From a part of a data set to the batches that a model takes.

`N` images, `C` channels, `H` height, `W` width, `K` classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visus.data.augment import Augment, augment
from visus.data.images import Split
from visus.errors import UsageError
from visus.ops.rng import permutation
from visus.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and targets; unpacks as that pair."""

    images: Tensor
    """float32 `[N, C, H, W]`, normalised, in channels-last layout."""
    targets: Tensor
    """int64 `[N]`, or float32 `[N, K]`."""
    indices: Tensor
    """int64 `[N]`: positions in the part; -1 where unknown."""

    def __iter__(self) -> Iterator[Tensor]:
        yield self.images
        yield self.targets

    def __len__(self) -> int:
        return len(self.images)


def batch_sizes(n: int, batch_size: int) -> list[int]:
    """The sizes of the batches of an epoch over `n` images.

    None is dropped; a remainder of one joins the batch before it, since batch norm cannot train on one image. `UsageError` for
    a batch larger than the set.
    """
    if not 1 <= batch_size <= n:
        raise UsageError(f"expected a batch size from 1 to the {n} training images, found {batch_size}")
    sizes = [batch_size] * (n // batch_size)
    remainder = n % batch_size
    if remainder == 1:
        sizes[-1] += 1
    elif remainder:
        sizes.append(remainder)
    return sizes


@dataclass(frozen=True)
class TrainingBatches:
    """The training batches of a run: call it with an epoch and the number of batches to skip."""

    split: Split
    preprocessing: Preprocessing
    batch_size: int
    augment: Augment = "none"
    seed: int = 0

    def __len__(self) -> int:
        return len(batch_sizes(len(self.split), self.batch_size))

    def __call__(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (from 0), from batch `start` on; what is skipped costs nothing."""
        order = permutation(self.seed, "order", epoch, len(self.split))
        ends = np.cumsum([0, *batch_sizes(len(self.split), self.batch_size)])
        for begin, end in zip(ends[start:-1], ends[start + 1 :], strict=True):
            positions = order[begin:end]
            pixels = self.split.images.pixels[torch.from_numpy(positions)]
            pixels = augment(pixels, positions, how=self.augment, seed=self.seed, epoch=epoch)
            yield _batch(self.split, positions, normalise(pixels, self.preprocessing))


@dataclass(frozen=True)
class EvaluationBatches:
    """The images of a part in their order, unchanged, in blocks of `batch_size`."""

    split: Split
    preprocessing: Preprocessing
    batch_size: int = 100

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for begin in range(0, len(self.split), self.batch_size):
            positions = np.arange(begin, min(begin + self.batch_size, len(self.split)))
            pixels = self.split.images.pixels[begin : begin + self.batch_size]
            yield _batch(self.split, positions, normalise(pixels, self.preprocessing))


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 `[N, C, H, W]` as float32 with the record's mean and standard deviation taken out, in channels-last layout."""
    images = pixels.to(torch.float32, memory_format=torch.channels_last)
    mean = torch.tensor(preprocessing.mean, device=pixels.device).mul_(255)[:, None, None]
    scale = torch.tensor(preprocessing.std, device=pixels.device).mul_(255).reciprocal_()[:, None, None]
    return images.sub_(mean).mul_(scale)


def measure_preprocessing(split: Split) -> Preprocessing:
    """The record for images of one size: that size, and mean and standard deviation of each channel, from exact integer sums.

    A channel that never changes gets a standard deviation of 1.
    """
    pixels = split.images.pixels
    counts = [torch.bincount(pixels[:, c].flatten(), minlength=256) for c in range(split.images.channels)]
    values = torch.arange(256, dtype=torch.float64) / 255
    means = [float((count * values).sum() / count.sum()) for count in counts]
    variances = [
        float((count * (values - mean) ** 2).sum() / count.sum())
        for count, mean in zip(counts, means, strict=True)
    ]
    return Preprocessing(
        size=split.images.size,
        channels=split.images.channels,
        mean=tuple(means),
        std=tuple(variance**0.5 or 1.0 for variance in variances),
    )


def _batch(split: Split, positions: np.ndarray[tuple[int], np.dtype[np.int64]], images: Tensor) -> Batch:
    return Batch(images, torch.from_numpy(split.labels[positions]), torch.from_numpy(positions))
