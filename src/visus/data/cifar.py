"""CIFAR-10 and CIFAR-100 as they are downloaded: binary or python version, unpacked or still a `.tar.gz`.

An image is 3,072 bytes: 32 x 32 of red, then of green, then of blue, row by row. Krizhevsky, Learning Multiple Layers of Features
from Tiny Images, 2009; the formats are described at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visus.data.arrays import array_split
from visus.data.images import Split
from visus.data.pickles import PickledArray, load_plain_pickle
from visus.errors import DataError

Pixels = npt.NDArray[np.uint8]
Files = Mapping[str, Callable[[], bytes]]

_SHAPE = (3, 32, 32)
_IMAGE_BYTES = 3 * 32 * 32
_LARGEST_FILE_BYTES = 200_000_000
"""CIFAR-100's training images are the longest, with 155 million."""
_FOLDERS = ("cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python")


@dataclass(frozen=True)
class Cifar:
    """What was found."""

    title: str
    parts: dict[str, Split]


@dataclass(frozen=True)
class _Layout:
    """The files of one version, and how they are read: `(content, origin)` to images and labels, and to names."""

    title: str
    train: tuple[str, ...]
    test: str
    names: str
    read_batch: Callable[[bytes, object], tuple[Pixels, list[int]]]
    read_names: Callable[[bytes, object], list[str]]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names)


def read_cifar(path: Path) -> Cifar | None:
    """The set in the folder or `.tar.gz` at `path`, or in a folder there with one of its usual names; `None` for others.

    `DataError` where files are missing or damaged, or where there are several sets.
    """
    found = []
    places = [path] if path.is_file() else [path, *(path / name for name in _FOLDERS)]
    for place in places:
        files = _in_archive(place) if place.is_file() else _in_folder(place)
        found += [(each, place, files) for each in _LAYOUTS if sum(name in files for name in each.files) > 1]
    if not found:
        return None
    if len(found) > 1:
        raise DataError(
            f"{path}: expected one data set, found {' and '.join(layout.title for layout, _, _ in found)}; "
            "give the folder of one of them"
        )
    return _read(*found[0])


def _read(layout: _Layout, place: Path, files: Files) -> Cifar:
    if missing := [name for name in layout.files if name not in files]:
        raise DataError(f"{place}: expected the files of {layout.title}, found no {', '.join(missing)}")
    classes = layout.read_names(files[layout.names](), place / layout.names)
    parts = {}
    for part, names in (("train", layout.train), ("test", (layout.test,))):
        batches = [layout.read_batch(files[name](), place / name) for name in names]
        pixels = np.concatenate([images for images, _ in batches]).reshape(-1, *_SHAPE)
        labels = [label for _, some in batches for label in some]
        parts[part] = array_split(part, pixels, np.array(labels, dtype=np.int64), classes, place)
    return Cifar(layout.title, parts)


def _in_folder(folder: Path) -> Files:
    paths = {name: folder / name for layout in _LAYOUTS for name in layout.files}
    return {name: partial(_content, path) for name, path in paths.items() if path.is_file()}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None


def _in_archive(path: Path) -> Files:
    """The files in a `.tar.gz`, by the last part of their names, read into memory: nothing is unpacked."""
    known = {name for layout in _LAYOUTS for name in layout.files}
    contents: dict[str, bytes] = {}
    try:
        with gzip.open(path) as unpacked, tarfile.open(fileobj=unpacked) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in known and member.isfile() and member.size <= _LARGEST_FILE_BYTES:
                    file = archive.extractfile(member)
                    assert file is not None
                    contents[name] = file.read()
            # A tar ends before its gzip does, whose checksum is looked at only there.
            while unpacked.read(2**20):
                pass
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as .tar.gz: {error}; download it again") from None
    return {name: partial(bytes, content) for name, content in contents.items()}


def _read_records(content: bytes, origin: object, *, label_bytes: int) -> tuple[Pixels, list[int]]:
    """Records of labels, the last of which counts (CIFAR-100 puts the coarse one before it), and pixels."""
    length = label_bytes + _IMAGE_BYTES
    if not content or len(content) % length:
        raise DataError(
            f"{origin}: expected records of {length} bytes, found {len(content)} bytes; download it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    return records[:, label_bytes:], records[:, label_bytes - 1].tolist()


def _read_lines(content: bytes, origin: object) -> list[str]:
    names = content.decode("utf-8", "replace").split()
    if not names:
        raise DataError(f"{origin}: expected a class name on each line, found none; download it again")
    return names


def _read_pickled_batch(content: bytes, origin: object, *, labels: str) -> tuple[Pixels, list[int]]:
    match load_plain_pickle(content, origin):
        case {"data": PickledArray(dtype="u1", shape=(_, width)) as data, **others} if width == _IMAGE_BYTES:
            numbers = others.get(labels)
            if isinstance(numbers, list) and all(type(each) is int for each in numbers):
                return np.frombuffer(data.content, np.uint8).reshape(-1, _IMAGE_BYTES), numbers
    raise DataError(
        f"{origin}: expected data, uint8 [N, {_IMAGE_BYTES}], and {labels}, found others; download it again"
    )


def _read_pickled_names(content: bytes, origin: object, *, key: str) -> list[str]:
    match load_plain_pickle(content, origin):
        case {**entries} if isinstance(names := entries.get(key), list) and all(
            isinstance(each, str) for each in names
        ):
            return names
    raise DataError(f"{origin}: expected class names under {key}, found none; download it again")


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_LAYOUTS = (
    _Layout(
        "CIFAR-10 (binary version)",
        tuple(f"{name}.bin" for name in _BATCHES),
        "test_batch.bin",
        "batches.meta.txt",
        partial(_read_records, label_bytes=1),
        _read_lines,
    ),
    _Layout(
        "CIFAR-100 (binary version)",
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
        partial(_read_records, label_bytes=2),
        _read_lines,
    ),
    _Layout(
        "CIFAR-10 (python version)",
        _BATCHES,
        "test_batch",
        "batches.meta",
        partial(_read_pickled_batch, labels="labels"),
        partial(_read_pickled_names, key="label_names"),
    ),
    _Layout(
        "CIFAR-100 (python version)",
        ("train",),
        "test",
        "meta",
        partial(_read_pickled_batch, labels="fine_labels"),
        partial(_read_pickled_names, key="fine_label_names"),
    ),
)
