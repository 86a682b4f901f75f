"""Seconds of training to a test accuracy: a recipe against that of the notes (ResNet-18, SGD at 0.1, batches of 100, ten epochs).

    python benchmarks/accuracy_time.py [FOLDER] [--recipe fast] [--epochs 10] [--seeds 3]     # IDX files of Fashion-MNIST

Both are runs of `visus train` on the same machine, one after the other, seed by seed. After each epoch the weights that a run would
keep are evaluated on the test part, with the clock standing; nothing is chosen by that. A level is reached at the end of the first
epoch whose test accuracy is at least that, and the seconds are those of training and validation until then. Recipes are
chosen on a validation part: see docs/recipes.md.
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

LEVELS = (0.86, 0.89, 0.91, 0.92, 0.93, 0.94)
NOTES = {"model": "resnet18", "lr": 0.1, "batch_size": 100, "augment": "none", "epochs": 10}
EPOCHS_OF_NOTES = 10


def course(folder: str, out: str, seed: int, settings: dict[str, Any]) -> list[tuple[float, float]]:
    """Seconds so far and test accuracy after each epoch of one run."""
    run = visus.train(visus.make_config(data=folder, out=out, seed=seed, amp="off", keep="all", **settings))
    records = [json.loads(line) for line in Path(run.run, "metrics.jsonl").read_text().splitlines()]
    seconds = itertools.accumulate(
        sum(each["seconds"] for each in records if each["epoch"] == epoch)
        for epoch in range(1, run.epochs + 1)
    )
    steps_per_epoch = run.steps // run.epochs
    checkpoints = [
        Path(run.run, f"step-{epoch * steps_per_epoch}.safetensors") for epoch in range(1, run.epochs + 1)
    ]
    accuracies = [
        visus.evaluate_checkpoint(visus.load_checkpoint(path), folder, part="test").scores.accuracy
        for path in checkpoints
    ]
    return list(zip(seconds, accuracies, strict=True))


def seconds_to(level: float, points: list[tuple[float, float]]) -> float | None:
    """When a course has reached `level`; `None` where it never does."""
    return next((seconds for seconds, accuracy in points if accuracy >= level), None)


def mean_and_interval(values: list[float]) -> str:
    """The mean and, of several values, its 95 % interval by Student's t."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.4g}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.4g} ({mean - half:.4g} to {mean + half:.4g})"


def row(level: float, courses: dict[str, list[list[tuple[float, float]]]]) -> str:
    """A level, the seconds to it of each way, and how many times faster the second is where all runs of both reach it."""
    found = {name: [seconds_to(level, points) for points in runs] for name, runs in courses.items()}
    cells, means = [], []
    for times in found.values():
        reached = [each for each in times if each is not None]
        if len(reached) == len(times):
            cells.append(mean_and_interval(reached))
            means.append(statistics.mean(reached))
        else:
            cells.append(f"{len(reached)} of {len(times)} runs")
    ratio = f"{means[0] / means[1]:.1f}x" if len(means) == 2 else ""
    return f"| {100 * level:.0f} % | {' | '.join(cells)} | {ratio} |"


def main() -> None:
    """Print seconds to each level, and the accuracies at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--epochs", type=int, default=EPOCHS_OF_NOTES, help="of the recipe")
    parser.add_argument("--epochs-notes", type=int, default=EPOCHS_OF_NOTES)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    ways: dict[str, dict[str, Any]] = {
        "the notes' recipe": {**NOTES, "epochs": asked.epochs_notes},
        f"--recipe {asked.recipe}": {"recipe": asked.recipe, "epochs": asked.epochs},
    }
    print(f"{header('torchvision')}; {asked.seeds} seeds")
    courses: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as out:
        for seed in range(asked.seeds):
            for name, settings in ways.items():
                courses[name].append(course(asked.folder, out, seed, settings))
    print(f"\n| test accuracy | {' | '.join(f'{name}, seconds' for name in ways)} | |\n|---|---|---|---|")
    for level in LEVELS:
        print(row(level, courses))
    ends = [mean_and_interval([100 * points[-1][1] for points in runs]) + " %" for runs in courses.values()]
    print(f"| at the end | {' | '.join(ends)} | |")


if __name__ == "__main__":
    main()
