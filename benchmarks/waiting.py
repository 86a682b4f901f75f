"""What it changes that torch's threads wait for each other asleep rather than spinning, on a machine that others use, too.

    python benchmarks/waiting.py [FOLDER] [--others 0 1 4] [--repeats 5]     # FOLDER: IDX files of Fashion-MNIST

`visus.fit` trains `small` for an epoch of 3,000 images in a process of its own, as it is, with `GOMP_SPINCOUNT=1000` and with
`OMP_WAIT_POLICY=passive`, in turn, beside so many other processes that do nothing but loop.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

from measuring import alternate, header, table

_IMAGES = 3000
_WAYS: dict[str, dict[str, str]] = {
    "spinning": {},
    "spinning 1,000 times, then asleep": {"GOMP_SPINCOUNT": "1000"},
    "asleep": {"OMP_WAIT_POLICY": "passive"},
}


def main() -> None:
    """Print what it ran on, and a table for each number of others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--others", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        print(images_per_second(asked.folder))
        return
    print(f"{header()}; n = {asked.repeats}, alternating")
    for count in asked.others:
        figures = beside(count, asked)
        print(f"\nbeside {count} others\n\n{table(figures, 'spinning', 'images/s')}", flush=True)


def beside(count: int, asked: argparse.Namespace) -> dict[str, list[float]]:
    """Images/s of each way, while `count` other processes count."""
    with ExitStack() as stack:
        for _ in range(count):
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(other.wait)
            stack.callback(other.kill)
        candidates = {name: partial(in_a_process, asked.folder, given) for name, given in _WAYS.items()}
        return alternate(candidates, asked.repeats)


def in_a_process(folder: str, environment: dict[str, str]) -> float:
    """`images_per_second`, in a process with this in its environment."""
    command = [sys.executable, __file__, folder, "--once"]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def images_per_second(folder: str) -> float:
    """Of an epoch after one to warm up."""
    import numpy as np
    import torch

    import visus

    part = visus.open_source(folder).train.subset(np.arange(_IMAGES))
    record = visus.measure_preprocessing(part)
    model = visus.build_model("small", 10, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, fused=True)
    batches: Any = visus.TrainingBatches(part, record, batch_size=100)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        visus.fit(model, batches, None, optimizer=optimizer, epochs=1)
        seconds.append(time.perf_counter() - began)
    return _IMAGES / seconds[-1]


if __name__ == "__main__":
    main()
