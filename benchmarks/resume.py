"""How long it takes from `visus train --resume RUN` to the first new step, beside a fresh start to its first step.

    python benchmarks/resume.py [FOLDER]     # of Fashion-MNIST's IDX files (Debian: dataset-fashion-mnist)

The run was killed in mid-epoch, after 270 of 540 steps. Each measurement is a process of its own, from its start until the first
checkpoint that it writes lies in the folder; `--checkpoint-every 1step` makes that the one of the first step, on both sides.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measuring import alternate, header, table


def until_checkpoint(arguments: list[str], last: Path) -> float:
    """Seconds until `visus train ARGUMENTS` has put a new file at `last`; then it is killed."""
    before = last.stat().st_ino if last.exists() else None
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "visus", "train", *arguments, "--quiet"])
    try:
        while not (last.exists() and last.stat().st_ino != before):
            if process.poll() is not None:
                raise SystemExit(f"visus train {' '.join(arguments)}: ended with {process.returncode}")
            time.sleep(0.001)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def fresh(settings: list[str], work: Path) -> Callable[[], float]:
    """A run in a new folder."""

    def measure() -> float:
        shutil.rmtree(work / "fresh", ignore_errors=True)
        options = [*settings, "--out", str(work / "fresh"), "--name", "run", "--checkpoint-every", "1step"]
        return until_checkpoint(options, work / "fresh" / "run" / "last.safetensors")

    return measure


def resumed(interrupted: Path, work: Path) -> Callable[[], float]:
    """A copy of the interrupted run, gone on with."""

    def measure() -> float:
        run = work / "resumed"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(interrupted, run)
        options = ["--resume", str(run), "--checkpoint-every", "1step"]
        return until_checkpoint(options, run / "last.safetensors")

    return measure


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--model", default="small")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    settings = [options.folder, "--model", options.model, "--amp", "off", "--lr", "0.05"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        interrupted = work / "interrupted" / "run"
        until_checkpoint(
            [*settings, "--out", str(interrupted.parent), "--name", "run", "--checkpoint-every", "270steps"],
            interrupted / "last.safetensors",
        )
        candidates = {"fresh start": fresh(settings, work), "resume in mid-epoch": resumed(interrupted, work)}
        figures = alternate(candidates, options.repeats)
    print(f"{header()}; {options.model}; n = {options.repeats}\n")
    print(table(figures, "fresh start", "seconds"))


if __name__ == "__main__":
    main()
