"""Folders of images: a folder for each class, or such folders under `train/`, `val/` and `test/`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visus.data.images import Column, Labels
from visus.data.names import NamesBuilder
from visus.data.trees import FolderTree, Tree, join
from visus.errors import DataError

IMAGE_SUFFIXES = frozenset(["png", "jpg", "jpeg", "gif", "tif", "tiff", "webp", "avif", "bmp", "ppm", "pgm"])
_ENDINGS = tuple(f".{suffix}" for suffix in sorted(IMAGE_SUFFIXES))
PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""The usual names of the parts."""


@dataclass
class Listing:
    """The images of one part: class names in order, and each image's path (relative to the source) and class."""

    classes: list[str] = field(default_factory=list)
    paths: Sequence[str] = ()
    labels: Labels = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    others: int = 0
    """Files that are no images by their suffix."""
    loose: int = 0
    """Images that are beside the class folders, and of no class."""
    empty: list[str] = field(default_factory=list)
    """Class folders without an image; they are no classes."""
    columns: dict[str, Column] = field(default_factory=dict)
    """What else is known of each image, by the name of a table's column."""


def find_parts(tree: Tree) -> dict[str, str]:
    """The folders of the parts, by any of their usual names; `{"train": folder}` where there are none.

    A single folder that holds everything is looked through; one that is called as a part is that part. `DataError` for two folders
    of one part.
    """
    folder, part = "", "train"
    while True:
        folders, files = tree.entries(folder)
        parts = _by_part(folders, tree.path / folder)
        if len(folders) == len(parts) > 1 or _holds_classes(tree, folder, parts.get("train")):
            return {part: join(folder, name) for part, name in parts.items()}
        if len(folders) != 1 or _has_images(files) or _has_images(tree.entries(join(folder, folders[0]))[1]):
            return {part: folder}
        folder, part = join(folder, folders[0]), PARTS.get(folders[0].lower(), part)


def parts_by_name(names: Sequence[str], source: object) -> list[str]:
    """The part that each file of `source` belongs to, by a word of its name, else of a folder's: `train` where none says it.

    `DataError` where some say it and others do not.
    """
    parts = [_part_of(name) for name in names]
    if any(parts) and not all(parts):
        unclear = names[parts.index(None)]
        raise DataError(
            f"{source}: expected the name of every file to say its part, as others do, found {unclear}; rename it"
        )
    return [part or "train" for part in parts]


def _part_of(name: str) -> str | None:
    for piece in reversed(name.split("/")):
        words = re.split(r"[^a-z]+", piece.lower())
        if found := {PARTS[word] for word in words if word in PARTS}:
            return found.pop() if len(found) == 1 else None
    return None


def _holds_classes(tree: Tree, place: str, train: str | None) -> bool:
    """Whether the folder `train` in `place` is a part; one with images directly in it is a class that happens to be called so."""
    return train is not None and not _has_images(tree.entries(join(place, train))[1])


def _by_part(folders: list[str], place: Path) -> dict[str, str]:
    parts: dict[str, str] = {}
    for name in folders:
        part = PARTS.get(name.lower())
        if part in parts:
            raise DataError(f"{place}: expected one folder for {part}, found {parts[part]} and {name}")
        if part:
            parts[part] = name
    return parts


def list_classes(tree: Tree, folder: str) -> Listing:
    """The images under the class folders of `folder`, classes and paths in lexicographic order.

    Hidden and empty folders are no classes. `DataError` for names that differ only in case or in how their accents are written.
    """
    folders, files = tree.entries(folder)
    listing, paths = Listing(loose=sum(map(is_image, files))), NamesBuilder()
    counts: list[int] = []
    for name in folders:
        found, others = _images_under(tree, join(folder, name))
        listing.others += others
        if not found:
            listing.empty.append(name)
            continue
        listing.classes.append(name)
        paths.add(found)
        counts.append(len(found))
    refuse_lookalikes(listing.classes, tree.path / folder)
    listing.paths = paths.finish()
    listing.labels = np.repeat(np.arange(len(counts)), np.array(counts, dtype=np.int64))
    return listing


def list_images(folder: Path) -> list[str]:
    """Paths of every image under `folder`, sorted; hidden files and folders are left out."""
    return [str(folder / name) for name in _images_under(FolderTree(folder), "")[0]]


def _images_under(tree: Tree, top: str) -> tuple[list[str], int]:
    """Names of images, sorted, and how many other files there are. A folder that is met again by a link is passed over."""
    found: list[str] = []
    others = 0
    seen: set[object] = set()
    waiting = [top]
    while waiting:
        current = waiting.pop()
        if (identity := tree.identity(current)) in seen:
            continue
        seen.add(identity)
        folders, files = tree.entries(current)
        images = [name for name in files if is_image(name)]
        found += [f"{current}/{name}" for name in images] if current else images
        others += len(files) - len(images)
        waiting += [join(current, name) for name in folders]
    return sorted(found), others


def is_image(name: str) -> bool:
    """Whether a file's suffix, in any case, is that of an image."""
    # For a million names: three times as fast as to cut the suffix off.
    return name.lower().endswith(_ENDINGS) and name[0] != "."


def _has_images(files: list[str]) -> bool:
    return any(map(is_image, files))


def refuse_lookalikes(names: Sequence[str], place: Path | str) -> None:
    """`DataError` for class names that differ only in case or in how their accents are written."""
    folded = Counter(unicodedata.normalize("NFC", name).casefold() for name in names)
    if twins := [name for name in names if folded[unicodedata.normalize("NFC", name).casefold()] > 1]:
        raise DataError(
            f"{place}: expected class names that differ in more than case and accents, found {', '.join(map(repr, twins))}"
        )
