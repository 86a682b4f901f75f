"""What checkpoints cost the loop: `visus.fit` with one every few steps beside none, and what that comes to at one a minute.

    python benchmarks/checkpoint_cost.py [FOLDER]     # of Fashion-MNIST's IDX files (Debian: dataset-fashion-mnist)

One epoch each, in one process, in turn; both write the checkpoint of the end of the epoch and wait for it. The difference in
seconds over the number of checkpoints is the cost of one: the copy that the loop waits for, and what the writer's thread (hashing,
writing, syncing, reading back) takes from the loop. They come far more often than one a minute, so that the difference can be seen.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import alternate, header, table

import visus
from visus.data.images import Split
from visus.devices import computing
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.preprocessing import Preprocessing
from visus.recording import RunRecorder
from visus.runs import create_run

_BATCH_SIZE = 100
_SIZES = {"small": (12_000, 12), "resnet18": (6_000, 12)}
"""Images of the epoch, and steps from one checkpoint to the next, by model."""


def training(name: str, split: Split, record: Preprocessing, every: str, work: Path) -> Callable[[], float]:
    """Seconds of an epoch with a checkpoint `every` so often."""
    batches = visus.TrainingBatches(split, record, _BATCH_SIZE, "none")

    def measure() -> float:
        torch.manual_seed(0)
        model = visus.build_model(name, 10, in_channels=1).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, OptimizerSettings(lr=0.05))
        recorder = RunRecorder(create_run(work, "run"), every=every)
        # The pictures are no part of a checkpoint.
        recorder.draw_curves = lambda _: None
        began = time.perf_counter()
        visus.fit(model, batches, optimizer=optimizer, epochs=1, recorder=recorder)
        seconds = time.perf_counter() - began
        assert recorder.failure is None, recorder.failure
        shutil.rmtree(recorder.run.path)
        return seconds

    return measure


def report(name: str, figures: dict[str, list[float]], images: int, saves: int) -> str:
    """Images per second, the cost of a checkpoint, and its share at one a minute."""
    none, many = figures.values()
    speeds = {key: [images / seconds for seconds in values] for key, values in figures.items()}
    costs = [(slow - quick) / saves for quick, slow in zip(none, many, strict=True)]
    low, middle, high = min(costs), statistics.median(costs), max(costs)
    return (
        f"\n{name}: {images} images, {saves} checkpoints\n\n{table(speeds, 'none', 'images/s')}\n\n"
        f"One checkpoint costs the loop {1000 * middle:.1f} ms ({1000 * low:.1f} to {1000 * high:.1f}); "
        f"at one a minute {100 * middle / 60:.3f} % ({100 * low / 60:.3f} to {100 * high / 60:.3f})."
    )


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
            # The last step's checkpoint is that of the epoch, which both write, beside its own.
            saves = images // _BATCH_SIZE // every
            candidates = {
                "none": training(name, split, record, "1000h", Path(folder)),
                f"every {every} steps": training(name, split, record, f"{every}steps", Path(folder)),
            }
            print(report(name, alternate(candidates, options.repeats), images, saves))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
