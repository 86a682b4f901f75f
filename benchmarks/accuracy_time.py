"""Seconds of training to a test accuracy: `--recipe fast` against the recipe of the notes (ResNet-18, SGD at 0.1, batches of 100).

    python benchmarks/accuracy_time.py [FOLDER] [--seeds 3] [--courses FILE]     # FOLDER: IDX files of Fashion-MNIST

All are runs of `visus train` on the same machine, one after the other, seed by seed; those of the notes in float32, as these have
it. After each epoch the weights that a run would keep are evaluated on the test part, with the clock standing; nothing is chosen by
that. A level is reached at the end of the first epoch whose test accuracy is at least that, and the seconds are those of training
and validation until then. Recipes are chosen on a validation part: see docs/recipes.md. With `--courses` what was measured is
kept in a file, and gone on with where that is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measuring import header
from scipy import stats

import visus
from visus.files import write_json
from visus.recipes import with_recipe

LEVELS = (0.86, 0.89, 0.91, 0.92, 0.93, 0.94)
NOTES = "the notes' recipe"
WAYS: dict[str, dict[str, Any]] = {
    NOTES: {"model": "resnet18", "lr": 0.1, "batch_size": 100, "augment": "none", "epochs": 10, "amp": "off"},
    "--epochs 1": {"recipe": "fast", "epochs": 1},
    "--epochs 3": {"recipe": "fast", "epochs": 3},
    "--epochs 3 --amp off": {"recipe": "fast", "epochs": 3, "amp": "off"},
    "--epochs 20 --model quick_wide --augment flip, tested with --tta": {
        "recipe": "fast",
        "epochs": 20,
        "model": "quick_wide",
        "augment": "flip",
        "tta": True,
    },
}
"""Those without a name are of `--recipe fast`. `tta` is no setting of a run, but of its test."""

Course = list[tuple[float, float]]


def course(folder: str, seed: int, settings: dict[str, Any]) -> Course:
    """Seconds so far and test accuracy after each epoch of one run."""
    tta = settings.get("tta", False)
    of_the_run = {name: value for name, value in settings.items() if name != "tta"}
    with tempfile.TemporaryDirectory() as out:
        run = visus.train(visus.make_config(data=folder, out=out, seed=seed, keep="all", **of_the_run))
        records = [json.loads(line) for line in Path(run.run, "metrics.jsonl").read_text().splitlines()]
        seconds = itertools.accumulate(
            sum(each["seconds"] for each in records if each["epoch"] == epoch)
            for epoch in range(1, run.epochs + 1)
        )
        steps = run.steps // run.epochs
        paths = [Path(run.run, f"step-{epoch * steps}.safetensors") for epoch in range(1, run.epochs + 1)]
        found = [
            visus.evaluate_checkpoint(visus.load_checkpoint(path), folder, part="test", tta=tta)
            for path in paths
        ]
    return list(zip(seconds, (each.scores.accuracy for each in found), strict=True))


def seconds_to(level: float, points: Course) -> float | None:
    """When a course has reached `level`; `None` where it never does."""
    return next((seconds for seconds, accuracy in points if accuracy >= level), None)


def mean_and_interval(values: list[float]) -> str:
    """The mean and, of several values, its 95 % interval by Student's t."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.4g}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.4g} ({mean - half:.4g} to {mean + half:.4g})"


def cell(level: float, runs: list[Course], of_notes: list[Course]) -> str:
    """The seconds to a level, and how many times less that is than in the runs of the notes, where all of both reach it."""
    times = [seconds for points in runs if (seconds := seconds_to(level, points)) is not None]
    if len(times) < len(runs):
        return f"{len(times)} of {len(runs)} runs"
    compared = [seconds for points in of_notes if (seconds := seconds_to(level, points)) is not None]
    ratio = (
        f"; {statistics.mean(compared) / statistics.mean(times):.1f}x"
        if len(compared) == len(of_notes)
        else ""
    )
    return mean_and_interval(times) + ratio * (runs is not of_notes)


def measure(folder: str, seeds: int, kept: Path | None) -> dict[str, list[Course]]:
    """The courses of each way, seed by seed; those that are in the file `kept` already are taken from there.

    They are kept by machine, versions, data, settings and seed.
    """
    known: dict[str, Course] = json.loads(kept.read_text()) if kept and kept.exists() else {}
    found: dict[str, list[Course]] = {name: [] for name in WAYS}
    for seed, (name, settings) in itertools.product(range(seeds), WAYS.items()):
        key = json.dumps([header("torchvision"), folder, seed, with_recipe(settings)])
        if key not in known:
            known[key] = course(folder, seed, settings)
            if kept:
                write_json(kept, known)
        found[name].append(known[key])
    return found


def main() -> None:
    """Print seconds to each level, and the accuracies at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--courses", type=Path)
    asked = parser.parse_args()
    print(f"{header('torchvision')}; {asked.seeds} seeds; seconds")
    courses = measure(asked.folder, asked.seeds, asked.courses)
    print(f"\n| test accuracy | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    for level in LEVELS:
        cells = [cell(level, runs, courses[NOTES]) for runs in courses.values()]
        print(f"| {100 * level:.0f} % | {' | '.join(cells)} |")
    for what, place, factor in (("at the end, %", 1, 100), ("seconds in all", 0, 1)):
        ends = [
            mean_and_interval([factor * points[-1][place] for points in runs]) for runs in courses.values()
        ]
        print(f"| {what} | {' | '.join(ends)} |")


if __name__ == "__main__":
    main()
