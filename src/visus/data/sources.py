"""From what a person names to a data set with its parts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from visus.data.arrays import array_split, read_digits, read_idx, read_npz
from visus.data.files import FileImages
from visus.data.folders import find_parts, list_classes
from visus.data.images import Data, Split
from visus.data.splitting import split_off
from visus.errors import DataError

_IDX_PARTS = {"train": "train", "t10k": "test", "test": "test"}


def open_source(source: str | os.PathLike[str], *, val_fraction: float = 0.1, split_seed: int = 0) -> Data:
    """The data set that `source` names: `digits`, an `.npz` file, a folder of IDX files (the MNIST
    family), a folder of class folders, or `train/`, `val/` and `test/` above such.

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
    if path.is_dir():
        return _open_folder(path)
    raise DataError(f"{source}: expected a folder, an .npz file or `digits`, found another file")


def _data(source: str | os.PathLike[str], kind: str, **parts: Split) -> Data:
    classes = max((part.classes for part in parts.values()), key=len)
    named = {name: replace(part, classes=classes) for name, part in parts.items()}
    counts = ", ".join(f"{len(part)} in {name}" for name, part in named.items())
    return Data(
        str(source),
        classes,
        named.get("train"),
        named.get("val"),
        named.get("test"),
        notes=(f"{kind}: {len(classes)} classes, images: {counts}",),
    )


def _open_folder(source: Path) -> Data:
    """Class folders, or such folders in each part; parts must agree on the classes, so that no index shifts in silence."""
    listings = {name: list_classes(folder, source) for name, folder in find_parts(source).items()}
    classes = listings["train"].classes
    if not classes:
        raise DataError(
            f"{source}: expected an .npz file, a folder of IDX files or class folders with images in them, found none"
        )
    if len(classes) < 2:
        raise DataError(f"{source}: expected images of at least two classes, found only {classes[0]}")
    for name, listing in listings.items():
        _refuse_other_classes(source, name, listing.classes, classes)
    parts = {
        name: Split(
            name,
            FileImages(source, listing.paths),
            np.array(listing.labels, dtype=np.int64),
            tuple(classes),
            listing.paths,
        )
        for name, listing in listings.items()
    }
    data = _data(source, "class folders", **parts)
    others = sum(listing.others for listing in listings.values())
    empty = sorted({name for listing in listings.values() for name in listing.empty})
    notes = [f"{others} other files passed over"] * bool(others)
    notes += [f"folders without images passed over: {', '.join(empty)}"] * bool(empty)
    return replace(data, notes=(*data.notes, *notes))


def _refuse_other_classes(source: Path, part: str, found: list[str], expected: list[str]) -> None:
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        differences = [f"missing: {', '.join(missing)}"] * bool(missing) + [
            f"more: {', '.join(extra)}"
        ] * bool(extra)
        raise DataError(
            f"{source}: expected the same classes in train and {part}; {part} differs ({'; '.join(differences)})"
        )


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
