"""Peak memory of `visus train` on Fashion-MNIST, beside importing torch and building the model, and a bare loop.

    python benchmarks/memory.py DATA [--model small] [--batch-size 100] [--amp off] [--repeats 3]

DATA is the folder of the four IDX files. Every figure is the highest resident set of a process of its own until its work is done
(this torch takes a hundred MiB more as it ends, whatever was done): one that imports torch and builds the model, one that trains it
for 30 steps on one batch and has nothing else, and one that trains it for an epoch, with checkpoints, curves and the test; the loop
is in float32, and training as `--amp` says (`auto`: what `visus train` takes by itself).
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


BUILD = "import torch, visus; model = visus.build_model({model!r}, 10, in_channels=1)"
LOOP = """
model = model.to(memory_format=torch.channels_last).train()
optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, fused=True)
images = torch.zeros({batch_size}, 1, 28, 28).to(memory_format=torch.channels_last)
targets = torch.zeros({batch_size}, dtype=torch.long)
for _ in range(30):
    torch.nn.functional.cross_entropy(model(images), targets).backward()
    optimizer.step()
    optimizer.zero_grad()
"""
TRAIN = """
import sys, visus.cli
sys.argv = ["visus", "train", {data!r}, "--model", {model!r}, "--batch-size", "{batch_size}", "--epochs", "1"]
sys.argv += ["--amp", {amp!r}, "--no-report", "--quiet", "--out", {out!r}]
try:
    visus.cli.main()
except SystemExit as end:
    if end.code:
        raise
"""
REPORT = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def peak_mb(code: str) -> float:
    """The highest resident set of a process that runs `code`, in MiB, before it ends."""
    command = [sys.executable, "-c", code + REPORT]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    # KiB on Linux, bytes on macOS.
    return int(done.stdout.split()[-1]) / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Print what it ran on, and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="small")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--amp", default="off", choices=["off", "auto"])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(
        f"{header('numpy')}; {given.model}, batches of {given.batch_size}, amp {given.amp}; n = {given.repeats}\n"
    )
    build = BUILD.format(model=given.model)
    loop = build + LOOP.format(batch_size=given.batch_size)
    alone, bare, trained = [], [], []
    for _ in range(given.repeats):
        alone.append(peak_mb(build))
        bare.append(peak_mb(loop))
        with tempfile.TemporaryDirectory() as out:
            settings = {
                "data": str(given.data),
                "model": given.model,
                "batch_size": given.batch_size,
                "amp": given.amp,
                "out": out,
            }
            trained.append(peak_mb(TRAIN.format(**settings)))
    raw = raw_mb(given.data)
    over = [most - least - raw for most, least in zip(trained, alone, strict=True)]
    print("| | MiB, median | min to max |\n|---|---|---|")
    for name, values in {
        "torch and the model": alone,
        "a bare loop": bare,
        "training": trained,
        "above torch, the model and the raw data": over,
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
