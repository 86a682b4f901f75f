"""From a part of a data set to the batches that a model takes.

`N` images, `C` channels, `H` height, `W` width, `K` classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visus.data.augment import Augment, augment, cropping, draw
from visus.data.crops import centre_crop, random_resized_crop
from visus.data.erasing import erase_
from visus.data.files import FileImages
from visus.data.foreign import Transform, transform_images
from visus.data.images import ArrayImages, Images, Split
from visus.data.mixing import Mixing, draw_mixing, mix_images_, mix_labels, with_partner
from visus.data.policies import POLICIES, apply_change
from visus.errors import UsageError
from visus.ops.rng import permutation
from visus.preprocessing import Preprocessing

_MEASURED_AT_ONCE = 1000
_NORMALISED_AT_ONCE = 2**17


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
    """The training batches of a run: call it with an epoch and the number of batches to skip.

    Of several processes each gets its slice of every batch; order, augmentation and mixing do not depend on how many there are.
    """

    split: Split
    preprocessing: Preprocessing
    batch_size: int
    """Images of a batch, over all processes together."""
    augment: Augment = "none"
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    mixup: float = 0.0
    """A of Beta(A, A), by whose shares the images of a batch are blended in pairs; 0 for none."""
    cutmix: float = 0.0
    """As `mixup`, for boxes that an image gets of another; with both each batch has one of them."""
    erasing: float = 0.0
    """Chance that a rectangle of an image is blanked."""
    transform: Transform | None = None
    """Somebody else's, in the place of `augment`: gets an image as it is, and makes it as large as the model wants it."""

    def __len__(self) -> int:
        return len(batch_sizes(len(self.split), self.batch_size))

    def positions(self, epoch: int, start: int = 0) -> Iterator[npt.NDArray[np.int64]]:
        """Which images of the split each batch of `epoch` (from 0) holds, from batch `start` on; over all processes."""
        order = permutation(self.seed, "order", epoch, len(self.split))
        ends = np.cumsum([0, *batch_sizes(len(self.split), self.batch_size)])
        for begin, end in zip(ends[start:-1], ends[start + 1 :], strict=True):
            yield order[begin:end]

    def __call__(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (from 0), from batch `start` on; what is skipped costs nothing."""
        for batch, whole in enumerate(self.positions(epoch, start), start):
            if self.mixup or self.cutmix:
                needed = with_partner(whole, self.rank, self.world_size)
                images = self._images(epoch, needed)
                mixing = draw_mixing(
                    self.seed, epoch, batch, self.preprocessing.size, mixup=self.mixup, cutmix=self.cutmix
                )
                yield _mixed_batch(self.split, needed, images, mixing)
            else:
                positions = np.array_split(whole, self.world_size)[self.rank]
                yield _batch(self.split, positions, self._images(epoch, positions))

    def _images(self, epoch: int, positions: npt.NDArray[np.int64]) -> Tensor:
        """Augmented and normalised, `[N, C, H, W]`; each depends on its own position only."""
        size = self.preprocessing.size
        if self.transform and len(positions):
            whole = [_one(self.split.images, each) for each in positions]
            found = transform_images(self.transform, whole, self.seed, epoch, positions.tolist())
            return (
                normalise(found, self.preprocessing) if found.dtype == torch.uint8 else _channels_last(found)
            )
        how = cropping(self.augment, size)
        draws = draw(self.seed, epoch, positions, how)
        pixels = _read(self.split, positions, size, draws if how == "standard" else None)
        pixels = augment(pixels, draws, how)
        if policy := POLICIES.get(self.augment):
            for change in policy(self.seed, epoch, positions, size):
                pixels = apply_change(pixels, change)
        images = normalise(pixels, self.preprocessing)
        return erase_(images, self.seed, epoch, positions, self.erasing) if self.erasing else images


@dataclass(frozen=True)
class EvaluationBatches:
    """The images of a part in their order, unchanged, in blocks of `batch_size`.

    Blocks are dealt whole to several processes, one after the other, so that none is cut and no image is there twice.
    """

    split: Split
    preprocessing: Preprocessing
    batch_size: int = 100
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        """Blocks of all processes together."""
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        first, step = self.rank * self.batch_size, self.world_size * self.batch_size
        for begin in range(first, len(self.split), step):
            positions = np.arange(begin, min(begin + self.batch_size, len(self.split)))
            pixels = _read(self.split, positions, self.preprocessing.size)
            yield _batch(self.split, positions, normalise(pixels, self.preprocessing))


def batches(
    split: Split,
    *,
    batch_size: int,
    img_size: int | None = None,
    augment: Augment = "none",
    epoch: int = 0,
    seed: int = 0,
    start_step: int = 0,
) -> Iterator[Batch]:
    """The training batches of one epoch (from 0), from batch `start_step` on: a pure function of its arguments.

    `img_size` is the side of the images in pixels, their own where it is not given. Mean and standard deviation are measured on
    `split` at each call; `TrainingBatches` takes a record that was measured once.
    """
    size = None if img_size is None else (img_size, img_size)
    record = measure_preprocessing(split, size)
    return TrainingBatches(split, record, batch_size, augment, seed)(epoch, start_step)


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 `[N, C, H, W]` as float32 with the record's mean and standard deviation taken out, in channels-last layout."""
    mean = torch.tensor(preprocessing.mean, device=pixels.device).mul_(255)[:, None, None]
    scale = torch.tensor(preprocessing.std, device=pixels.device).mul_(255).reciprocal_()[:, None, None]
    images = torch.empty(
        pixels.shape, dtype=torch.float32, device=pixels.device, memory_format=torch.channels_last
    )
    # Rearranged last, and while in the cache: arithmetic on three values in a row at a time takes three times as long.
    at_once = max(1, _NORMALISED_AT_ONCE // max(1, pixels[:1].numel()))
    for begin in range(0, len(pixels), at_once):
        block = slice(begin, begin + at_once)
        images[block].copy_(pixels[block].float().sub_(mean).mul_(scale))
    return images


def measure_preprocessing(
    split: Split, size: tuple[int, int] | None = None, resize: int | None = None
) -> Preprocessing:
    """The record for `split`: its images' own size, or the middle `size` of each; mean and standard deviation of each channel.

    Exact, from counts of each pixel value over all images. A channel that never changes gets a standard deviation of 1.
    `UsageError` where no size is given and the images have different ones.
    """
    size = size or split.images.size
    if size is None:
        raise UsageError(
            "expected images of one size, found several; say which the model takes with --img-size"
        )
    counts = [torch.zeros(256, dtype=torch.int64) for _ in range(split.images.channels)]
    for begin in range(0, len(split), _MEASURED_AT_ONCE):
        pixels = _read(split, np.arange(begin, min(begin + _MEASURED_AT_ONCE, len(split))), size)
        for channel, count in enumerate(counts):
            count += torch.bincount(pixels[:, channel].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    means = [float((count * values).sum() / count.sum()) for count in counts]
    variances = [
        float((count * (values - mean) ** 2).sum() / count.sum())
        for count, mean in zip(counts, means, strict=True)
    ]
    return Preprocessing(
        size=size,
        resize=resize,
        channels=split.images.channels,
        mean=tuple(means),
        std=tuple(variance**0.5 or 1.0 for variance in variances),
    )


def _read(
    split: Split,
    positions: npt.NDArray[np.int64],
    size: tuple[int, int],
    draws: npt.NDArray[np.float64] | None = None,
) -> Tensor:
    """Pixels `[N, C, H, W]` of the images at `positions`: cropped at random where there are `draws [N, 48]`, else in the middle."""
    images = split.images
    if isinstance(images, ArrayImages) and images.size == size and draws is None:
        return images.pixels[torch.from_numpy(positions)]
    if not len(positions):
        return torch.empty((0, images.channels, *size), dtype=torch.uint8)
    if draws is None:
        return torch.stack([centre_crop(_one(images, each), size) for each in positions])
    crops = [
        random_resized_crop(_one(images, each), size, drawn[8:])
        for each, drawn in zip(positions, draws, strict=True)
    ]
    return torch.stack(crops)


def _one(images: Images, position: int) -> Tensor:
    if isinstance(images, ArrayImages):
        return images.pixels[position]
    assert isinstance(images, FileImages)
    return torch.from_numpy(images.read(position))


def _channels_last(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.channels_last)


def _batch(split: Split, positions: npt.NDArray[np.int64], images: Tensor) -> Batch:
    return Batch(images, torch.from_numpy(split.labels[positions]), torch.from_numpy(positions))


def _mixed_batch(split: Split, needed: npt.NDArray[np.int64], images: Tensor, mixing: Mixing) -> Batch:
    """The last N of `images [N + 1, C, H, W]`, which are those at `needed`, each mixed with the one before it."""
    targets = mix_labels(torch.from_numpy(split.labels[needed]), len(split.classes), mixing)
    return Batch(mix_images_(images, mixing), targets, torch.from_numpy(needed[1:]))
