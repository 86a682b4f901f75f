"""From what a person names to a data set with its parts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from visus.data.arrays import array_split, read_digits, read_idx, read_npz
from visus.data.images import Data, Split
from visus.data.splitting import split_off
from visus.errors import DataError

_IDX_PARTS = {"train": "train", "t10k": "test", "test": "test"}


def open_source(source: str | os.PathLike[str], *, val_fraction: float = 0.1, split_seed: int = 0) -> Data:
    """The data set that `source` names: `digits`, an `.npz` file, or a folder of IDX files (the MNIST family).

    Where no validation part is given, a stratified `val_fraction` of the training part is set aside; 0 leaves it out. `digits`
    has a test part of its own: a fifth, by the same rule with seed 0. Raises `DataError` where there is nothing to train on.
    """
    data = _open(source)
    if data.train is None:
        raise DataError(f"{source}: expected training images, found only a test part")
    if data.val is None and val_fraction:
        train, val = split_off(data.train, "val", val_fraction, split_seed)
        note = f"{len(val)} of {len(data.train)} training images set aside for validation (seed {split_seed})"
        data = replace(data, train=train, val=val, notes=(*data.notes, note))
    return data


def _open(source: str | os.PathLike[str]) -> Data:
    if str(source) == "digits" and not Path(source).exists():
        train, test = split_off(read_digits(), "test", 0.2, 0)
        return _data(source, "the built-in digits", train=train, test=test)
    path = Path(source)
    if not path.exists():
        raise DataError(f"{source}: expected a folder, an .npz file or `digits`, found nothing there")
    if path.suffix == ".npz":
        return _data(source, "an .npz file", train=read_npz(path))
    if path.is_dir() and (parts := _idx_files(path)):
        return _data(
            source, "IDX files", **{name: _read_idx_part(name, *files) for name, files in parts.items()}
        )
    raise DataError(f"{source}: expected an .npz file or a folder of IDX files, found neither")


def _data(source: str | os.PathLike[str], kind: str, **parts: Split) -> Data:
    classes = max((part.classes for part in parts.values()), key=len)
    parts = {name: replace(part, classes=classes) for name, part in parts.items()}
    counts = ", ".join(f"{len(part)} in {name}" for name, part in parts.items())
    return Data(str(source), classes, **parts, notes=(f"{kind}: {len(classes)} classes, images: {counts}",))


def _idx_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Images and labels of each part, by the names that MNIST and its kin give: `train-images-idx3-ubyte[.gz]` and so on."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        words = path.name.removesuffix(".gz").replace(".", "-").split("-")
        if "idx3" in words or "idx1" in words:
            part = next((_IDX_PARTS[word] for word in words if word in _IDX_PARTS), "train")
            found[part, "images" if "idx3" in words else "labels"] = path
    for part, kind in found:
        other = "labels" if kind == "images" else "images"
        if (part, other) not in found:
            raise DataError(
                f"{folder}: expected a file of {other} beside {found[part, kind].name}, found none"
            )
    return {part: (found[part, "images"], found[part, "labels"]) for part, kind in found if kind == "images"}


def _read_idx_part(name: str, images: Path, labels: Path) -> Split:
    return array_split(name, read_idx(images), read_idx(labels), None, images)
