"""IDX files: the format of MNIST and its family."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visus.data.arrays import array_split
from visus.data.images import Split
from visus.errors import DataError

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_PARTS = {"train": "train", "t10k": "test", "test": "test"}


def find_idx(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Images and labels of each part, by the names that MNIST and its kin give: `train-images-idx3-ubyte[.gz]` and so on.

    Empty where there are none; `DataError` for images without labels, or the other way round.
    """
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        words = path.name.removesuffix(".gz").replace(".", "-").split("-")
        if ("idx3" in words or "idx1" in words) and path.is_file():
            part = next((_IDX_PARTS[word] for word in words if word in _IDX_PARTS), "train")
            found[part, "images" if "idx3" in words else "labels"] = path
    for part, kind in found:
        other = "labels" if kind == "images" else "images"
        if (part, other) not in found:
            raise DataError(
                f"{folder}: expected a file of {other} beside {found[part, kind].name}, found none"
            )
    return {part: (found[part, "images"], found[part, "labels"]) for part, kind in found if kind == "images"}


def read_idx_part(name: str, images: Path, labels: Path) -> Split:
    """A part made of a file of images and one of labels; `DataError` where they do not fit together."""
    return array_split(
        name, read_idx(images), read_idx(labels), None, f"{images.parent}: {images.name} and {labels.name}"
    )


def read_idx(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """An IDX file (the format of MNIST), gzipped or not; `DataError` where it is damaged.

    Two zero bytes, a type, the number of axes, then each axis's length as big-endian int32, then the values.
    """
    try:
        with Path(path).open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else Path(path).open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; copy it again") from None
    axes = content[3] if len(content) > 3 else 0
    if len(content) < 4 + 4 * axes or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise DataError(f"{path}: expected an IDX file, found other bytes; copy it again")
    shape = [int(n) for n in np.frombuffer(content[4 : 4 + 4 * axes], dtype=">u4")]
    dtype = np.dtype(_IDX_TYPES[content[2]])
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize if shape else -1
    if len(content) - 4 - 4 * axes != expected:
        raise DataError(
            f"{path}: expected {expected} bytes for {shape}, found {len(content) - 4 - 4 * axes}; copy it again"
        )
    return np.frombuffer(content, dtype, offset=4 + 4 * axes).reshape(shape).astype(dtype.newbyteorder("="))
