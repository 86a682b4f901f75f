"""Predicted against measured memory of a training step: 20 architectures, SGD and AdamW, with and without bf16 autocast.

    python benchmarks/memory_prediction.py rows.csv
    python benchmarks/memory_prediction.py --threads 1 2 8 32 64

Goes on where the file ends, and prints a table of what is in it. Measured is the peak of the second step on the CPU, by the memory
events of torch's profiler; figures do not depend on what else the machine does. torchinfo's and torchsummary's are their totals for
the same batch, which know of neither optimizer nor autocast; torchsummary's are those of `style="classic"`, the same to the byte.
With `--threads`, a table of a few models on so many of them, however many processors there are.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measuring import header, peak_of_step

from visus.model_summary import summary
from visus.models.build import build_model

_MIB = 2**20
_COLUMNS = (
    "model",
    "images",
    "side",
    "optimizer",
    "amp",
    "measured",
    "predicted",
    "torchinfo",
    "torchsummary",
)
_MODELS = (
    ("resnet18", 8, 128),
    ("mobilenet_v3_small", 16, 128),
    ("vit_tiny_patch16_224", 4, 224),
    ("efficientnet_b0", 8, 128),
    ("densenet121", 4, 128),
    ("swin_t", 2, 224),
    ("convnext_tiny", 2, 224),
    ("vgg11", 2, 224),
    ("resnet50", 4, 128),
    ("shufflenet_v2_x1_0", 16, 128),
    ("regnet_y_400mf", 8, 128),
    ("squeezenet1_1", 8, 128),
    ("mnasnet1_0", 8, 128),
    ("googlenet", 8, 128),
    ("resnext50_32x4d", 4, 128),
    ("mixer_s32_224", 4, 224),
    ("deit_tiny_patch16_224", 4, 224),
    ("maxvit_tiny_tf_224", 1, 224),
    ("coatnet_0_rw_224", 1, 224),
    ("tf_efficientnet_lite0", 8, 128),
)
_ON_THREADS = (
    ("resnet18", 8, 128),
    ("mobilenet_v3_small", 16, 128),
    ("convnext_tiny", 2, 224),
    ("vit_small_patch16_224", 4, 224),
    ("vit_base_patch32_224", 4, 224),
    ("mixer_s32_224", 4, 224),
)
_SETTINGS = (("sgd", "off"), ("adamw", "off"), ("sgd", "bf16"), ("adamw", "bf16"))


def main() -> None:
    """Measure what is missing, then show all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path, nargs="?", default=Path("rows.csv"))
    parser.add_argument("--threads", type=int, nargs="+")
    given = parser.parse_args()
    if given.threads:
        show_threads(given.threads)
        return
    file = given.file
    done = {tuple(row[name] for name in ("model", "optimizer", "amp")) for row in _rows(file)}
    with file.open("a", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, _COLUMNS)
        if not opened.tell():
            writer.writeheader()
        for optimizer, amp in _SETTINGS:
            for name, images, side in _MODELS:
                if (name, optimizer, amp) not in done:
                    writer.writerow(_measured(name, images, side, optimizer, amp))
                    opened.flush()
    show(_rows(file))


def _measured(name: str, images: int, side: int, optimizer: str, amp: Any) -> dict[str, Any]:
    model = build_model(name, 10)
    shape = (3, side, side)
    found = summary(model, shape, batch_size=images, optimizer=optimizer, amp=amp, style="classic")
    theirs = _torchinfo(model, images, side)
    measured = peak_of_step(model, torch.rand(images, *shape), optimizer, amp) / _MIB
    figures = (measured, found.peak_training_mb, theirs, found.total_mb)
    values = (name, images, side, optimizer, amp, *(each and f"{each:.1f}" for each in figures))
    return dict(zip(_COLUMNS, values, strict=True))


def show_threads(threads: list[int]) -> None:
    """A line for each model and precision: what is measured on so many threads, and how far the prediction is off."""
    print(header("torchvision", "timm"))
    heads = ["model", "images", "precision", *(f"{each} threads" for each in threads)]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for (name, images, side), amp in product(_ON_THREADS, ("off", "bf16")):
        cells = []
        for each in threads:
            torch.set_num_threads(each)
            row = _measured(name, images, side, "sgd", amp)
            cells.append(f"{row['measured']} ({_off(row, 'predicted'):+.1%})")
        print(f"| {name} | {images} x {side}² | {amp} | {' | '.join(cells)} |", flush=True)


def _torchinfo(model: torch.nn.Module, images: int, side: int) -> float | None:
    try:
        import torchinfo
    except ImportError:
        return None
    found = torchinfo.summary(model, (images, 3, side, side), device="cpu", mode="train", verbose=0)
    return (found.total_input + found.total_output_bytes + found.total_param_bytes) / _MIB


def show(rows: list[dict[str, str]]) -> None:
    """A line for each row, and what the errors come to."""
    print(header("torchvision", "timm"), f"{torch.get_num_threads()} threads", sep=", ")
    print(
        "| model | images | step | measured, MiB | visus | torchinfo | torchsummary |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        figures = [_figure(row, each) for each in ("predicted", "torchinfo", "torchsummary")]
        step = f"{row['optimizer']}, {'float32' if row['amp'] == 'off' else row['amp']}"
        images = f"{row['images']} x {row['side']}²"
        print(f"| {row['model']} | {images} | {step} | {row['measured']} | {' | '.join(figures)} |")
    for each in ("predicted", "torchinfo", "torchsummary"):
        errors = [abs(_off(row, each)) for row in rows if row[each]]
        if errors:
            print(
                f"{each}: median error {statistics.median(errors):.1%}, worst {max(errors):.1%}, n = {len(errors)}"
            )


def _figure(row: dict[str, str], column: str) -> str:
    return f"{row[column]} ({_off(row, column):+.1%})" if row[column] else "none"


def _off(row: dict[str, str], column: str) -> float:
    return float(row[column]) / float(row["measured"]) - 1


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


if __name__ == "__main__":
    sys.exit(main())
