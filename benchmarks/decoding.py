"""How fast a folder of photographs is decoded, and how fast an epoch goes from each kind of cache.

python benchmarks/decoding.py --images 1000

The photographs are crops of scikit-learn's two, as JPEGs of 500 x 375. "In this process" decodes one after the other without a
child process. An epoch is that of `visus train` without a model: batches of 64 with the `standard` augmentation, at 224 of 256
pixels, and their normalisation. Files come from the page cache of the operating system, also for "disk".
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from measuring import alternate, header, table

SIDE = 256


def make_folder(root: Path, count: int) -> int:
    """`count` photographs in two classes; returns their bytes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(each) for each in load_sample_images().images]
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % 2]
        left, top = (
            int(random.integers(limit + 1)) for limit in (photograph.width - 500, photograph.height - 375)
        )
        path = root / "photographs" / "ab"[number % 2] / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((left, top, left + 500, top + 375)).save(path, quality=90)
    return sum(path.stat().st_size for path in root.rglob("*.jpg"))


def timed(count: int, work: Callable[[], object]) -> float:
    """Images per second."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def main() -> None:
    """Print what it ran on, and the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")
        average = make_folder(Path(name), given.images) // given.images
        print(f"{header('numpy', 'pillow')}; {given.images} JPEGs of 500 x 375, {average // 1024} KiB each")
        measure(Path(name) / "photographs", given)


def measure(folder: Path, given: argparse.Namespace) -> None:
    """The tables for the photographs in `folder`."""
    import torch

    from visus.data.batching import TrainingBatches
    from visus.data.cache import remove_caches
    from visus.data.decode import decode_image
    from visus.data.files import decode_all
    from visus.data.keeping import decode_once
    from visus.data.sources import open_source
    from visus.preprocessing import Preprocessing
    from visus.processors import processors

    torch.set_num_threads(given.threads)
    every = open_source(folder, val_fraction=0)
    images = every.train.images
    count = len(images)

    def here() -> None:
        for path in images.paths:
            decode_image(images.root / path, resize=SIDE)

    def opened(cache: str) -> object:
        return decode_once(every, resize=SIDE, memory_bytes=2**40, cache=cache)

    def built() -> object:
        remove_caches("all")
        return opened("disk")

    def all_of(workers: int) -> None:
        for _ in decode_all(replace(images, resize=SIDE), workers):
            pass

    children = {f"in {n} child processes": partial(all_of, n) for n in sorted({1, 2, processors()})}
    works = {
        "in this process": here,
        **children,
        "to a new cache": built,
        "from a cache": partial(opened, "disk"),
    }
    candidates = {name: partial(timed, count, work) for name, work in works.items()}
    print(f"\nDecoding, n = {given.repeats}\n")
    print(table(alternate(candidates, given.repeats), "in this process", "images/s"))
    record = Preprocessing((224, 224), 3, (0.5,) * 3, (0.25,) * 3, SIDE)

    def epoch(batches: TrainingBatches) -> None:
        for batch in batches(0):
            batch.images.sum()

    epochs = {
        cache: partial(
            timed,
            count,
            partial(epoch, TrainingBatches(opened(cache).train, record, min(64, count), "standard")),
        )
        for cache in ("ram", "disk", "off")
    }
    print(f"\nAn epoch of batches, {given.threads} threads, n = {given.repeats}\n")
    print(table(alternate(epochs, given.repeats), "ram", "images/s"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"\nPeak resident memory of the whole: {peak} MiB; decoded, the set has {count * 3 * 341 * 256 >> 20} MiB"
    )


if __name__ == "__main__":
    main()
