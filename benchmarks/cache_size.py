"""What it costs in accuracy that training images are kept with a short side of 256 for a model that takes 224.

    python benchmarks/cache_size.py [--drawings /usr/share/openclipart/png] [--img-size 64] [--epochs 20] [--seeds 4]

Crops of random size are cut from what is kept, so that small ones are enlarged; `--cache-size full` keeps all pixels there are, as
torchvision does. The data are Debian's `openclipart-png`: its folders of at least 100 drawings as classes, at most 300 of each,
a third of them for testing. `small` is trained from scratch at `--img-size`, in the same proportion (73 for 64). Differences and
intervals are those of `visus compare`, over images and seeds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from finetuning import link_drawings
from measuring import header

_FEWEST, _MOST = 100, 300


def main() -> None:
    """Print what it ran on, and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--drawings", type=Path, default=Path("/usr/share/openclipart/png"))
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4)
    asked = parser.parse_args()
    print(header("torchvision", "pillow"))
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(here / "cache")
        classes = [each.name for each in sorted(asked.drawings.iterdir()) if _count(each) >= _FEWEST]
        counts = link_drawings(asked.drawings, here / "drawings", classes, _MOST)
        print(
            f"{counts['train']} drawings of {len(classes)} classes to train on, {counts['test']} to test on\n"
        )
        print_table(here, asked)


def print_table(here: Path, asked: argparse.Namespace) -> None:
    """One row for each size; all against the default."""
    import visus

    sizes: dict[str, int | str | None] = {
        "default": None,
        "twice that": round(asked.img_size * 16 / 7),
        "full": "full",
    }
    runs = {
        name: [train(here, asked, size, seed) for seed in range(asked.seeds)] for name, size in sizes.items()
    }
    found = visus.compare_runs([path for paths in runs.values() for path in paths])
    print("| --cache-size | test accuracy, mean | min to max | against the default, points | 95 % interval |")
    print("|---|---|---|---|---|")
    for place, (name, pool) in enumerate(zip(runs, found.pools, strict=True)):
        pairs = [each for each in found.pool_pairs if (each.a, each.b) == (0, place)]
        against = [
            f"{100 * each.difference:+.2f} | {100 * each.difference_ci95[0]:+.2f} to {100 * each.difference_ci95[1]:+.2f}"
            for each in pairs
        ] or ["0 | "]
        print(
            f"| {name} | {100 * pool.accuracy:.2f} | {100 * pool.lowest:.2f} to {100 * pool.highest:.2f} | {against[0]} |"
        )


def train(here: Path, asked: argparse.Namespace, size: int | str | None, seed: int) -> str:
    """The folder of a finished run."""
    import visus

    options: dict[str, Any] = {"cache_size": size} if size else {}
    config = visus.make_config(
        data=str(here / "drawings"),
        model="small",
        img_size=asked.img_size,
        augment="standard",
        recipe="fast",
        epochs=asked.epochs,
        seed=seed,
        name=f"size-{size}-seed-{seed}",
        out=str(here / "runs"),
        **options,
    )
    return visus.train(config).run


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.png"))


if __name__ == "__main__":
    main()
