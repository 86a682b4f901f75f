"""Runs of `visus train` killed with SIGKILL, resumed until they end, and compared with runs that nobody disturbed.

    python benchmarks/killtest.py --runs 100 --seed 0

Each run is killed up to five times: at a moment of its duration, or just after the temporary file of a checkpoint has appeared.
Between the kills every file is read and every checkpoint verified, and the step that each resume starts from is held against the
newest checkpoint that was seen complete. Processes are forked from one that has imported everything and computed nothing: it has
one thread, which is asserted, and a child goes on as `python -m visus` would. Needs Linux.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# Before torch and numpy start any thread.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from measuring import header
from PIL import Image

from visus import cli
from visus.checkpoint import load_checkpoint, read_document
from visus.config import read_config
from visus.errors import VisusError
from visus.runs import RunFolder

_COMMON = "--model small --augment light --amp off --threads 1 --lr 0.02 --checkpoint-every 3steps"
_DIGITS = "digits --batch-size 100 --epochs 3"
_FOLDER = "FOLDER --batch-size 20 --epochs 3 --img-size 32"
CASES = {
    "digits, SGD": _DIGITS,
    "digits, SGD, EMA, cosine": f"{_DIGITS} --ema --ema-decay 0.9 --schedule cosine",
    "digits, AdamW, accumulation, clipping": f"{_DIGITS} --optimizer adamw --accumulate 3 --clip-grad 1",
    "digits, AdamW, EMA, one cycle, smoothing": (
        f"{_DIGITS} --optimizer adamw --ema --schedule onecycle --label-smoothing 0.1"
    ),
    "folder, SGD": _FOLDER,
    "folder, AdamW, EMA, accumulation": f"{_FOLDER} --optimizer adamw --ema --ema-decay 0.9 --accumulate 2",
    "folder, decoded each time, 0 to 4 workers": f"{_FOLDER} --cache off",
}
_WORKERS = ("0", "2", "4")
"""Of a run that decodes each time; another number at each resume, so that where it goes on others have decoded ahead."""
_DURATIONS = ("seconds", "images_per_second")
_FAULTS = (
    "other digest",
    "other metrics",
    "other best",
    "lost checkpoints",
    "unreadable",
    "missing files",
    "failed",
)


@dataclass
class Attempt:
    """One process, from its start to its end."""

    exit_code: int
    log: str
    seconds: float


@dataclass
class Outcome:
    """What a run came to, to be compared."""

    digest: str
    best: str
    metrics: list[dict[str, object]]
    files: set[str]


@dataclass
class Watch:
    """What an observer has seen of a run's folder, looking all the time."""

    out: Path
    complete: int = 0
    """The highest step of a `last.safetensors` that was there."""
    temporaries: set[str] = field(default_factory=set)
    """Temporary files of checkpoints, by name."""
    unreadable: list[str] = field(default_factory=list)
    _inode: int = -1

    @property
    def run(self) -> RunFolder | None:
        """The newest folder with settings in it; before there is one, a run can only be begun again."""
        found = sorted(self.out.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime_ns)
        return RunFolder(found[-1].parent) if found else None

    def look(self) -> None:
        """Notice new temporary files, and what `last.safetensors` holds where it has been replaced."""
        for folder in os.scandir(self.out):
            for entry in os.scandir(folder.path):
                if is_temporary(entry.name):
                    self.temporaries.add(entry.name)
                elif entry.name == "last.safetensors" and entry.inode() != self._inode:
                    self._inode = entry.inode()
                    self._read(Path(entry.path))

    def _read(self, path: Path) -> None:
        try:
            self.complete = max(self.complete, int(read_document(path)["step"]))
        except VisusError as error:
            self.unreadable.append(str(error))

    def left_over(self) -> set[str]:
        """Temporary files of checkpoints that are there now."""
        return {path.name for path in self.out.glob("*/.*") if is_temporary(path.name)}


def is_temporary(name: str) -> bool:
    """Whether it is a checkpoint's temporary file: safetensors writes `.tmpXXXXXX` and renames that to ours, `.last....tmp`."""
    return name.startswith(".tmp") or (name.endswith(".tmp") and ".safetensors." in name)


