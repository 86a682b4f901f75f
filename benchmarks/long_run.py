"""10,000 steps of `visus.fit` with checkpoints: does the process grow, in memory, file descriptors, threads or children?

    python benchmarks/long_run.py
    python benchmarks/long_run.py --workers 2     # image files, decoded each time, by child processes
    python benchmarks/long_run.py --batch-size 5  # as many steps in a tenth of the epochs: what grows with either

A tiny net on the digits, in memory or as files, 26 steps an epoch, validated each epoch, a checkpoint every 100 steps and each
epoch. The process looks at itself and its children every 50 steps; the first fifth is left out, while allocators and caches fill
up. Some growth is meant: a run keeps the records of its epochs, about 1 KB each. The three pictures are drawn apart from that,
again and again, and garbage is collected before each look: Python collects figures late, and what lies about of them is no leak.
Needs Linux.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from measuring import header
from PIL import Image
from scipy import stats
from torch import nn

import visus
from visus.data.images import Data
from visus.data.keeping import decode_once
from visus.devices import computing
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.recording import RunRecorder
from visus.runs import Record, create_run

_EVERY = 50
_MIB = 1 << 20
_PICTURES = 40
_TOLERATED = {"MiB": 2.0, "": 0.5}
"""A slope is called growth where it is surely above zero and adds up to more than this over what was measured."""


@dataclass
class Samples:
    """What the process was, step by step."""

    steps: list[int] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)
    children: list[float] = field(default_factory=list)
    children_mib: list[float] = field(default_factory=list)

    def take(self, step: int) -> None:
        """Look at this process."""
        children = " ".join(each.read_text() for each in Path("/proc/self/task").glob("*/children")).split()
        self.steps.append(step)
        self.memory_mib.append(resident_mib("self"))
        self.children_mib.append(sum(map(resident_mib, children)))
        self.descriptors.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(len(os.listdir("/proc/self/task")))
        self.children.append(len(children))


def resident_mib(process: str) -> float:
    """What a process has in memory, in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


class WithoutPictures(RunRecorder):
    """Writes all that a run writes but the curves."""

    def draw_curves(self, records: list[Record]) -> None:
        """Draw nothing."""


def digits_as_files(folder: Path) -> Data:
    """The digits as PNG files in class folders, none of them kept in memory."""
    digits = visus.open_source("digits")
    for part, name in ((digits.train, "train"), (digits.val, "val")):
        for position, label in enumerate(part.labels):
            path = folder / name / digits.classes[label] / f"{position:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part.images.pixels[position, 0].numpy()).save(path)
    return decode_once(visus.open_source(folder), channels=1, resize=None, memory_bytes=0, cache="off")


def train(
    steps: int, samples: Samples, recorder: RunRecorder, data: Data, workers: int, batch_size: int
) -> int:
    """Train for about `steps`; the number of steps made."""
    record = visus.measure_preprocessing(data.train, (8, 8))
    batches = visus.TrainingBatches(data.train, record, batch_size, "light", workers=workers)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    optimizer = make_optimizer(model, OptimizerSettings(lr=0.01))

    def schedule(step: int) -> float:
        if step % _EVERY == 0 and step not in samples.steps[-1:]:
            samples.take(step)
        return 1.0

    epochs = -(-steps // len(batches))
    val = visus.EvaluationBatches(data.val, record, batch_size, workers=workers)
    visus.fit(model, batches, val, optimizer=optimizer, epochs=epochs, schedule=schedule, recorder=recorder)
    return epochs * len(batches)


def describe(
    name: str, unit: str, places: list[int], values: list[float], left_out: float
) -> tuple[str, bool]:
    """A line of the table, and whether the values grow."""
    first = int(len(places) * left_out)
    line = stats.linregress(places[first:], values[first:])
    # A constant has no correlation, and scipy then no error of it.
    margin = 0.0 if np.isnan(line.stderr) else 1.96 * line.stderr
    total = line.slope * (places[-1] - places[first])
    grows = bool(line.slope - margin > 0 and total > _TOLERATED[unit])
    start, end = np.mean(values[first : first + 10]), np.mean(values[-10:])
    slope = f"{1000 * line.slope:+.3f} +- {1000 * margin:.3f}"
    return (
        f"| {name} | {start:.2f} | {end:.2f} | {slope} | {total:+.2f} | {'yes' if grows else 'no'} |",
        grows,
    )


def rows(what: str, samples: Samples, left_out: float) -> list[tuple[str, bool]]:
    """Of each figure a line."""
    figures = {
        ("resident memory, MiB", "MiB"): samples.memory_mib,
        ("file descriptors", ""): samples.descriptors,
        ("threads", ""): samples.threads,
        ("child processes", ""): samples.children,
        ("resident memory of these, MiB", "MiB"): samples.children_mib,
    }
    return [
        describe(f"{what}: {name}", unit, samples.steps, values, left_out)
        for (name, unit), values in figures.items()
    ]


def main() -> None:
    """Print a table; exit code 1 where something grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that decode files; 0: images in memory"
    )
    parser.add_argument("--batch-size", type=int, default=50)
    options = parser.parse_args()
    training, pictures = Samples(), Samples()
    with tempfile.TemporaryDirectory() as folder, computing(threads=1):
        recorder = WithoutPictures(create_run(folder, "long"), every="100steps")
        data = digits_as_files(Path(folder) / "images") if options.workers else visus.open_source("digits")
        steps = train(options.steps, training, recorder, data, options.workers, options.batch_size)
        records = recorder.run.records()
        for number in range(_PICTURES):
            RunRecorder.draw_curves(recorder, records)
            gc.collect()
            pictures.take(number)
    found = rows("training", training, 0.2) + rows("pictures", pictures, 0.2)
    print(f"{header()}; {steps} steps, {len(training.steps)} samples; {_PICTURES} times the pictures\n")
    print("| | at first | in the end | slope per 1,000 (95 %, as of independent samples) | in all | grows |")
    print("|---|---|---|---|---|---|")
    print("\n".join(text for text, _ in found))
    sys.exit(any(grows for _, grows in found))


if __name__ == "__main__":
    main()
