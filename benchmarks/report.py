"""How long the report of a large run takes to write and to open: 1,000 classes, 50,000 images, a quarter of them mistaken.

    python benchmarks/report.py [--classes K] [--images N] [--repeats R]

Opening is from the start of the navigation to the end of the load event, and to the first paint with content, in a fresh context of
headless chromium for each repeat; the scripts that draw what is in the window are part of it.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import yaml
from measuring import header
from playwright.sync_api import sync_playwright

from visus.data.listing import split_rows
from visus.data.sources import open_source
from visus.evaluation import score
from visus.outcomes import collect, follow
from visus.reporting.page import write_report
from visus.runs import RunFolder

_TIMES = """() => ({
  load: performance.getEntriesByType('navigation')[0].loadEventEnd,
  paint: performance.getEntriesByName('first-contentful-paint')[0].startTime,
})"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    print(header("playwright"))
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), asked.classes, asked.images)
        began = time.perf_counter()
        page = write_report([run])
        print(f"written in {time.perf_counter() - began:.1f} s, {page.stat().st_size / 1e6:.2f} MB")
        for name, seconds in open_page(page, asked.repeats).items():
            spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
            print(f"{name}: median {statistics.median(seconds):.2f} s of {len(seconds)} ({spread})")


def make_run(folder: Path, classes: int, images: int) -> Path:
    """A run on noise; twice as many images as are evaluated, of 16 x 16 pixels."""
    rng = np.random.default_rng(0)
    names = np.array([f"class {number:04}" for number in range(classes)])
    source = folder / "images.npz"
    pixels = rng.integers(0, 256, (2 * images, 16, 16, 3), dtype=np.uint8)
    np.savez(source, images=pixels, labels=np.arange(2 * images) % classes, classes=names)
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.config.write_text(
        yaml.safe_dump({"data": str(source), "val_fraction": 0.5, "epochs": 90, "model": "resnet50"})
    )
    rows = list(split_rows(open_source(source, val_fraction=0.5)))
    with run.split.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    evaluated = [row for row in rows if row[2] == "val"]
    labels = np.searchsorted(names, [label for _, label, _ in evaluated])
    logits = rng.normal(0, 1, (len(labels), classes)).astype(np.float32)
    wrong = rng.random(len(labels)) < 0.25
    logits[np.arange(len(labels)), np.where(wrong, rng.integers(0, classes, len(labels)), labels)] += 9
    write_results(run, names.tolist(), [path for path, _, _ in evaluated], labels, logits)
    return run.path


def write_results(
    run: RunFolder, names: list[str], paths: list[str], labels: np.ndarray, logits: np.ndarray
) -> None:
    scores = score(collect(follow([(torch.from_numpy(logits), torch.from_numpy(labels))])), names)
    run.evaluation.write_text(json.dumps({"split": "val", **scores.to_json()}))
    probabilities = torch.from_numpy(logits).softmax(dim=1).numpy()
    columns = [paths, [names[label] for label in labels], [names[best] for best in logits.argmax(axis=1)]]
    named = ["path", "label", "prediction", *(f"p_{name}" for name in names)]
    table = pyarrow.table([*map(pyarrow.array, columns), *map(pyarrow.array, probabilities.T)], names=named)
    pyarrow.parquet.write_table(table, run.path / "predictions.parquet", use_dictionary=False)
    phases = [(epoch, phase) for epoch in range(1, 91) for phase in ("train", "val")]
    figures = {
        "loss": 1.0,
        "accuracy": 0.7,
        "n": len(paths),
        "lr": 0.1,
        "seconds": 100.0,
        "images_per_second": 500.0,
    }
    run.metrics.write_text("".join(json.dumps({"epoch": e, "phase": p, **figures}) + "\n" for e, p in phases))


def open_page(page: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat."""
    found: dict[str, list[float]] = {"load": [], "paint": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(repeats + 1):
            context = browser.new_context()
            tab = context.new_page()
            tab.goto(page.as_uri())
            for name, milliseconds in tab.evaluate(_TIMES).items():
                found[name].append(milliseconds / 1000)
            context.close()
        browser.close()
    # The first one starts the browser's own processes.
    return {name: seconds[1:] for name, seconds in found.items()}


if __name__ == "__main__":
    main()