def start(arguments: list[str], log: Path) -> int:
    """`visus ARGUMENTS` in a child of this process, what it prints in `log`; its process id."""
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would leave locks of other threads behind"
    child = os.fork()
    if child:
        return child
    descriptor = os.open(log, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["visus", *arguments]
    try:
        cli.main()
    except SystemExit as error:
        sys.stdout.flush()
        os._exit(int(error.code or 0))
    os._exit(99)


def attempt(watch: Watch, arguments: list[str], kill: Callable[[float], bool]) -> Attempt:
    """Start a process and watch it, until it ends or `kill(seconds)` says to kill it."""
    log = watch.out.with_suffix(".log")
    # A child that is killed at once prints nothing, not what the one before it did.
    log.write_text("")
    began = time.perf_counter()
    child = start(arguments, log)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            watch.look()
            if kill(time.perf_counter() - began):
                os.kill(child, signal.SIGKILL)
                ended, status = os.waitpid(child, 0)
        if ended:
            watch.look()
            seconds = time.perf_counter() - began
            return Attempt(os.waitstatus_to_exitcode(status), log.read_text(), seconds)
        time.sleep(0.0005)


def command(watch: Watch, case: list[str], workers: str = "2") -> list[str]:
    """Go on where there is something to go on with, else begin."""
    also = ["--workers", workers] if "--cache" in case else []
    if run := watch.run:
        return ["train", "--resume", str(run.path), *also]
    return ["train", *case, *also, *_COMMON.split(), "--out", str(watch.out), "--name", "run"]


def unreadable_files(run: RunFolder) -> list[str]:
    """The files of a run, temporary ones apart, that are not what they should be."""
    readers: dict[str, Callable[[Path], object]] = {
        ".safetensors": load_checkpoint,
        ".json": lambda path: json.loads(path.read_text()),
        ".yaml": read_config,
        ".jsonl": lambda path: RunFolder(path.parent).records(),
        ".png": lambda path: Image.open(path).load(),
    }
    found = []
    for path in run.path.iterdir():
        try:
            readers.get(path.suffix, str)(path)
        except (VisusError, ValueError, OSError) as error:
            found.append(f"{path.name}: {error}")
    return found


def outcome(run: RunFolder) -> Outcome:
    """What a finished run left."""
    records = [
        {key: value for key, value in record.items() if key not in _DURATIONS} for record in run.records()
    ]
    files = {path.name for path in run.path.iterdir() if not path.name.startswith(".")}
    digest = load_checkpoint(run.last).document["digest"]
    return Outcome(digest, load_checkpoint(run.best).document["digest"], records, files)


def reference(case: list[str], out: Path) -> tuple[Outcome, float, int]:
    """A run that nobody disturbs; its seconds and its steps."""
    out.mkdir()
    watch = Watch(out)
    done = attempt(watch, command(watch, case), lambda _: False)
    assert done.exit_code == 0, done.log
    assert watch.run is not None
    return outcome(watch.run), done.seconds, watch.complete


def choose_kill(chance: random.Random, watch: Watch, seconds: float, share: float) -> Callable[[float], bool]:
    """When to kill: at a moment of the `share` of `seconds` that remains, or at one of the next writes of a checkpoint."""
    if chance.random() < 0.5:
        # Less than the whole, so that few runs end before it.
        moment = chance.uniform(0, 0.7 * seconds * max(share, 0.3))
        return lambda elapsed: elapsed >= moment
    writes = len(watch.temporaries) + chance.randint(1, 4)
    # At once, or anywhere from there to after the rename: writing, verifying and syncing take some 10 ms.
    delay = chance.choice((0.0, chance.uniform(0, 0.015)))
    due: list[float] = []

    def kill(elapsed: float) -> bool:
        if not due and len(watch.temporaries) >= writes:
            due.append(elapsed + delay)
        return bool(due) and elapsed >= due[0]

    return kill


def harass(
    case: list[str], out: Path, chance: random.Random, seconds: float, steps: int
) -> tuple[Counter[str], Watch]:
    """One run, killed and resumed until it ends; what happened, counted."""
    out.mkdir()
    watch, counts = Watch(out), Counter({"runs": 1})
    kills = chance.randint(2, 5)
    while True:
        before, left = watch.complete, watch.left_over()
        share = 1 - watch.complete / steps
        kill = choose_kill(chance, watch, seconds, share) if counts["kills"] < kills else lambda _: False
        done = attempt(watch, command(watch, case, chance.choice(_WORKERS)), kill)
        resumed = re.search(r"resumed from step (\d+)", done.log)
        counts["lost checkpoints"] += bool(resumed and int(resumed[1]) < before)
        if watch.run:
            watch.unreadable += unreadable_files(watch.run)
        if done.exit_code != -signal.SIGKILL:
            counts["failed"] += done.exit_code != 0
            counts["resumes"] += bool(resumed)
            return counts, watch
        counts["kills"] += 1
        counts["resumes"] += bool(resumed)
        counts["in mid-write"] += bool(watch.left_over() - left)


def judge(expected: Outcome, counts: Counter[str], watch: Watch) -> None:
    """Add to `counts` what is other than in the undisturbed run."""
    counts["unreadable"] += len(watch.unreadable)
    counts["temporaries left"] += len(watch.left_over())
    if counts["failed"] or watch.run is None:
        return
    found = outcome(watch.run)
    counts["other digest"] += found.digest != expected.digest
    counts["other best"] += found.best != expected.best
    counts["other metrics"] += found.metrics != expected.metrics
    counts["missing files"] += len(expected.files - found.files)


def make_folder(path: Path) -> None:
    """120 images of three classes, PNG and JPEG, in mixed sizes."""
    random_numbers = np.random.default_rng(0)
    for index in range(120):
        kind = index % 3
        height, width = random_numbers.integers(24, 80, 2)
        pixels = random_numbers.normal(128, 50, (height, width, 3)) + 40 * np.eye(3)[kind]
        target = path / f"class{kind}" / f"{index:03}.{'png' if index % 2 else 'jpg'}"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target)


