"""Images that are left out because somebody says so: the list that `visus audit --fix-list` writes, or one made by hand."""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from visus.data.files import FileImages
from visus.data.images import Data, Split
from visus.data.tabular import TABLE_SUFFIXES
from visus.display import plural
from visus.errors import DataError, UsageError, first_of

_PARTS = ("train", "val", "test")
_SHOWN = 200
"""Characters of a name that is told."""


def image_names(paths: Mapping[str, Sequence[str]], val: str | None = None) -> dict[str, list[str]]:
    """What each image of each part is called in lists: its path; `train/17` where several parts have that path, as arrays do.

    `paths` are those of each part. `val` is the other source that the validation part was taken from, if any: its images are called
    by their path there, or from the folder of a table.
    """
    if val is not None:
        base = os.path.dirname(val) if Path(val).suffix.lower() in TABLE_SUFFIXES else val  # noqa: PTH120
        paths = {
            # A `Path` for each of a million images takes long.
            name: [os.path.join(base, path) for path in each] if name == "val" else each  # noqa: PTH118
            for name, each in paths.items()
        }
    sets = {name: set(each) for name, each in paths.items()}

    def call(name: str, path: str) -> str:
        shared = any(path in others for other, others in sets.items() if other != name)
        return f"{name}/{path}" if shared else path

    return {name: [call(name, path) for path in each] for name, each in paths.items()}


def read_exclusions(path: str | os.PathLike[str]) -> list[str]:
    """The names in a list of images: the column `path` of a CSV table, or the first where there is no such column."""
    try:
        with Path(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise UsageError(
            f"--exclude {path}: cannot be read ({error.strerror}); give a list that can"
        ) from None
    except csv.Error as error:
        raise UsageError(
            f"--exclude {path}: expected a table with a column path, found none ({error})"
        ) from None
    if any("\0" in field for row in rows for field in row):
        raise UsageError(f"--exclude {path}: expected a table with a column path, found no text")
    if not rows or "path" not in rows[0]:
        return [row[0] for row in rows]
    column = rows[0].index("path")
    return [row[column] for row in rows[1:] if len(row) > column]


def exclude(data: Data, path: str | os.PathLike[str], val: str | None = None) -> Data:
    """`data` without the images that the list at `path` names; a note says how many of which part.

    After the split, so that all others stay in their part. Names that no image has are mentioned. `UsageError` for a list that
    cannot be read, `DataError` where a part would be empty or a class without an image to train on.
    """
    parts = {name: part for name in _PARTS if (part := getattr(data, name)) is not None}
    names = image_names({name: part.paths for name, part in parts.items()}, val)
    roots = {
        str(part.images.root.absolute()) for part in parts.values() if isinstance(part.images, FileImages)
    }
    listed = {name: {name, _plain(name, roots)} for name in read_exclusions(path)}
    wanted = set().union(*listed.values())
    trained = set(parts["train"].paths) if "train" in parts else set()
    found: set[str] = set()
    counts: dict[str, int] = {}
    changed: dict[str, Any] = {}
    for name, part in parts.items():
        hits = [
            _aliases(name, *each, trained, val) & wanted for each in zip(names[name], part.paths, strict=True)
        ]
        found.update(*hits)
        stay = np.flatnonzero([not hit for hit in hits])
        counts[name] = len(part) - len(stay)
        changed[name] = part.subset(stay) if counts[name] else part
    _refuse_losses(parts, changed, path)
    shown = ", ".join(f"{count} of {name}" for name, count in counts.items() if count) or "none"
    notes = [f"left out by --exclude: {shown}"]
    if unknown := sorted(name for name, called in listed.items() if not called & found):
        every = "" if found else "the list is of other images: "
        shown = first_of([each[:_SHOWN] for each in unknown], 3)
        notes.append(f"--exclude: {every}no image has {plural(len(unknown), 'name')} of it: {shown}")
    return replace(data, **changed, notes=(*data.notes, *notes))


def _plain(name: str, roots: set[str]) -> str:
    """`name` without `./`, and of a path from the top what leads on from the folder of the images, one of the `roots`."""
    plain = posixpath.normpath(name) if name else name
    return next((plain.removeprefix(f"{root}/") for root in roots if plain.startswith(f"{root}/")), plain)


def _aliases(part: str, name: str, path: str, trained: set[str], val: str | None) -> set[str]:
    """What an image may be called in a list: to the audit, one that was set aside for validation is one of the training part."""
    set_aside = part == "val" and val is None and path not in trained
    return {name, f"train/{path}"} if set_aside else {name}


def _refuse_losses(before: Mapping[str, Split], after: Mapping[str, Split], path: object) -> None:
    for name, part in after.items():
        if not len(part):
            raise DataError(
                f"--exclude {path}: expected to leave something of {name}, found all its images listed"
            )
    if "train" in before:
        had_none = set(before["train"].absent_classes)
        if lost := [name for name in after["train"].absent_classes if name not in had_none]:
            raise DataError(
                f"--exclude {path}: expected to leave training images of every class, found none left of {first_of(lost)}"
            )
