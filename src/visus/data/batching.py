"""From a part of a data set to the batches that a model takes.

`N` images, `C` channels, `H` height, `W` width, `K` classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visus.data.ahead import both
from visus.data.augment import (
    LARGEST_SMALL_SIZE,
    Augment,
    Cropping,
    augment,
    cropping,
    draw,
    is_mirrored,
)
from visus.data.counts import PixelCounts, kept_counts
from visus.data.crops import centre_crop, mirror, random_resized_crop
from visus.data.erasing import erase_
from visus.data.files import FileImages, small_size
from visus.data.foreign import Transform, transform_images
from visus.data.images import ArrayImages, Images, Split
from visus.data.keeping import keep_part
from visus.data.mixing import Mixing, draw_mixing, mix_images_, mix_labels, with_partner
from visus.data.normalising import normalise, normalise_image_into, row_scales
from visus.data.policies import POLICIES, apply_change
from visus.data.reading import Positions, pixels_bytes, read_batches
from visus.data.sampling import Sampler, draw_epoch
from visus.devices import available_memory_bytes
from visus.errors import UsageError
from visus.preprocessing import RESIZE_RATIO, Preprocessing

Draws = npt.NDArray[np.float64]
Place = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Drawn = tuple[Positions, Draws]
"""Which images a batch has, and the random numbers of each, `[N, ...]`."""

_MEASURED_AT_ONCE = 2**24
_WRITTEN = torch.empty(0)
"""For a change that has put the image where it belongs: a part of the image would keep the whole."""
_LARGE = 2**15
"""Values of an image from which on it pays to normalise it by itself."""


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
    workers: int | None = None
    """Threads that crop, and child processes that decode what was not kept; 0: neither. As many as there are processors."""
    sampler: Sampler = "shuffle"
    """`shuffle`: each image once an epoch; `balanced`: as many images, drawn so that each class is equally likely."""

    def __len__(self) -> int:
        return len(batch_sizes(len(self.split), self.batch_size))

    def positions(self, epoch: int, start: int = 0) -> Iterator[Positions]:
        """Which images of the split each batch of `epoch` (from 0) holds, from batch `start` on; over all processes."""
        for numbers in self._numbers(epoch, start):
            yield numbers % len(self.split)

    def __call__(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (from 0), from batch `start` on; what is skipped costs nothing."""
        shares, same = both(self._shares(epoch, start))
        with closing(self._images(epoch, same)) as read:
            for batch, (numbers, images) in enumerate(zip(shares, read, strict=True), start):
                positions = numbers % len(self.split)
                if self.mixup or self.cutmix:
                    mixing = draw_mixing(
                        self.seed, epoch, batch, self.preprocessing.size, mixup=self.mixup, cutmix=self.cutmix
                    )
                    yield _mixed_batch(self.split, positions, images, mixing)
                else:
                    yield _batch(self.split, positions, images)

    def _numbers(self, epoch: int, start: int) -> Iterator[Positions]:
        """For each batch from `start` on the numbers of its images, as `draw_epoch` gives them."""
        order = draw_epoch(self.seed, epoch, self.split.labels, self.sampler)
        ends = np.cumsum([0, *batch_sizes(len(self.split), self.batch_size)])
        for begin, end in zip(ends[start:-1], ends[start + 1 :], strict=True):
            yield order[begin:end]

    def _shares(self, epoch: int, start: int) -> Iterator[Positions]:
        """The numbers of the images that this process needs of each batch: its slice, and for mixing the one before it."""
        for whole in self._numbers(epoch, start):
            if self.mixup or self.cutmix:
                yield with_partner(whole, self.rank, self.world_size)
            else:
                yield np.array_split(whole, self.world_size)[self.rank]

    def _images(self, epoch: int, shares: Iterator[Positions]) -> Generator[Tensor, None, None]:
        """Of each share, augmented and normalised, `[N, C, H, W]`; each image depends on its own number only."""
        if self.transform:
            yield from self._transformed(self.transform, epoch, shares)
            return
        how = cropping(self.augment, self.preprocessing.size)
        n = len(self.split)
        drawn = ((each, draw(self.seed, epoch, each, how)) for each in shares)
        wanted, same = both(drawn)
        places = ((numbers % n, draws) for numbers, draws in same)
        alone = self.augment in ("none", "standard")
        with closing(
            _read(self.split.images, places, how, self.preprocessing, self.workers, alone=alone)
        ) as read:
            for (numbers, draws), images in zip(wanted, read, strict=True):
                finished = images
                if images.dtype == torch.uint8:
                    finished = self._augmented(augment(images, draws, how), epoch, numbers)
                yield erase_(finished, self.seed, epoch, numbers, self.erasing) if self.erasing else finished

    def _augmented(self, pixels: Tensor, epoch: int, numbers: Positions) -> Tensor:
        """What comes after cropping and flipping, to the whole batch."""
        if policy := POLICIES.get(self.augment):
            for change in policy(self.seed, epoch, numbers, self.preprocessing.size):
                pixels = apply_change(pixels, change)
        return normalise(pixels, self.preprocessing)

    def _transformed(
        self, transform: Transform, epoch: int, shares: Iterator[Positions]
    ) -> Generator[Tensor, None, None]:
        shares, same = both(shares)
        channels, size = self.split.images.channels, self.preprocessing.size
        # Read as they are; what the transform draws comes from generators that threads would share.
        with closing(
            read_batches(
                self.split.images,
                _undrawn(each % len(self.split) for each in same),
                _as_it_is,
                workers=self.workers,
            )
        ) as read:
            for numbers, whole in zip(shares, read, strict=True):
                found = torch.empty((0, channels, *size), dtype=torch.uint8)
                if whole:
                    found = transform_images(transform, whole, self.seed, epoch, numbers.tolist())
                bytes_ = found.dtype == torch.uint8
                yield normalise(found, self.preprocessing) if bytes_ else _channels_last(found)


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
    workers: int | None = None
    """As for `TrainingBatches`."""

    def __len__(self) -> int:
        """Blocks of all processes together."""
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        first, step = self.rank * self.batch_size, self.world_size * self.batch_size
        begins = range(first, len(self.split), step)
        blocks = [np.arange(begin, min(begin + self.batch_size, len(self.split))) for begin in begins]
        with closing(
            _read(self.split.images, _undrawn(blocks), "none", self.preprocessing, self.workers, alone=True)
        ) as read:
            for positions, images in zip(blocks, read, strict=True):
                finished = normalise(images, self.preprocessing) if images.dtype == torch.uint8 else images
                yield _batch(self.split, positions, finished)


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

    `img_size` is the side of the images in pixels, their own where it is not given. Files are decoded at the first pass, and kept
    as `open_source(cache=)` says, shrunk to 256/224 of `img_size`; those that are no images are left out, with a warning. Mean and
    standard deviation are measured on `split`, of arrays at each call; `TrainingBatches` takes a record that was measured once.
    `UsageError` for a negative epoch or step.
    """
    if epoch < 0 or start_step < 0:
        raise UsageError(f"expected an epoch and a step from 0 on, found epoch {epoch} and step {start_step}")
    size = None if img_size is None else (img_size, img_size)
    if not isinstance(split.images, FileImages):
        yield from TrainingBatches(split, measure_preprocessing(split, size), batch_size, augment, seed)(
            epoch, start_step
        )
        return
    part, record, places = _kept(split, split.images, size)
    workers = split.images.keeping.workers
    for batch in TrainingBatches(part, record, batch_size, augment, seed, workers=workers)(epoch, start_step):
        yield replace(batch, indices=places[batch.indices])


def _kept(
    split: Split, images: FileImages, size: tuple[int, int] | None
) -> tuple[Split, Preprocessing, Tensor]:
    """`split` decoded for images of `size`, its record, and where in `split` each image is; remembered with the images."""
    if size not in images.seen:
        own = images.size
        if own is None and max(size or (0, 0)) <= LARGEST_SMALL_SIZE:
            own = small_size(images, LARGEST_SMALL_SIZE)
        record_size = size or own
        if record_size is None:
            raise _several_sizes()
        part, counts = split, PixelCounts(images.channels, record_size)
        if images.decoded is None:
            resize = None if record_size == own else round(min(record_size) * RESIZE_RATIO)
            part = keep_part(split, resize, available_memory_bytes() // 2, counts)
        resize = part.images.resize if isinstance(part.images, FileImages) else None
        record = measure_preprocessing(part, record_size, resize, images.keeping.workers, counts=counts)
        there = set(part.paths) if len(part) < len(split) else None
        places = [place for place, path in enumerate(split.paths) if there is None or path in there]
        images.seen[size] = part, record, torch.tensor(places)
    return images.seen[size]  # type: ignore[no-any-return]


def measure_preprocessing(
    split: Split,
    size: tuple[int, int] | None = None,
    resize: int | None = None,
    workers: int | None = None,
    *,
    counts: PixelCounts | None = None,
) -> Preprocessing:
    """The record for `split`: its images' own size, or the middle `size` of each; mean and standard deviation of each channel.

    Exact, from counts of each pixel value over all images: from `counts`, where all of these were counted as they were decoded.
    A channel that never changes gets a standard deviation of 1. `UsageError` where no size is given and the images have
    different ones.
    """
    size = size or split.images.size
    if size is None:
        raise _several_sizes()
    mean, std = _counted(split.images, size, workers, counts).mean_and_std()
    return Preprocessing(size=size, resize=resize, channels=split.images.channels, mean=mean, std=std)


def _counted(
    images: Images, size: tuple[int, int], workers: int | None, known: PixelCounts | None
) -> PixelCounts:
    """`known`, where these are of all images, or what an earlier run has kept, or counted now."""

    def count() -> PixelCounts:
        return known if known and known.images == len(images) else _count(images, size, workers)

    decoded = images.decoded if isinstance(images, FileImages) else None
    return kept_counts(decoded, size, count) if decoded and decoded.path else count()


def _count(images: Images, size: tuple[int, int], workers: int | None) -> PixelCounts:
    counts, image_bytes = PixelCounts(images.channels, size), pixels_bytes(images, size)
    at_once = max(1, _MEASURED_AT_ONCE // image_bytes)
    if isinstance(images, ArrayImages) and images.size == size:
        for begin in range(0, len(images), at_once):
            counts.add_all(images.pixels[begin : begin + at_once])
        return counts
    blocks = np.split(np.arange(len(images)), range(at_once, len(images), at_once))

    def count(pixels: Tensor, _: Any) -> Tensor:
        counts.add(pixels.numpy())
        return _WRITTEN

    counted = read_batches(images, _undrawn(blocks), count, workers=workers, image_bytes=image_bytes)
    with closing(counted):
        for _ in counted:
            pass
    return counts


def _several_sizes() -> UsageError:
    return UsageError(
        "expected images of one size, found several; say which the model takes (--img-size, or size= in Python)"
    )


def _read(
    images: Images,
    wanted: Iterable[Drawn],
    how: Cropping,
    record: Preprocessing,
    workers: int | None,
    *,
    alone: bool,
) -> Generator[Tensor, None, None]:
    """The images that are wanted, `[N, C, H, W]`, cropped: in the middle, or with `standard` at random, and mirrored.

    As pixels, or normalised in the threads that crop, where nothing comes between that is done to a batch as a whole (`alone`), and
    they are so large that it pays.
    """
    channels, size = images.channels, record.size
    if isinstance(images, ArrayImages) and images.size == size and how != "standard":
        for positions, _ in wanted:
            yield images.pixels[torch.from_numpy(positions)]
        return
    finished = alone and channels * math.prod(size) >= _LARGE
    # Not tensors yet: of those made in inference mode the threads, which know nothing of it, could write to none.
    shape, dtype = ((*size, channels), np.float32) if finished else ((channels, *size), np.uint8)
    placed = ((positions, draws, np.empty((len(positions), *shape), dtype)) for positions, draws in wanted)
    mine, theirs = both(placed)
    each = ((positions, list(zip(draws, places, strict=True))) for positions, draws, places in theirs)
    image_bytes = pixels_bytes(images, size) * np.dtype(dtype).itemsize
    finish = _finisher(how, record)
    with closing(read_batches(images, each, finish, workers=workers, image_bytes=image_bytes)) as read:
        for (_, _, places), _ in zip(mine, read, strict=True):
            batch = torch.from_numpy(places)
            yield batch.permute(0, 3, 1, 2) if finished else batch


def _finisher(how: Cropping, record: Preprocessing) -> Callable[[Tensor, tuple[Draws, Place]], Tensor]:
    """What crops an image by its draws, and writes it to its place: pixels `[C, H, W]`, or floats `[H, W, C]`, normalised."""
    scales = row_scales(record)

    def finish(image: Tensor, given: tuple[Draws, Place]) -> Tensor:
        draws, place = given
        if how == "standard":
            crop = random_resized_crop(image, record.size, draws[8:])
            crop = mirror(crop) if is_mirrored(draws) else crop
        else:
            crop = centre_crop(image, record.size)
        if place.dtype == np.uint8:
            place[:] = crop.numpy()
        else:
            normalise_image_into(place, crop.numpy().transpose(1, 2, 0), scales)
        return _WRITTEN

    return finish


def _undrawn(shares: Iterable[Positions]) -> Iterator[Drawn]:
    """With no random numbers."""
    return ((positions, np.empty((len(positions), 0))) for positions in shares)


def _as_it_is(image: Tensor, _: Any) -> Tensor:
    return image


def _channels_last(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.channels_last)


def _batch(split: Split, positions: npt.NDArray[np.int64], images: Tensor) -> Batch:
    return Batch(images, torch.from_numpy(split.labels[positions]), torch.from_numpy(positions))


def _mixed_batch(split: Split, needed: npt.NDArray[np.int64], images: Tensor, mixing: Mixing) -> Batch:
    """The last N of `images [N + 1, C, H, W]`, which are those at `needed`, each mixed with the one before it."""
    targets = mix_labels(torch.from_numpy(split.labels[needed]), len(split.classes), mixing)
    return Batch(mix_images_(images, mixing), targets, torch.from_numpy(needed[1:]))
