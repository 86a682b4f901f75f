"""Images per second of bare training and of bare forward passes, with the memory that a step frees kept and given back.

    python benchmarks/freed_memory.py [--repeats 5]

Each figure is that of a process of its own, in turn: what glibc does depends on what lies where. Beside the rates stand the page
faults of a step, 4 KiB each, which the system clears, and the highest resident set. See `visus/freed_memory.py`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from measuring import header

CASES = [
    ("small", 28, 100, 60),
    ("resnet18", 32, 100, 12),
    ("resnet18", 224, 64, 3),
    ("resnet50", 224, 16, 4),
]
"""Model, side of the images, batch, steps."""
KEPT = ("given back", "kept")
CHILD = """
import contextlib, resource, sys, time
import torch
import visus
from visus.freed_memory import kept_freed_memory

name, size, batch, steps, kept = sys.argv[1], *map(int, sys.argv[2:])
model = visus.build_model(name, 10).to(memory_format=torch.channels_last).train()
optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
targets = torch.zeros(batch, dtype=torch.long)

def step():
    torch.nn.functional.cross_entropy(model(images), targets).backward()
    optimizer.step()
    optimizer.zero_grad()

def measure(work):
    for _ in range(3):
        work()
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    for _ in range(steps):
        work()
    seconds = time.perf_counter() - began
    print(batch * steps / seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / steps)

with kept_freed_memory() if kept else contextlib.nullcontext():
    measure(step)
    model.eval()
    outputs = []
    with torch.inference_mode():
        measure(lambda: outputs.append(model(images)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"{header()}; n = {repeats}\n")
    print("| | freed memory | training, images/s | faults a step | passes, images/s | faults | peak, MiB |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        found: dict[str, list[list[float]]] = {each: [] for each in KEPT}
        for _ in range(repeats):
            for kept, each in enumerate(KEPT):
                found[each].append(one(*map(str, case), str(kept)))
        name = f"{case[0]}, {case[2]} of {case[1]} pixels"
        for each, rows in found.items():
            training, faults, passes, more, peak = (
                statistics.median(column) for column in zip(*rows, strict=True)
            )
            print(
                f"| {name} | {each} | {training:.4g} | {faults:.0f} | {passes:.4g} | {more:.0f} | {peak:.0f} |"
            )
        for place, what in ((0, "training"), (2, "passes")):
            ratios = sorted(b[place] / a[place] for a, b in zip(*found.values(), strict=True))
            print(
                f"| | {what}, kept against given back: {statistics.median(ratios):.3f} "
                f"({ratios[0]:.3f} to {ratios[-1]:.3f}) | | | | | |",
                flush=True,
            )


def one(*arguments: str) -> list[float]:
    """Training, its faults, passes, their faults, peak."""
    command = [sys.executable, "-c", CHILD, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [float(each) for each in done.stdout.split()]


if __name__ == "__main__":
    main()
