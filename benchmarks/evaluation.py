"""Images per second of evaluation beside bare forward passes, and milliseconds to count 1,000,000 predictions.

    python benchmarks/evaluation.py [FOLDER] [--model small resnet18]     # FOLDER: IDX files of Fashion-MNIST

The 10,000 test images, batches of 100, float32, in turn. The bare passes run through batches that are ready in memory, channels
last, and keep nothing; what is measured against them makes its batches as it goes. "validation" is what a run does after each
epoch: loss and accuracy. "outcomes" keeps of each image what `visus evaluate` needs for scores, and "scores" adds to that all
scores with their intervals, whose resampling takes the same time however long the model takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from measuring import alternate, header, table

import visus
from visus.data.images import Split
from visus.devices import computing
from visus.freed_memory import kept_freed_memory
from visus.inference import predict_logits
from visus.ops.confusion import averages, class_shares, confusion_matrix
from visus.outcomes import collect, follow
from visus.validating import validate

_PREDICTIONS = 1_000_000


def candidates(name: str, split: Split) -> dict[str, Callable[[], float]]:
    """Images per second of each."""
    record = visus.measure_preprocessing(split)
    batches = visus.EvaluationBatches(split, record, 100)
    ready = [images for images, _ in batches]
    torch.manual_seed(0)
    model = visus.build_model(name, 10, in_channels=1).to(memory_format=torch.channels_last).eval()

    def bare() -> None:
        with torch.inference_mode():
            for images in ready:
                model(images)

    def rate(work: Callable[[], object]) -> Callable[[], float]:
        return lambda: len(split) / _seconds(work)

    return {
        "bare forward passes": rate(bare),
        "validation": rate(lambda: validate(model, batches)),
        "outcomes": rate(lambda: collect(follow(predict_logits(model, batches)))),
        "scores": rate(lambda: visus.evaluate(model, batches)),
    }


def counting(classes: int) -> dict[str, Callable[[], float]]:
    """Milliseconds to count."""
    random = np.random.default_rng(0)
    true, predicted = random.integers(0, classes, (2, _PREDICTIONS))

    def count() -> None:
        confusion_matrix(true, predicted, classes)

    def shares() -> None:
        counts = confusion_matrix(true, predicted, classes)
        figures = counts.sum(axis=1), counts[:, :-1].sum(axis=0), counts.diagonal()
        class_shares(*figures)
        averages(*figures)

    return {
        "confusion matrix": lambda: 1000 * _seconds(count),
        "with per-class figures and averages": lambda: 1000 * _seconds(shares),
    }


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Print a table for each model, and one of counting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--model", nargs="+", default=["small", "resnet18"])
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    print(f"{header('torchvision', 'numpy')}; {torch.get_num_threads()} threads; n = {asked.repeats}")
    split = visus.open_source(asked.folder).test
    assert split is not None
    with computing(), kept_freed_memory():
        for name in asked.model:
            figures = alternate(candidates(name, split), asked.repeats)
            print(f"\n{name}\n\n{table(figures, 'bare forward passes', 'images/s')}", flush=True)
    print(f"\n{_PREDICTIONS:,} predictions\n\n| | ms, median | min to max |\n|---|---|---|")
    for classes in (10, 1000):
        for what, values in alternate(counting(classes), asked.repeats).items():
            spread = f"{min(values):.3g} to {max(values):.3g}"
            print(f"| {classes} classes, {what} | {statistics.median(values):.3g} | {spread} |")


if __name__ == "__main__":
    main()
