"""Folders of images: a folder for each class, or such folders under `train/`, `val/` and `test/`."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from visus.errors import DataError

IMAGE_SUFFIXES = frozenset(["png", "jpg", "jpeg", "gif", "tif", "tiff", "webp", "avif", "bmp", "ppm", "pgm"])
_PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass
class Listing:
    """The images of one part: class names in order, and each image's path (relative to the source) and class."""

    classes: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    others: int = 0
    """Files that are no images by their suffix."""
    empty: list[str] = field(default_factory=list)
    """Class folders without an image; they are no classes."""


def find_parts(root: Path) -> dict[str, Path]:
    """The folders of the parts under `root`, by any of their usual names; `{"train": root}` where there are none.

    A single folder that holds everything is looked through.
    """
    folders = _subfolders(root)
    parts: dict[str, Path] = {}
    for folder in folders:
        part = _PARTS.get(folder.name.lower())
        if part in parts:
            raise DataError(
                f"{root}: expected one folder for {part}, found {parts[part].name} and {folder.name}"
            )
        if part:
            parts[part] = folder
    if "train" in parts:
        return parts
    if len(folders) == 1 and not _has_images(root) and not _has_images(folders[0]):
        return find_parts(folders[0])
    return {"train": root}


def list_classes(folder: Path, source: Path) -> Listing:
    """The images under the class folders of `folder`, classes and paths in lexicographic order, paths relative to `source`.

    Hidden and empty folders are no classes. `DataError` for names that differ only in case or in how their accents are written.
    """
    listing = Listing()
    for each in _subfolders(folder):
        found, others = _images_under(each)
        listing.others += others
        if not found:
            listing.empty.append(each.name)
            continue
        label = len(listing.classes)
        listing.classes.append(each.name)
        listing.paths += [os.path.relpath(path, source).replace(os.sep, "/") for path in found]
        listing.labels += [label] * len(found)
    _refuse_lookalikes(listing.classes, folder)
    return listing


def list_images(folder: Path) -> list[str]:
    """Every image under `folder`, sorted; hidden files and folders are left out."""
    return _images_under(folder)[0]


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}; check its permissions") from None
    return [folder / name for name in sorted(names)]


def _images_under(folder: Path) -> tuple[list[str], int]:
    """Paths of images, sorted, and how many other files there are. A folder that is met again by a link is passed over."""
    found: list[str] = []
    others = 0
    seen: set[tuple[int, int]] = set()
    waiting = [str(folder)]
    while waiting:
        current = waiting.pop()
        try:
            status = Path(current).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        waiting.append(entry.path)
                    elif is_image(entry.name):
                        found.append(entry.path)
                    else:
                        others += 1
        except OSError as error:
            raise DataError(f"{current}: cannot be listed: {error.strerror}; check its permissions") from None
    return sorted(found), others


def is_image(name: str) -> bool:
    """Whether a file's suffix, in any case, is that of an image."""
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and suffix.lower() in IMAGE_SUFFIXES


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def _refuse_lookalikes(names: list[str], folder: Path) -> None:
    folded = Counter(unicodedata.normalize("NFC", name).casefold() for name in names)
    if twins := [name for name in names if folded[unicodedata.normalize("NFC", name).casefold()] > 1]:
        raise DataError(
            f"{folder}: expected class names that differ in more than case and accents, found {', '.join(map(repr, twins))}"
        )
