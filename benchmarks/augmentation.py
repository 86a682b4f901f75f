"""Milliseconds of one processor to make a batch of 100 by each kind of augmentation, beside torchvision, image by image.

    python benchmarks/augmentation.py [--repeats 5] [--size 28 32 224]

Random images in memory: 28 x 28 grey, 32 x 32 RGB, 224 x 224 RGB (cropped from 256 x 256). Both sides take uint8, change it,
make float32 of it, normalise it and stack it; ours draws its numbers and brings the batch into channels-last layout besides. One
thread.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from measuring import alternate, header
from torch import Tensor
from torchvision.transforms import v2

import visus
from visus.data.arrays import array_split
from visus.data.images import ArrayImages, Split

_BATCH_SIZE = 100
_KINDS: dict[str, dict[str, object]] = {
    "none": {},
    "flip": {"augment": "flip"},
    "light": {"augment": "light"},
    "standard": {"augment": "standard"},
    "trivial": {"augment": "trivial"},
    "rand": {"augment": "rand"},
    "light + erasing 0.25": {"augment": "light", "erasing": 0.25},
    "light + mixup 0.2": {"augment": "light", "mixup": 0.2},
    "light + cutmix 1": {"augment": "light", "cutmix": 1.0},
}


def images_of(size: int) -> Split:
    """Three batches: noise over gentle slopes, a little larger than what a model of 224 takes."""
    side, channels = (256, 3) if size == 224 else (size, 1 if size == 28 else 3)
    random = np.random.default_rng(0)
    n = 3 * _BATCH_SIZE
    pixels = random.integers(0, 64, (n, side, side, channels), np.uint8)
    pixels += np.linspace(0, 191, side).astype(np.uint8)[None, :, None, None]
    return array_split("train", pixels, np.arange(n) % 10, None, "noise")


def ours(split: Split, size: int, options: dict[str, object]) -> Callable[[], float]:
    """Milliseconds a batch of `TrainingBatches`."""
    record = visus.measure_preprocessing(split, (size, size))
    batches = visus.TrainingBatches(split, record, _BATCH_SIZE, **options)
    epochs = itertools.count()

    def measure() -> float:
        began = time.process_time()
        n = sum(1 for _ in batches(next(epochs)))
        return (time.process_time() - began) * 1000 / n

    return measure


def theirs(split: Split, size: int, options: dict[str, object]) -> Callable[[], float]:
    """Milliseconds a batch of torchvision's transforms, one image at a time, as a data loader without workers would."""
    assert isinstance(split.images, ArrayImages)
    record = visus.measure_preprocessing(split, (size, size))
    transform = torchvision_transform(size, record.mean, record.std, options)
    mix = mixing(options)
    pixels, labels = split.images.pixels, torch.from_numpy(split.labels)

    def measure() -> float:
        order = torch.randperm(len(pixels))
        began = time.process_time()
        for places in order.split(_BATCH_SIZE):
            mix(torch.stack([transform(pixels[place]) for place in places]), labels[places])
        return (time.process_time() - began) * 1000 / (len(pixels) / _BATCH_SIZE)

    return measure


def torchvision_transform(
    size: int, mean: tuple[float, ...], std: tuple[float, ...], options: dict[str, object]
) -> v2.Transform:
    """The same steps by torchvision."""
    how = options.get("augment", "none")
    crops = {
        "none": [v2.CenterCrop(size)] if size == 224 else [],
        "light": [
            *([v2.CenterCrop(size)] if size == 224 else []),
            v2.RandomCrop(size, padding=size // 8),
            v2.RandomHorizontalFlip(),
        ],
        "flip": [*([v2.CenterCrop(size)] if size == 224 else []), v2.RandomHorizontalFlip()],
        "standard": [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()],
    }
    policy = {"trivial": [v2.TrivialAugmentWide()], "rand": [v2.RandAugment()]}.get(str(how), [])
    cropped = crops.get(str(how)) or (crops["standard" if size > 64 else "light"] if policy else [])
    erasing = [v2.RandomErasing(options["erasing"])] if "erasing" in options else []
    return v2.Compose(
        [*cropped, *policy, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), *erasing]
    )


def mixing(options: dict[str, object]) -> Callable[[Tensor, Tensor], object]:
    """torchvision's, on the stacked batch."""
    if "mixup" in options:
        return v2.MixUp(alpha=options["mixup"], num_classes=10)
    if "cutmix" in options:
        return v2.CutMix(alpha=options["cutmix"], num_classes=10)
    return lambda images, targets: (images, targets)


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, nargs="+", default=[28, 32, 224])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{header('torchvision')}; 1 thread; n = {options.repeats}")
    for size in options.size:
        split = images_of(size)
        print(f"\n{size} x {size}\n\n| | visus, ms | min to max | torchvision, ms | min to max | ratio |")
        print("|---|---|---|---|---|---|")
        for name, kind in _KINDS.items():
            both = {"visus": ours(split, size, kind), "torchvision": theirs(split, size, kind)}
            print(row(name, alternate(both, options.repeats)))
            sys.stdout.flush()


def row(name: str, figures: dict[str, list[float]]) -> str:
    """Medians, ranges and the median of the ratios, round by round."""
    cells = [f"{statistics.median(v):.3g} | {min(v):.3g} to {max(v):.3g}" for v in figures.values()]
    ratios = [slow / fast for fast, slow in zip(*figures.values(), strict=True)]
    return f"| {name} | {' | '.join(cells)} | {statistics.median(ratios):.1f} |"


if __name__ == "__main__":
    main()
