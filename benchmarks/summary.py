"""How near `visus.summary` comes to the memory that a training step takes, and how long it takes to say so.

    python benchmarks/summary.py

The measured peak is that of the second step on the CPU, from the memory events of torch's profiler; it repeats to the byte, and so
does the prediction. Seconds are those of `summary` alone, in this process, after one other model.
"""

from __future__ import annotations

import sys
import time

import torch
from measuring import header, peak_of_step

from visus.model_summary import summary
from visus.models.build import build_model

_MIB = 2**20
_CASES = [
    ("resnet18", 16, 224),
    ("resnet18", 16, 64),
    ("resnet50", 8, 224),
    ("mobilenet_v3_small", 16, 224),
    ("efficientnet_b0", 8, 224),
    ("densenet121", 4, 224),
    ("vgg11", 4, 224),
    ("vit_tiny_patch16_224", 8, 224),
    ("swin_t", 4, 224),
    ("convnext_tiny", 4, 224),
]


def main() -> None:
    """A line for each model."""
    print(header("torchvision", "timm"), f"{torch.get_num_threads()} threads", sep=", ")
    summary("squeezenet1_1")
    print(
        f"{'model':<22} {'images':>10} {'measured MiB':>13} {'predicted MiB':>14} {'off by':>7} {'seconds':>8}"
    )
    for name, images, side in _CASES:
        size = (3, side, side)
        began = time.perf_counter()
        found = summary(name, size, num_classes=10, batch_size=images, optimizer="sgd")
        seconds = time.perf_counter() - began
        measured = peak_of_step(build_model(name, 10), torch.rand(images, *size)) / _MIB
        assert found.peak_training_mb is not None
        off = found.peak_training_mb / measured - 1
        shape = f"{images} x {side}²"
        print(
            f"{name:<22} {shape:>10} {measured:>13,.1f} {found.peak_training_mb:>14,.1f} {off:>7.1%} {seconds:>8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
