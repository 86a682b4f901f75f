"""Processor time that an image costs on each way to a batch of 224 pixels: the rates that `docs/scaling.md` starts from.

    python benchmarks/feeding.py [--images 400] [--repeats 5]

The photographs are crops of scikit-learn's two, as JPEGs of 500 x 375. Processor time is counted, of this process and of those
that it starts, so that a busy machine changes little. Crops of random size and flips; files come from the page cache.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from decoding import make_folder
from measuring import header, processor_seconds

BATCH_SIZE, SIZE, SHORT_SIDE = 64, 224, 256
ORDERED = 1_281_167
"""As many as ImageNet-1k has to train on."""


def milliseconds(count: int, work: Callable[[], object]) -> float:
    """Processor time of `work`, for each of `count` images."""
    return processor_seconds(work) / count * 1000


def epochs_of(source: Path, cache: str) -> Callable[[], None]:
    """All batches of the next epoch, in this process except for the decoding that fills a cache."""
    import visus
    import visus.data

    workers = 0 if cache == "off" else 1
    data = visus.open_source(str(source), cache=cache, val_fraction=0, workers=workers)
    epochs = itertools.count()

    def one() -> None:
        for _ in visus.data.batches(
            data.train, batch_size=BATCH_SIZE, img_size=SIZE, augment="standard", epoch=next(epochs)
        ):
            pass

    return one


def measure(root: Path, count: int, repeat: int) -> dict[str, float]:
    """Each way once, with an empty cache."""
    import visus
    from visus.ops.rng import permutation

    photographs, packed = root / "photographs", root / f"packed-{repeat}"
    os.environ["XDG_CACHE_HOME"] = str(root / f"cache-{repeat}")

    def pack() -> None:
        visus.pack_source(str(photographs), packed, cache_size=SHORT_SIDE, workers=1)

    found = {f"packed once, short side {SHORT_SIDE}": milliseconds(count, pack)}
    for way, source, cache in [
        ("files, cache on disk", photographs, "disk"),
        ("files, no cache", photographs, "off"),
        ("packed, no cache", packed, "off"),
    ]:
        one_epoch = epochs_of(source, cache)
        found[f"{way}: first epoch"] = milliseconds(count, one_epoch)
        found[f"{way}: later epochs"] = milliseconds(count, one_epoch)
    found["the order of an epoch"] = milliseconds(ORDERED, lambda: permutation(repeat, "order", 0, ORDERED))
    return found


def main() -> None:
    """Print what it ran on, and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        size = make_folder(Path(name), given.images) / given.images
        rounds = [measure(Path(name), given.images, repeat) for repeat in range(given.repeats + 1)]
        found = rounds[1:]  # the first has the imports, and whatever else happens once
        packed = sum(path.stat().st_size for path in Path(name).glob("packed-0/*.tar")) / given.images
    print(f"{header('torchvision', 'pillow')}; n = {given.repeats}, alternating")
    print(
        f"{given.images} JPEGs of 500 x 375, {size / 1000:.1f} kB each, {packed / 1000:.1f} kB when packed\n"
    )
    print("| | ms of one processor an image, median | min to max |\n|---|---|---|")
    for way in found[0]:
        values = [each[way] for each in found]
        print(f"| {way} | {statistics.median(values):.3g} | {min(values):.3g} to {max(values):.3g} |")


if __name__ == "__main__":
    main()
