"""Images/s from a folder of photographs to batches of 224 pixels, cropped at random and flipped, and the memory that it takes.

    python benchmarks/folder.py [--images 5000] [--processors 1] [--repeats 5]

The photographs are crops of scikit-learn's two, as JPEGs of 500 x 375. Each candidate runs in a process of its own, and with
its children on `--processors` of the machine's: torchvision's `ImageFolder` under a `DataLoader`, timm's loader (bilinear,
without its colour jitter), `visus.data.batches` for the first epoch, which decodes every file, writes the decode-once cache and
measures mean and standard deviation, and for the epoch after it. With one processor the loaders have no workers, which is
faster there. Imports and listing are not counted. Files come from the page cache of the operating system, and what the one
before wrote is on the disk when one begins. Memory is the highest sum of proportional set sizes of the process and its
children, above what it has when all is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from decoding import make_folder
from measuring import header

BATCH_SIZE, SIZE = 64, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def with_torchvision(folder: Path, workers: int) -> Callable[[], Iterable[Any]]:
    """An epoch of torchvision's."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    data = ImageFolder(str(folder), transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]))
    loader = DataLoader(data, BATCH_SIZE, shuffle=True, num_workers=workers)
    return lambda: loader


def with_timm(folder: Path, workers: int) -> Callable[[], Iterable[Any]]:
    """An epoch of timm's."""
    import torch
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", str(folder)),
        (3, SIZE, SIZE),
        BATCH_SIZE,
        is_training=True,
        interpolation="bilinear",
        color_jitter=None,
        num_workers=workers,
        use_prefetcher=False,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    return lambda: loader


def with_visus(folder: Path, workers: int) -> Callable[[], Iterable[Any]]:
    """An epoch of ours, the next one each time."""
    import itertools

    import visus
    from visus.data import batches

    data = visus.open_source(folder, val_fraction=0, workers=max(1, workers))
    epochs = itertools.count()
    return lambda: batches(
        data.train, batch_size=BATCH_SIZE, img_size=SIZE, augment="standard", epoch=next(epochs)
    )


CANDIDATES = {"torchvision": with_torchvision, "timm": with_timm, "visus": with_visus}


def measure(name: str, folder: Path, processors: int) -> list[dict[str, float]]:
    """Images/s and MiB of the first epoch and of the one after it."""
    import torch

    torch.set_num_threads(processors)
    epoch = CANDIDATES[name](folder, processors if processors > 1 else 0)
    before = memory_mb()
    return [one_epoch(epoch, before) for _ in range(2)]


def one_epoch(epoch: Callable[[], Iterable[Any]], before_mb: float) -> dict[str, float]:
    """Images/s, and the most memory above `before_mb`."""
    peak, over = [before_mb], threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            peak.append(memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    count = sum(len(images) for images, _ in epoch())
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    return {"images_per_second": count / seconds, "memory_mb": max(peak) - before_mb}


def memory_mb() -> float:
    """Proportional set size of this process and all under it, in MiB."""
    total, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
            for thread in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (thread / "children").read_text(encoding="utf-8").split())
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def in_a_process(name: str, folder: Path, cache: Path, processors: int) -> list[dict[str, float]]:
    """`measure`, in a new process with an empty cache, which is gone afterwards."""
    os.sync()
    cores = sorted(os.sched_getaffinity(0))[:processors]
    command = [sys.executable, __file__, "--candidate", name, "--folder", str(folder)]
    done = subprocess.run(
        [*command, "--processors", str(processors)],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    found: list[dict[str, float]] = json.loads(done.stdout)
    shutil.rmtree(cache, ignore_errors=True)
    return found


def main() -> None:
    """Print what it ran on, and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--processors", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--candidate", choices=list(CANDIDATES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.candidate:
        print(json.dumps(measure(given.candidate, given.folder, given.processors)))
        return
    with tempfile.TemporaryDirectory() as name:
        average = make_folder(Path(name), given.images) // given.images
        print(f"{header('torchvision', 'timm', 'pillow')}; {given.processors} processors")
        print(
            f"{given.images} JPEGs of 500 x 375, {average // 1024} KiB each; n = {given.repeats}, alternating\n"
        )
        print_table(Path(name), given)


def print_table(root: Path, given: argparse.Namespace) -> None:
    """One row for each candidate: of loaders their second epoch, of ours both."""
    found: dict[str, list[dict[str, float]]] = {}
    for repeat in range(given.repeats):
        for name in CANDIDATES:
            first, later = in_a_process(
                name, root / "photographs", root / f"cache-{repeat}", given.processors
            )
            if name == "visus":
                found.setdefault("visus, first epoch", []).append(first)
            found.setdefault("visus, later epochs" if name == "visus" else name, []).append(later)
    loaders = [found[name] for name in ("torchvision", "timm")]
    best = [max(each["images_per_second"] for each in both) for both in zip(*loaders, strict=True)]
    print("| | images/s, median | min to max | against the better of torchvision and timm | memory, MiB |")
    print("|---|---|---|---|---|")
    for name, runs in found.items():
        speeds = [each["images_per_second"] for each in runs]
        ratio = statistics.median(speed / other for speed, other in zip(speeds, best, strict=True))
        memory = statistics.median(each["memory_mb"] for each in runs)
        print(
            f"| {name} | {statistics.median(speeds):.4g} | {min(speeds):.4g} to {max(speeds):.4g} | {ratio:.2f} | {memory:.0f} |"
        )


if __name__ == "__main__":
    main()
