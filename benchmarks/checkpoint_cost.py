"""What checkpoints cost the loop: `visus.fit` with one every few steps beside none, and what that comes to at one a minute.

    python benchmarks/checkpoint_cost.py [FOLDER]     # of Fashion-MNIST's IDX files (Debian: dataset-fashion-mnist)

One epoch each, in one process, in turn; both write the checkpoint of the end of the epoch and wait for it. The differences, over
the number of checkpoints, are the cost of one: in wall time; in time of the processor, which is what hashing, writing and reading
back take from the loop where there is no core to spare, and which other processes disturb less; and directly, how long the loop
waited for the copy, or for the writer's thread where that fell behind. They come far more often than one a minute, to be seen.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import alternate, header, table

import visus
from visus.checkpoint import Tensors
from visus.data.images import Split
from visus.devices import computing
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.preprocessing import Preprocessing
from visus.recording import RunRecorder
from visus.runs import Record, create_run

_BATCH_SIZE = 100
_SIZES = {"small": (6_000, 2), "resnet18": (3_000, 5)}
"""Images of the epoch, and steps from one checkpoint to the next, by model."""


class Timed(RunRecorder):
    """Knows how long the loop waited for it; draws nothing, since pictures are no part of a checkpoint."""

    waited = 0.0

    def save_last(self, tensors: Tensors, plain: Mapping[str, Any]) -> None:
        """Write as ever."""
        began = time.perf_counter()
        super().save_last(tensors, plain)
        self.waited += time.perf_counter() - began

    def draw_curves(self, records: list[Record]) -> None:
        """Draw nothing."""


@dataclass
class Epoch:
    """An epoch with a checkpoint `every` so often; each call adds to the figures."""

    name: str
    split: Split
    record: Preprocessing
    every: str
    work: Path
    processor: list[float] = field(default_factory=list)
    """Seconds of it, of all threads."""
    waited: list[float] = field(default_factory=list)
    """Seconds in which the loop stood still for the recorder."""

    def __call__(self) -> float:
        """Train; the seconds that it took."""
        batches = visus.TrainingBatches(self.split, self.record, _BATCH_SIZE, "none")
        torch.manual_seed(0)
        model = visus.build_model(self.name, 10, in_channels=1).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, OptimizerSettings(lr=0.05))
        recorder = Timed(create_run(self.work, "run"), every=self.every)
        began, processor = time.perf_counter(), time.process_time()
        visus.fit(model, batches, optimizer=optimizer, epochs=1, recorder=recorder)
        seconds = time.perf_counter() - began
        self.processor.append(time.process_time() - processor)
        self.waited.append(recorder.waited)
        assert recorder.failure is None, recorder.failure
        shutil.rmtree(recorder.run.path)
        return seconds


def cost(what: str, without: list[float], having: list[float], saves: int) -> str:
    """A line: milliseconds that one checkpoint costs, and their share at one a minute."""
    costs = [(more - less) / saves for less, more in zip(without, having, strict=True)]
    low, middle, high = min(costs), statistics.median(costs), max(costs)
    return (
        f"| {what} | {1000 * middle:.1f} | {1000 * low:.1f} to {1000 * high:.1f} | "
        f"{100 * middle / 60:.3f} % ({100 * low / 60:.3f} to {100 * high / 60:.3f}) |"
    )


def report(name: str, repeats: int, none: Epoch, many: Epoch) -> str:
    """Images per second, and the cost of a checkpoint."""
    images, every = _SIZES[name]
    saves = images // _BATCH_SIZE // every
    figures = alternate({"none": none, f"every {every} steps": many}, repeats)
    speeds = {key: [images / seconds for seconds in values] for key, values in figures.items()}
    lines = [
        f"\n{name}: {images} images, {saves} checkpoints\n\n{table(speeds, 'none', 'images/s')}\n",
        "| one checkpoint costs | ms, median | min to max | at one a minute |\n|---|---|---|---|",
        cost("wall time", *figures.values(), saves),
        # The first round is to warm up.
        cost("processor time", none.processor[1:], many.processor[1:], saves),
        cost("the loop waits", none.waited[1:], many.waited[1:], saves),
    ]
    return "\n".join(lines)


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--model", nargs="+", choices=list(_SIZES), default=list(_SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    data = visus.open_source(options.folder, val_fraction=0)
    print(f"{header()}; {torch.get_num_threads()} threads; n = {options.repeats}")
    with computing(), tempfile.TemporaryDirectory() as folder:
        for name in options.model:
            images, every = _SIZES[name]
            split = data.train.subset(np.arange(images))
            record = visus.measure_preprocessing(split)
            none = Epoch(name, split, record, "1000h", Path(folder))
            many = Epoch(name, split, record, f"{every}steps", Path(folder))
            print(report(name, options.repeats, none, many))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
