"""What `--compile` gains, and what it costs at the start: `visus.fit` with and without `torch.compile`, in turn.

    python benchmarks/compiling.py [FOLDER] [--model small resnet18] [--amp off]     # FOLDER: IDX files of Fashion-MNIST

6,000 images, batches of 100, two epochs of a fresh model each. Speed is that of the second epoch; what the first takes longer is
the start, which is shorter for a model like one that was compiled before: torch keeps what it made.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from measuring import alternate, header, table

import visus
from visus.data.batching import Batch
from visus.devices import computing
from visus.freed_memory import kept_freed_memory
from visus.ops.optim import OptimizerSettings, make_optimizer

_IMAGES = 6000


class Timed:
    """Training batches that note when each epoch begins and ends."""

    def __init__(self, batches: visus.TrainingBatches) -> None:
        self.batches = batches
        self.seconds: list[float] = []

    def __call__(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Those of `epoch`; its end is noted when the batch after the last is asked for."""
        began = time.perf_counter()
        yield from self.batches(epoch, start)
        self.seconds.append(time.perf_counter() - began)


def rate(name: str, batches: visus.TrainingBatches, amp: str, compiled: bool, starts: list[float]) -> float:
    """Images per second of the second epoch; the seconds that the first takes longer go to `starts`."""
    torch.manual_seed(0)
    # torch compiles a function eight times at most, and runs it as it is from then on.
    torch._dynamo.reset()
    model = visus.build_model(name, 10, in_channels=1).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, OptimizerSettings(lr=0.05))
    timed = Timed(batches)
    visus.fit(model, timed, optimizer=optimizer, epochs=2, amp=amp, compile=compiled)
    first, second = timed.seconds
    starts.append(first - second)
    return _IMAGES / second


def main() -> None:
    """Print a table for each model, and the seconds of the start."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--model", nargs="+", default=["small", "resnet18"])
    parser.add_argument("--amp", default="off", choices=["off", "bf16"])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    split = visus.open_source(given.folder, val_fraction=0).train.subset(np.arange(_IMAGES))
    batches = visus.TrainingBatches(split, visus.measure_preprocessing(split), 100)
    print(f"{header('torchvision')}; {torch.get_num_threads()} threads; amp {given.amp}; n = {given.repeats}")
    with computing(), kept_freed_memory():
        for name in given.model:
            starts: list[float] = []
            candidates = {
                "as it is": lambda name=name: rate(name, batches, given.amp, False, []),
                "compiled": lambda name=name, starts=starts: rate(name, batches, given.amp, True, starts),
            }
            figures = alternate(candidates, given.repeats)
            print(f"\n{name}\n\n{table(figures, 'as it is', 'images/s')}\n")
            print(
                f"The start takes {starts[0]:.1f} s the first time, then {statistics.median(starts[1:]):.1f} s.",
                flush=True,
            )


if __name__ == "__main__":
    main()
