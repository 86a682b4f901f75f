"""The run folder: where a training run keeps everything it found.

Reading needs no torch, so that looking at runs is quick.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypedDict, cast

import filelock

from visus.errors import DataError, UsageError
from visus.files import sync_folder, write_text

Phase = Literal["train", "val"]


class Curve(TypedDict):
    """A value for each epoch, in both phases."""

    train: list[float]
    val: list[float]


class History(TypedDict):
    """How a run went: accuracies are fractions, losses are means over the images of the phase."""

    acc: Curve
    loss: Curve


class Record(TypedDict):
    """One line of `metrics.jsonl`."""

    epoch: int
    """From 1."""
    phase: Phase
    loss: float | None
    accuracy: float
    n: int
    lr: float
    seconds: float
    images_per_second: float


class RunFolder:
    """One run's folder; it holds paths and appends metrics, nothing else."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.progress = self.path / "progress.json"
        self.last = self.path / "last.safetensors"
        self.previous = self.path / "previous.safetensors"
        self.best = self.path / "best.safetensors"
        self.split = self.path / "split.csv"
        self.environment = self.path / "environment.json"
        self.summary = self.path / "summary.json"
        self.evaluation = self.path / "evaluation.json"
        self.audit = self.path / "audit.json"
        self.profile = self.path / "profile.json"
        self.trace = self.path / "trace.json"

    @property
    def predictions(self) -> Path | None:
        """The table of predictions, if there is one."""
        paths = (self.path / "predictions.parquet", self.path / "predictions.csv")
        return next((each for each in paths if each.is_file()), None)

    @contextmanager
    def locked(self, *, needed: bool = True) -> Iterator[None]:
        """Hold `run.lock`, so that one process at a time writes here; `UsageError` where another one does.

        With `needed` off, as in a process that does not write, nothing happens.
        """
        if not needed:
            yield
            return
        lock = filelock.FileLock(self.path / "run.lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise UsageError(
                f"{self.path}: another process is writing to this run; wait for it or stop it"
            ) from None
        except NotImplementedError:
            raise UsageError(
                f"{self.path}: the file system there cannot lock files; choose another with --out"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def is_free(self) -> bool:
        """Whether no process writes here."""
        try:
            with self.locked():
                return True
        except UsageError:
            return False

    def write_records(self, records: list[Record]) -> None:
        """Replace the lines of `metrics.jsonl`, in one step, so that a full disk leaves no half of one."""
        write_text(self.metrics, "".join(json.dumps(each, allow_nan=False) + "\n" for each in records))

    def records(self) -> list[Record]:
        """The lines of `metrics.jsonl`; a last line that was not finished is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise DataError(f"{self.metrics}: expected one JSON object a line: {error}") from None

    def cut_back(self, epochs: int, records: list[Record] | None = None) -> None:
        """Keep the records of the first `epochs` epochs: those that the checkpoint knows of, which may hold `records` itself."""
        kept = self.records() if records is None else records
        self.write_records([_in_order(record) for record in kept if record["epoch"] <= epochs])

    def remove_leftovers(self) -> None:
        """Remove what a run that was killed has left: our temporary files, those of safetensors, and how far its epoch was."""
        for path in [*self.path.glob(".*.tmp"), *self.path.glob(".tmp*"), self.progress]:
            path.unlink(missing_ok=True)


def _in_order(record: Record) -> Record:
    """With its keys as they are written first; a checkpoint has them sorted."""
    values = dict(record)
    first = {name: values[name] for name in Record.__annotations__ if name in values}
    return cast("Record", first | values)


def check_out(out: str | os.PathLike[str]) -> None:
    """`UsageError` where no folder for runs can be made at `out`: asked before there is any work to lose."""
    path = Path(out).absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        raise UsageError(f"{there}: expected a folder for runs, found a file")
    try:
        # What permissions say is not all: of `/proc` they say that root may write.
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UsageError(
            f"{there}: cannot make a run's folder here ({error.strerror}); choose another with --out"
        ) from None


def create_run(out: str | os.PathLike[str], name: str) -> RunFolder:
    """Make `out/name`, or the first of `name-2`, `name-3`, ... that does not exist; an old run is never overwritten."""
    number = 1
    while True:
        path = Path(out) / (name if number == 1 else f"{name}-{number}")
        try:
            _make_folder(path)
            return RunFolder(path)
        except (FileExistsError, NotADirectoryError):
            if not path.parent.is_dir():
                raise UsageError(f"{path.parent}: expected a folder for runs, found a file") from None
            number += 1
        except OSError as error:
            raise UsageError(
                f"{path}: cannot make the run's folder: {error.strerror}; choose another with --out"
            ) from None


def _make_folder(path: Path) -> None:
    """With those above it, durably: what is synced in a folder is lost with the folder."""
    above = path.absolute().parent
    if not above.is_dir():
        with suppress(FileExistsError):
            _make_folder(above)
    path.mkdir()
    sync_folder(above)


def open_run(path: str | os.PathLike[str]) -> RunFolder:
    """The run at `path`; `UsageError` where there is none."""
    run = RunFolder(path)
    if not run.config.is_file():
        raise UsageError(f"{path}: expected a run's folder with config.yaml in it, found none")
    return run


def history_of(records: list[Record]) -> History:
    """The records of a run as curves."""
    history: History = {"acc": {"train": [], "val": []}, "loss": {"train": [], "val": []}}
    for record in records:
        history["acc"][record["phase"]].append(record["accuracy"])
        loss = record["loss"]
        history["loss"][record["phase"]].append(float("nan") if loss is None else loss)
    return history


def read_history(run: str | os.PathLike[str]) -> History:
    """`{"acc": {"train": [...], "val": [...]}, "loss": {...}}` of a run's folder, an entry for each epoch."""
    return history_of(open_run(run).records())
