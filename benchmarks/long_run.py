"""10,000 steps of `visus.fit` with checkpoints: does the process grow, in memory, file descriptors, threads or children?

    python benchmarks/long_run.py

A tiny net on the digits, in memory, 26 steps an epoch, validated each epoch, a checkpoint every 100 steps and each epoch. The
process looks at itself every 50 steps; the first fifth is left out, while allocators and caches fill up. Some growth is meant: a
run keeps the records of its epochs, about 1 KB each. The three pictures are drawn apart from that, again and again, and garbage is
collected before each look: Python collects figures late, and what lies about of them is no leak. Needs Linux.
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
from scipy import stats
from torch import nn

import visus
from visus.devices import computing
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.recording import RunRecorder
from visus.runs import Record, create_run

_BATCH_SIZE = 50
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

    def take(self, step: int) -> None:
        """Look at this process."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        self.steps.append(step)
        self.memory_mib.append(pages * os.sysconf("SC_PAGE_SIZE") / _MIB)
        self.descriptors.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(len(os.listdir("/proc/self/task")))
        self.children.append(len(children))


class WithoutPictures(RunRecorder):
    """Writes all that a run writes but the curves."""

    def draw_curves(self, records: list[Record]) -> None:
        """Draw nothing."""


def train(steps: int, samples: Samples, recorder: RunRecorder) -> int:
    """Train for about `steps`; the number of steps made."""
    data = visus.open_source("digits")
    record = visus.measure_preprocessing(data.train)
    batches = visus.TrainingBatches(data.train, record, _BATCH_SIZE, "light")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    optimizer = make_optimizer(model, OptimizerSettings(lr=0.01))

    def schedule(step: int) -> float:
        if step % _EVERY == 0 and step not in samples.steps[-1:]:
            samples.take(step)
        return 1.0

    epochs = -(-steps // len(batches))
    val = visus.EvaluationBatches(data.val, record, _BATCH_SIZE)
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
    options = parser.parse_args()
    training, pictures = Samples(), Samples()
    with tempfile.TemporaryDirectory() as folder, computing(threads=1):
        recorder = WithoutPictures(create_run(folder, "long"), every="100steps")
        steps = train(options.steps, training, recorder)
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
