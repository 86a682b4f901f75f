"""What a run writes down of its data: which image is in which part, and a fingerprint of the whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from visus.data.files import FileImages
from visus.data.images import ArrayImages, Data, Images, Split
from visus.data.names import Index

_AT_ONCE = 10_000


def split_header(data: Data) -> list[str]:
    """What the columns of `split_rows` are called."""
    return ["path", "label", "split"] + ["group"] * _has_groups(data)


def split_rows(data: Data) -> Iterator[tuple[str, ...]]:
    """Path, class name and part (`train`, `val` or `test`) of every image, and its group where any part has groups.

    The path of an image from arrays is its index there; arrays for training and for testing both count from 0.
    """
    grouped = _has_groups(data)
    for name, part in _parts(data).items():
        groups = part.columns.get("group", repeat("", len(part)))
        for path, label, group in zip(part.paths, part.labels, groups, strict=True):
            row = path, data.classes[label], name
            yield (*row, group) if grouped else row


def fingerprint(data: Data) -> str:
    """SHA-256, in hexadecimal, over the classes in their order and, part by part, the paths, labels and images.

    Of images in arrays, every pixel; of files the size alone, which is cheap and notices most changes. When a file was written does
    not count, nor where the source lies, nor how the images were decoded.
    """
    digest = hashlib.sha256(json.dumps(data.classes).encode())
    for name, part in _parts(data).items():
        images = part.images
        for piece in _as_json(name, part.paths, part.labels, _sizes(images)):
            digest.update(piece.encode())
        if isinstance(images, ArrayImages):
            digest.update(json.dumps(images.pixels.shape).encode())
            digest.update(images.pixels.numpy().reshape(-1).data)
    return digest.hexdigest()


def part_fingerprint(part: Split) -> str:
    """SHA-256, in hexadecimal, over paths, labels by name, and sizes of files or pixels of arrays of one part, as it was opened.

    The same for every model that is tested on these images, whatever it makes of them before it looks at them.
    """
    names = [part.classes[label] if label >= 0 else None for label in part.labels]
    images = part.images
    digest = hashlib.sha256()
    for piece in _as_json(part.paths, names, _sizes(images)):
        digest.update(piece.encode())
    if isinstance(images, ArrayImages):
        digest.update(json.dumps(images.pixels.shape).encode())
        digest.update(images.pixels.numpy().reshape(-1).data)
    return digest.hexdigest()


def _has_groups(data: Data) -> bool:
    return any("group" in part.columns for part in _parts(data).values())


def _sizes(images: Images) -> Sequence[int] | Index:
    return images.sizes_bytes() if isinstance(images, FileImages) else ()


def _as_json(*items: str | Sequence[Any] | Index) -> Iterator[str]:
    """What `json.dumps(items)` gives, in pieces: all at once it would take several times what a long list takes."""
    for number, each in enumerate(items):
        yield ", " if number else "["
        if isinstance(each, str):
            yield json.dumps(each)
            continue
        yield "["
        for first in range(0, len(each), _AT_ONCE):
            some = each[first : first + _AT_ONCE]
            plain = some.tolist() if isinstance(some, np.ndarray) else list(some)
            yield (", " if first else "") + json.dumps(plain)[1:-1]
        yield "]"
    yield "]"


def _parts(data: Data) -> dict[str, Split]:
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {name: part for name, part in parts.items() if part is not None}
