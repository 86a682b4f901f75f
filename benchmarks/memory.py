"""Peak memory of `visus train` on Fashion-MNIST, against importing torch and building the model, and the raw images.

    python benchmarks/memory.py DATA [--model small] [--batch-size 100] [--repeats 3]

DATA is the folder of the four IDX files. Every figure is the highest resident set of a process of its own: one that imports torch
and builds the model, and one that trains it for an epoch, with validation, checkpoints, curves and the test at the end.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import header

LIMIT_MB = 150


def peak_mb(command: list[str]) -> float:
    """The highest resident set of a command, in MiB; what it prints goes to stderr."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], stdout=sys.stderr, check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, check=True)
    # KiB on Linux, bytes on macOS.
    return int(done.stdout) / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Print what it ran on, and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="small")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(f"{header('numpy')}; {given.model}, batches of {given.batch_size}; n = {given.repeats}\n")
    build = f"import torch, visus; visus.build_model({given.model!r}, 10, in_channels=1)"
    alone = [peak_mb([sys.executable, "-c", build]) for _ in range(given.repeats)]
    trained = []
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as out:
            run = ["train", str(given.data), "--model", given.model, "--batch-size", str(given.batch_size)]
            options = ["--epochs", "1", "--amp", "off", "--no-report", "--quiet", "--out", out]
            trained.append(peak_mb([sys.executable, "-m", "visus", *run, *options]))
    raw = raw_mb(given.data)
    over = [most - least - raw for most, least in zip(trained, alone, strict=True)]
    print("| | MiB, median | min to max |\n|---|---|---|")
    for name, values in {
        "torch and the model": alone,
        "training": trained,
        "above both and the raw data": over,
    }.items():
        print(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} to {max(values):.0f} |")
    print(
        f"\nRaw data: {raw:.1f} MiB. The limit is {LIMIT_MB} MiB: {'kept' if max(over) <= LIMIT_MB else 'exceeded'}."
    )


def raw_mb(folder: Path) -> float:
    """The images of both parts, as bytes."""
    from visus.data.images import ArrayImages
    from visus.data.sources import open_source

    data = open_source(folder)
    parts = [part.images for part in (data.train, data.val, data.test) if part]
    return sum(each.pixels.nbytes for each in parts if isinstance(each, ArrayImages)) / 2**20


if __name__ == "__main__":
    main()
