"""What may not change between a run and its resumption, unless it is allowed by name; and what has changed all the same."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from visus.checkpoint import Checkpoint
from visus.config import TrainConfig
from visus.data.files import FileImages
from visus.data.foreign import Transform
from visus.data.images import Data
from visus.data.listing import split_rows
from visus.errors import DataError, UsageError, first_of, unknown_name
from visus.preparing import Prepared
from visus.runs import RunFolder
from visus.state import TrainingState

FREE = frozenset(["epochs", "patience", "device", "checkpoint_every", "workers", "cache", "profile", "track"])
"""Settings of which none changes what a step computes."""
_OTHERS = ("classes",)
"""What may be allowed besides settings."""
_SHOWN = 3


def setting_names(allowed: Collection[str]) -> frozenset[str]:
    """The names that `--allow-change` was given, as those of settings; `UsageError` for one that there is not."""
    known = [field.name for field in dataclasses.fields(TrainConfig)] + list(_OTHERS)
    names = [name.removeprefix("--").replace("-", "_") for name in allowed]
    for name in names:
        if name not in known:
            raise unknown_name("setting in --allow-change", name, known)
    return frozenset(names)


def refuse_changes(before: TrainConfig, after: TrainConfig, allowed: Collection[str]) -> None:
    """`UsageError` for a setting that differs and is neither free nor `allowed`."""
    for field in dataclasses.fields(before):
        name = field.name
        flag = "DATA" if name == "data" else f"--{name.replace('_', '-')}"
        was, now = getattr(before, name), getattr(after, name)
        if was != now and name not in FREE | set(allowed):
            raise UsageError(
                f"{flag} cannot change on --resume (it was {was}, not {now}); start a new run for it, "
                f"or add --allow-change {name.replace('_', '-')}"
            )


def refuse_other_transform(run: RunFolder, checkpoint: Checkpoint, transform: Transform | None) -> None:
    """`UsageError` where a run had a transform and is given none, or the other way round; which one it was nobody can tell."""
    had = checkpoint.document.get("transform", False)
    if had and transform is None:
        raise UsageError(
            f"{run.path}: was trained with a transform, which no file can hold; "
            "go on in Python: visus.resume(path, transform=...)"
        )
    if transform is not None and not had:
        raise UsageError(f"{run.path}: was trained without a transform; leave it out, or start a new run")


def data_has_changed(
    run: RunFolder, checkpoint: Checkpoint, prepared: Prepared, allowed: Collection[str]
) -> bool:
    """Whether the images, labels, classes or split are others than when the run began; `DataError` unless that is `allowed`."""
    data = prepared.data
    if checkpoint.classes != data.classes:
        if "classes" not in allowed or len(checkpoint.classes) != len(data.classes):
            remedy = " or --allow-change classes" * (len(checkpoint.classes) == len(data.classes))
            raise DataError(
                f"{run.path}: the data has changed: expected the classes {', '.join(checkpoint.classes)}, "
                f"found {', '.join(data.classes)}; start a new run for them{remedy}"
            )
    elif checkpoint.document.get("data") == prepared.fingerprint:
        return False
    elif "data" not in allowed:
        raise DataError(
            f"{run.path}: the data has changed since the run began: {describe_changes(run, data)}; "
            f"expected {data.source} as it was, a new run, or --allow-change data"
        )
    return True


def written_since(run: RunFolder, data: Data) -> str | None:
    """A line for people where image files were written after the run began.

    Their paths and sizes are what they were, or the run would not go on; a time is no proof that the content is another, as a copy
    of the same images may have new ones.
    """
    try:
        began = run.split.stat().st_mtime_ns
    except OSError:
        return None
    parts = [part for part in (data.train, data.val, data.test) if part]
    found = [
        part.paths[place]
        for part in parts
        if isinstance(part.images, FileImages)
        for place in np.flatnonzero(part.images.stamps()[0].times > began).tolist()
    ]
    if not found:
        return None
    return (
        f"{len(found)} image files were written after the run began ({first_of(found, _SHOWN)}); "
        "where their content has changed, bits will differ"
    )


def describe_changes(run: RunFolder, data: Data) -> str:
    """How the images differ from those in `split.csv`: which are new, gone, of no use now, or in another class or part."""
    try:
        with run.split.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            before = [(row["path"], row["label"], row["split"]) for row in csv.DictReader(file)]
    except (OSError, KeyError):
        return "split.csv is not there to say how"
    # Arrays for training and for testing both count from 0, so that a path alone is no name.
    had = {(path, part): label for path, label, part in before}
    has = {(path, part): label for path, label, part, *_ in split_rows(data)}
    both = had.keys() & has.keys()
    moved = {path for path, _ in had.keys() - both} & {path for path, _ in has.keys() - both}
    gone = sorted(path for path, _ in had.keys() - both if path not in moved)
    reasons = {each.path: each.reason for each in data.skipped}
    found = {
        "new": sorted(path for path, _ in has.keys() - both if path not in moved),
        "gone": [path for path in gone if path not in reasons],
        "that cannot be used now": [f"{path}: {reasons[path]}" for path in gone if path in reasons],
        "in another part": sorted(moved),
        "of another class": sorted(path for path, part in both if had[path, part] != has[path, part]),
    }
    parts = [f"{len(paths)} {what} ({first_of(paths, _SHOWN)})" for what, paths in found.items() if paths]
    return ", ".join(parts) or "images of the same names have another content"


def begin_epoch_anew(state: TrainingState, steps_per_epoch: int) -> None:
    """Forget the part of an epoch that is done; steps are counted as though every epoch had had so many."""
    state.epoch_step = 0
    state.epoch_seconds = 0.0
    state.totals.zero_()
    state.step = state.epoch * steps_per_epoch


def other_versions(run: RunFolder) -> list[str]:
    """The libraries that have another version than when the run began, for people to read."""
    try:
        stored = json.loads(run.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    changed = []
    for name in ("torch", "torchvision", "timm", "numpy", "pillow"):
        try:
            now = version(name)
        except PackageNotFoundError:
            continue
        if stored.get(name) not in (None, now):
            changed.append(f"{name} {stored[name]}, now {now}")
    return changed