def row(name: str, counts: Counter[str]) -> str:
    """A line of the table."""
    runs = counts["runs"] - counts["failed"]
    equal = [
        f"{runs - counts[f'other {what}']} of {counts['runs']}" for what in ("digest", "metrics", "best")
    ]
    keys = ("lost checkpoints", "unreadable", "missing files", "failed", "temporaries left")
    cells = [name, *(str(counts[key]) for key in ("runs", "kills", "in mid-write", "resumes")), *equal]
    return f"| {' | '.join([*cells, *(str(counts[key]) for key in keys)])} |"


def main() -> None:
    """Print a table; exit code 1 where anything was other than it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("visus.plots", "visus.training"):
        importlib.import_module(name)
    work = Path(tempfile.mkdtemp(prefix="killtest-"))
    make_folder(work / "images")
    cases = {
        name: [each.replace("FOLDER", str(work / "images")) for each in text.split()]
        for name, text in CASES.items()
    }
    known = {name: reference(case, work / f"reference{i}") for i, (name, case) in enumerate(cases.items())}
    totals = {name: Counter[str]() for name in cases}
    began = time.perf_counter()
    for number in range(options.runs):
        name = list(cases)[number % len(cases)]
        expected, seconds, steps = known[name]
        out = work / f"{number:04}"
        counts, watch = harass(cases[name], out, random.Random(f"{options.seed}/{number}"), seconds, steps)
        judge(expected, counts, watch)
        totals[name] += counts
        if wrong := {key: counts[key] for key in _FAULTS if counts[key]}:
            print(f"{out} ({name}): {wrong} {watch.unreadable}", file=sys.stderr)
        else:
            shutil.rmtree(out)
    minutes = (time.perf_counter() - began) / 60
    print(f"{header()}; n = {options.runs} runs, seed {options.seed}; {minutes:.1f} minutes\n")
    print(
        "| | runs | kills | of these in mid-write | resumes | same digest | same metrics.jsonl | same best | lost checkpoints "
        "| unreadable files | missing files | failed | temporary files left |\n|---|" + "---|" * 12
    )
    for name, counts in [*totals.items(), ("all", sum(totals.values(), Counter()))]:
        print(row(name, counts))
    failed = any(counts[key] for counts in totals.values() for key in _FAULTS)
    if not failed:
        shutil.rmtree(work)
    sys.exit(failed)


if __name__ == "__main__":
    main()
