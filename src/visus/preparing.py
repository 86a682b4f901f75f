"""From the settings of a run to its images, decoded once, and what happens to each before the model sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from visus.config import TrainConfig, default_batch_size
from visus.data.augment import LARGEST_SMALL_SIZE, cropping
from visus.data.batching import batch_sizes, measure_preprocessing
from visus.data.counts import PixelCounts
from visus.data.files import FileImages, small_size
from visus.data.images import Data, Split
from visus.data.keeping import decode_once
from visus.data.listing import fingerprint, part_fingerprint
from visus.data.sources import open_source
from visus.devices import available_memory_bytes
from visus.display import ONE_LINE, Display, plural
from visus.errors import DataError, UsageError
from visus.models.hollow import check_weights
from visus.models.weights import pretrained_preprocessing
from visus.preprocessing import RESIZE_RATIO, Interpolation, Preprocessing
from visus.processes import ALONE, Processes
from visus.trying import check_size

_LARGE_SIZE = 224


@dataclass(frozen=True)
class Prepared:
    """The data of a run, with parts to train and to validate on, and the record that goes with it."""

    data: Data
    preprocessing: Preprocessing
    tested: str
    """The fingerprint of the part that the run is tested on, or of its validation part where it has none, before it was decoded."""

    @property
    def train(self) -> Split:
        """The part to train on."""
        assert self.data.train is not None
        return self.data.train

    @property
    def val(self) -> Split:
        """The part to validate on."""
        assert self.data.val is not None
        return self.data.val

    def close(self) -> None:
        """End the child processes that decode."""
        for part in (self.data.train, self.data.val, self.data.test):
            if part and isinstance(part.images, FileImages):
                part.images.decoders.close()

    @cached_property
    def fingerprint(self) -> str:
        """Of classes, split and images; reckoned once."""
        return fingerprint(self.data)


def prepare(config: TrainConfig, display: Display, processes: Processes = ALONE) -> Prepared:
    """The data that `config` names, and its record: measured on the training part, or that of the weights to start from.

    All of several `processes` call this alike.
    """
    data, part = _open_parts(config)
    tested = _tested(data)
    pretrained = pretrained_preprocessing(config.model, config.weights) if config.weights else None
    size, resize = _geometry(config, part, pretrained)
    # Before files are decoded, so that nobody waits for a refusal.
    _check_batch(config, part, size)
    _check_weights(config, part, size)
    channels = part.images.channels
    if isinstance(part.images, FileImages):
        check_size(config.model, size, channels, img_size=config.img_size, stem=config.stem)
    interpolation: Interpolation = pretrained.interpolation if pretrained else "bilinear"
    counts = None if pretrained else PixelCounts(channels, size)
    data = _decode(data, channels, config, size, resize, interpolation, display, processes, counts)
    if pretrained is None:
        assert data.train is not None
        record = measure_preprocessing(data.train, size, resize, config.workers, counts=counts)
        return Prepared(data, record, tested)
    record = pretrained.for_channels(channels)
    return Prepared(data, replace(record, size=size, resize=resize), tested)


def prepare_again(
    config: TrainConfig, preprocessing: Preprocessing, display: Display, processes: Processes = ALONE
) -> Prepared:
    """The data that `config` names, for a run that has its record already."""
    data, part = _open_parts(config)
    size, resize, interpolation = preprocessing.size, preprocessing.resize, preprocessing.interpolation
    tested = _tested(data)
    data = _decode(data, part.images.channels, config, size, resize, interpolation, display, processes)
    return Prepared(data, preprocessing, tested)


def _open_parts(config: TrainConfig) -> tuple[Data, Split]:
    """The data, not decoded yet, and its training part."""
    data = open_source(
        config.data,
        val=config.val,
        val_fraction=config.val_fraction,
        split_seed=config.split_seed,
        exclude=config.exclude,
    )
    if data.train is None or data.val is None or not len(data.val):
        count = sum(len(part) for part in (data.train, data.val) if part)
        raise DataError(
            f"{data.source}: expected images to train and to validate on, found {plural(count, 'image')} of "
            f"{plural(len(data.classes), 'class', 'classes')}, of which --val-fraction {config.val_fraction:g} leaves none for one "
            "of the two; change it, or name others with --val"
        )
    return data, data.train


def _tested(data: Data) -> str:
    part = data.test or data.val
    assert part is not None
    return part_fingerprint(part)


def _geometry(
    config: TrainConfig, part: Split, pretrained: Preprocessing | None
) -> tuple[tuple[int, int], int | None]:
    """Height and width that the model takes, and the short side that images are shrunk to before they are cropped."""
    own = part.images.size or small_size(part.images, LARGEST_SMALL_SIZE)
    # The side that a run has stored as its own must mean the same when the run is repeated.
    asked = (config.img_size, config.img_size) if config.img_size else None
    if pretrained and asked in (None, pretrained.size):
        return pretrained.size, pretrained.resize
    if own and max(own) <= LARGEST_SMALL_SIZE and asked in (None, own):
        return own, None
    known = pretrained and pretrained.resize
    ratio = known / min(pretrained.size) if pretrained and known else RESIZE_RATIO
    side = config.img_size or _LARGE_SIZE
    return (side, side), round(side * ratio)


def _check_batch(config: TrainConfig, part: Split, size: tuple[int, int]) -> None:
    """`UsageError` where a batch is larger than the set, or than memory by its images alone."""
    batch_size = default_batch_size(config, part)
    batch_sizes(len(part), batch_size)
    needed, free = 4 * batch_size * part.images.channels * math.prod(size), available_memory_bytes()
    if needed > free:
        shown = f"{batch_size} images of {size[0]}x{size[1]}"
        raise UsageError(
            f"expected a batch that fits in memory ({free >> 20} MB are free), found {shown} ({needed >> 20} MB); "
            "lower --batch-size or --img-size"
        )


def _check_weights(config: TrainConfig, part: Split, size: tuple[int, int]) -> None:
    """`CheckpointError` or `UsageError` where the weights to start from cannot be had, or are those of another model."""
    if config.weights is None:
        return
    check_weights(
        config.model,
        len(part.classes),
        config.weights,
        in_channels=part.images.channels,
        img_size=size[0] if size[0] == size[1] else None,
        stem=config.stem,
    )


def _decode(
    data: Data,
    channels: int,
    config: TrainConfig,
    size: tuple[int, int],
    resize: int | None,
    interpolation: str,
    display: Display,
    processes: Processes,
    counts: PixelCounts | None = None,
) -> Data:
    # Larger training images serve crops of random size only: others would show a smaller part of them than evaluation does.
    random_size = cropping(config.augment or "standard", size) == "standard" and resize is not None
    if config.cache_size and not (random_size and isinstance(data.train and data.train.images, FileImages)):
        display.line("--cache-size changes nothing: no crops of random size are made of files")
    data = decode_once(
        data,
        channels=channels,
        resize=resize,
        cache_size=config.cache_size if random_size else None,
        interpolation=interpolation,
        max_bad=config.max_bad,
        max_pixels=round(config.max_pixels * 1e6),
        # Processes on one machine share a file, but each has a copy of what is in memory.
        memory_bytes=available_memory_bytes() // (2 * processes.local_size),
        cache=config.cache,
        workers=config.workers,
        progress=lambda done, total: display.count("decoded", done, total),
        say=display.line,
        counts=counts,
        processes=processes,
    )
    for each in data.skipped:
        display.line(f"skipped {each.path}: {each.reason}".translate(ONE_LINE))
    return data
