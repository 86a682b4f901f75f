"""A training step of a vision transformer, whole, by low-rank adaptation, and of its head alone: memory and time of the processor.

    OMP_NUM_THREADS=1 python benchmarks/lora.py [--model vit_small_patch16_224] [--images 8] [--repeats 6]

The memory is the peak of a step of AdamW, by the memory events of torch's profiler; it does not depend on what else the machine
does.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from measuring import header, peak_of_step
from torch import nn
from torch.nn import functional

from visus.models.build import build_model
from visus.models.heads import head_layers
from visus.models.lora import add_lora
from visus.ops.optim import OptimizerSettings, make_optimizer

RANK = 8


def main() -> None:
    """A line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=6)
    asked = parser.parse_args()
    images = torch.rand(asked.images, 3, 224, 224)
    ways = models(asked.model)
    peaks = {name: peak_of_step(model, images, "adamw") for name, model in ways.items()}
    seconds = measure(ways, images, asked.repeats)
    print(
        f"{header('timm')}; {asked.model}, {asked.images} images, AdamW, float32, {torch.get_num_threads()} threads"
    )
    print(
        "\n| trained | parameters | peak, MiB | s of processor, median | against all |\n|---|---|---|---|---|"
    )
    for name, model in ways.items():
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
        ratios = [mine / whole for mine, whole in zip(seconds[name], seconds["all"], strict=True)]
        print(
            f"| {name} | {trained:,} | {peaks[name] / 2**20:.0f} | {statistics.median(seconds[name]):.2f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def models(name: str) -> dict[str, nn.Module]:
    """The same model, trained in three ways."""
    whole = build_model(name, 10)
    adapted, head = copy.deepcopy(whole), copy.deepcopy(whole)
    add_lora(adapted, RANK)
    head.requires_grad_(False)
    for layer in head_layers(head):
        head.get_submodule(layer).requires_grad_()
    return {"all": whole, f"low rank, {RANK}": adapted, "the head": head}


def measure(ways: dict[str, nn.Module], images: torch.Tensor, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way's steps, in turn, the first of each left out."""
    updaters = {
        name: make_optimizer(model, OptimizerSettings(optimizer="adamw")) for name, model in ways.items()
    }
    targets = torch.zeros(len(images), dtype=torch.int64)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, model in ways.items():
            began = time.process_time()
            functional.cross_entropy(model(images), targets).backward()
            updaters[name].step()
            updaters[name].zero_grad()
            if repeat:
                seconds[name].append(time.process_time() - began)
    return seconds


if __name__ == "__main__":
    main()
