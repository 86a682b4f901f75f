"""FLOPs of torchvision's models against the multiply-adds that its table of weights publishes (`_ops`).

    python benchmarks/published_flops.py [NAME ...] [--peers]

Without names: every classification model that has such a figure. `--peers` counts with torchinfo and fvcore as well, which compute.
Exit code 1 if one of visus's is off by more than 2 %.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version

import torch
import torchvision
from measuring import header

from visus.model_summary import summary
from visus.models.build import build_model
from visus.models.names import torchvision_names

_TOLERANCE = 0.02


def of_visus(name: str, side: int) -> float:
    """Billions of multiply-adds for one image."""
    return summary(name, (3, side, side)).flops / 2e9


def of_torchinfo(name: str, side: int) -> float:
    """As its `total_mult_adds`."""
    import torchinfo

    found = torchinfo.summary(build_model(name).eval(), (1, 3, side, side), device="cpu", verbose=0)
    return float(found.total_mult_adds) / 1e9


def of_fvcore(name: str, side: int) -> float:
    """As its `FlopCountAnalysis`, which counts a multiply-add as one."""
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    counted = FlopCountAnalysis(build_model(name).eval(), torch.zeros(1, 3, side, side))
    return float(counted.unsupported_ops_warnings(False).total()) / 1e9


def published(name: str) -> tuple[float, int]:
    """Billions of multiply-adds of the first weights of the model, and the size of the images that they are for."""
    weights = next(iter(torchvision.models.get_model_weights(name)))
    return weights.meta["_ops"], weights.transforms().crop_size[0]


def main() -> int:
    """A line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--peers", action="store_true")
    asked = parser.parse_args()
    counts: dict[str, Callable[[str, int], float]] = {"visus": of_visus}
    if asked.peers:
        counts |= {
            f"torchinfo {version('torchinfo')}": of_torchinfo,
            f"fvcore {version('fvcore')}": of_fvcore,
        }
    errors: dict[str, list[float]] = {way: [] for way in counts}
    print(header("torchvision"))
    print(f"| model | published, G | {' | '.join(counts)} |\n|---|---|{'---|' * len(counts)}")
    for name in asked.names or sorted(torchvision_names()):
        stated, side = published(name)
        cells = []
        for way, count in counts.items():
            found = count(name, side)
            errors[way].append(abs(found / stated - 1))
            cells.append(f"{found:.3f} ({found / stated - 1:+.2%})")
        print(f"| {name} | {stated:.3f} | {' | '.join(cells)} |", flush=True)
    for way, sizes in errors.items():
        print(f"{way}: median {statistics.median(sizes):.2%}, worst {max(sizes):.2%}, n = {len(sizes)}")
    return 1 if max(errors["visus"]) > _TOLERANCE else 0


if __name__ == "__main__":
    sys.exit(main())
