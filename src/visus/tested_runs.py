"""Runs whose predictions are there: their folders, read for comparison. `N` test images."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visus.config import read_config
from visus.errors import DataError
from visus.ops.groups import counted_groups, is_one_group
from visus.ops.intervals import interval_over
from visus.ops.resampling import Units, units_of
from visus.runs import RunFolder, open_run
from visus.tables import column_names, encodable, read_columns

Bools = npt.NDArray[np.bool_]

_OWN = frozenset(["seed", "name", "out", "device", "workers", "cache", "checkpoint_every", "threads", "keep"])
"""Settings in which runs of one kind may differ."""


@dataclass(frozen=True)
class TestedRun:
    """A run whose predictions are there."""

    __test__ = False

    folder: RunFolder
    settings: dict[str, Any]
    evaluation: dict[str, Any]
    paths: list[str]
    """Of the test images, sorted."""
    labels: list[str]
    predictions: list[str]
    groups: list[str]
    """Of each image, such as its patient, empty where it has none; an empty list where `split.csv` has no column of them."""

    @cached_property
    def units(self) -> Units | None:
        """The group of each image `[N]`, from 0; `None` where no two share one, or all do, so that images are to be counted."""
        counted = counted_groups(self.groups)
        return None if counted is None else units_of(self.n, counted, most=self.n)

    @property
    def one_group(self) -> bool:
        """Whether all images, two at least, share a group."""
        return is_one_group(self.groups)

    @property
    def name(self) -> str:
        """The path of its folder."""
        return str(self.folder.path)

    @cached_property
    def correct(self) -> Bools:
        """`[N]`"""
        found: Bools = np.array(self.labels) == np.array(self.predictions)
        return found

    @property
    def n(self) -> int:
        """Test images."""
        return len(self.paths)

    @property
    def accuracy(self) -> float:
        """On them."""
        return float(self.correct.mean())

    @property
    def tested_on(self) -> object:
        """Equal for runs that can be compared."""
        return self.evaluation.get("fingerprint"), tuple(self.paths), tuple(self.labels)

    @property
    def kind(self) -> str:
        """Equal for runs that differ by their seed only."""
        return json.dumps({k: v for k, v in self.settings.items() if k not in _OWN}, sort_keys=True)


def read_run(path: str | os.PathLike[str]) -> TestedRun:
    """The run in the folder `path`; `DataError` where it has no predictions, `UsageError` where it is no run."""
    folder = open_run(path)
    table = folder.predictions
    if table is None or not folder.evaluation.is_file():
        raise DataError(
            f"{path}: expected predictions of a finished run, found none; finish it with visus train --resume {path}"
        )
    paths, labels, predictions = read_columns(table, ["path", "label", "prediction"])
    if not paths:
        raise DataError(f"{table}: expected predictions, found none")
    try:
        evaluation = json.loads(folder.evaluation.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{folder.evaluation}: cannot be read: {error}") from None
    rows = sorted(zip(paths, labels, predictions, strict=True))
    paths, labels, predictions = (list(column) for column in zip(*rows, strict=True))
    groups = _groups(folder.split, evaluation.get("split"), paths)
    return TestedRun(folder, read_config(folder.config), evaluation, paths, labels, predictions, groups)


def _groups(split: Path, tested: str | None, paths: Sequence[str]) -> list[str]:
    """What `split` says of the `paths` in the part `tested`; an empty list where that is nothing."""
    found = groups_in(split, tested)
    return [found.get(encodable(path), "") for path in paths] if found else []


def groups_in(split: Path, part: str | None) -> dict[str, str]:
    """What the column `group` of the table `split`, if there is one, says of each image in a `part`, by its `encodable` path."""
    if not split.is_file() or "group" not in column_names(split):
        return {}
    rows = zip(*read_columns(split, ["path", "split", "group"]), strict=True)
    return {encodable(path): group for path, each, group in rows if each == part}


def units_of_runs(runs: Sequence[TestedRun]) -> Units | None:
    """The `units` of the images that all `runs` were tested on, by the first run that knows them."""
    return next((run.units for run in runs if run.units is not None), None)


def find_runs(folder: str | os.PathLike[str]) -> list[RunFolder]:
    """The runs in the folders right under `folder`, sorted; none where it is a run itself."""
    if RunFolder(folder).config.is_file() or not Path(folder).is_dir():
        return []
    return [run for each in sorted(Path(folder).iterdir()) if (run := RunFolder(each)).config.is_file()]


def runs_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders of the runs in `folder`, or itself where there is none in it."""
    return [run.path for run in find_runs(folder)] or [Path(folder)]


def row_of(run: TestedRun, units: Units | None) -> dict[str, Any]:
    """What a leaderboard says of `run`, whose images are of `units [N]` where groups are counted."""
    keys = ("model", "recipe", "epochs", "seed")
    return {
        "run": run.name,
        "n": run.n,
        "accuracy": run.accuracy,
        "accuracy_ci95": interval_over(run.correct, units),
        "split": run.evaluation.get("split"),
        "loss": run.evaluation.get("loss"),
        "ece": run.evaluation.get("ece"),
        **{key: run.settings.get(key) for key in keys},
    }
