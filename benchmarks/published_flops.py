"""FLOPs of torchvision's models against the multiply-adds that its table of weights publishes (`_ops`).

    python benchmarks/published_flops.py [NAME ...]

Without names: every classification model that has such a figure. Exit code 1 if one is off by more than 2 %.
"""

from __future__ import annotations

import statistics
import sys

import torchvision

from visus.model_summary import summary
from visus.models.names import torchvision_names

_TOLERANCE = 0.02


def main(names: list[str]) -> int:
    """A line for each model."""
    errors = {}
    print("| model | published, G | visus, G | off by |\n|---|---|---|---|")
    for name in names or sorted(torchvision_names()):
        published, side = _published(name)
        found = summary(name, (3, side, side)).flops / 2e9
        errors[name] = found / published - 1
        print(f"| {name} | {published:.3f} | {found:.3f} | {errors[name]:+.2%} |", flush=True)
    sizes = [abs(each) for each in errors.values()]
    print(f"median {statistics.median(sizes):.2%}, worst {max(sizes):.2%}, n = {len(sizes)}")
    return 1 if max(sizes) > _TOLERANCE else 0


def _published(name: str) -> tuple[float, int]:
    """Billions of multiply-adds of the first weights of the model, and the size of the images that they are for."""
    weights = next(iter(torchvision.models.get_model_weights(name)))
    return weights.meta["_ops"], weights.transforms().crop_size[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
