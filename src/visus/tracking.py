"""Metrics for the trackers of others: a name, and what sends a run's metrics there.

Each keeps to its own place and its own settings (such as `MLFLOW_TRACKING_URI` and `WANDB_MODE`). What a run knows is in its folder
all the same: a tracker that fails ends nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from visus.errors import UsageError, one_line, unknown_name
from visus.files import write_json
from visus.runs import Record, RunFolder

Send = Callable[[list[Record]], None]
"""Called with all records of a run, after each epoch; sends those that are new."""
_PROJECT = "visus"


def check_tracker(name: str) -> None:
    """`UsageError` where there is no tracker of that name, or where it is not installed."""
    if name not in _TRACKERS:
        raise unknown_name("tracker", name, _TRACKERS)
    try:
        __import__(name)
    except ImportError:
        raise UsageError(
            f"--track {name} needs the package {name}; install it with: pip install 'visus[track]'"
        ) from None


@contextlib.contextmanager
def open_tracker(
    name: str, run: RunFolder, settings: Mapping[str, Any], warn: Callable[[str], object]
) -> Iterator[Send]:
    """What sends the metrics of `run` to the tracker `name`, with `settings` as its parameters.

    A run that is resumed goes on where it was. When the tracker fails, `warn` is told once, and nothing more is sent.
    """
    check_tracker(name)
    failed = False

    def fail(error: Exception) -> None:
        nonlocal failed
        failed = True
        reason = one_line(error)
        warn(f"{name} takes no more metrics ({reason}); they are in {run.metrics}")

    with contextlib.ExitStack() as stack:
        try:
            inner = stack.enter_context(_TRACKERS[name](run, settings))
        # Each raises what it likes: networks, permissions, versions.
        except Exception as error:
            fail(error)

        def send(records: list[Record]) -> None:
            if failed:
                return
            try:
                inner(records)
            except Exception as error:
                fail(error)

        yield send
        try:
            stack.close()
        except Exception as error:
            fail(error)


def scalars(record: Record) -> dict[str, float]:
    """The finite figures of a record by the names that trackers show them under."""
    phase = record["phase"]
    found = {
        f"loss/{phase}": record["loss"],
        f"accuracy/{phase}": record["accuracy"],
        f"images_per_second/{phase}": record["images_per_second"],
    }
    if phase == "train":
        found["lr"] = record["lr"]
    return {key: value for key, value in found.items() if value is not None and math.isfinite(value)}


@contextlib.contextmanager
def _tensorboard(run: RunFolder, settings: Mapping[str, Any]) -> Iterator[Send]:
    """Events in the run's folder, so that `tensorboard --logdir runs` finds them; a run that is resumed writes them anew."""
    from torch.utils.tensorboard import SummaryWriter

    folder = run.path / "tensorboard"
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    sent = 0
    with SummaryWriter(str(folder)) as writer:
        text = "\n".join(f"    {name}: {value}" for name, value in settings.items())
        writer.add_text("settings", text)

        def send(records: list[Record]) -> None:
            nonlocal sent
            for record in records[sent:]:
                for name, value in scalars(record).items():
                    writer.add_scalar(name, value, record["epoch"])
            sent = len(records)
            writer.flush()

        yield send


@contextlib.contextmanager
def _mlflow(run: RunFolder, settings: Mapping[str, Any]) -> Iterator[Send]:
    import mlflow

    stored = _Stored(run, "mlflow")
    if not stored.name:
        mlflow.set_experiment(_PROJECT)
    with mlflow.start_run(run_id=stored.name or None, run_name=run.path.name) as active:
        if not stored.name:
            mlflow.log_params({name: str(value)[:500] for name, value in settings.items()})
        stored.name = active.info.run_id

        def send(records: list[Record]) -> None:
            for record in stored.new(records):
                mlflow.log_metrics(scalars(record), step=record["epoch"])
            stored.keep(records)

        yield send


@contextlib.contextmanager
def _wandb(run: RunFolder, settings: Mapping[str, Any]) -> Iterator[Send]:
    import wandb

    stored = _Stored(run, "wandb")
    project = _PROJECT if not stored.name else None
    with wandb.init(
        project=project,
        name=run.path.name,
        id=stored.name or None,
        resume="allow",
        config=dict(settings),
        dir=str(run.path),
    ) as active:
        stored.name = active.id

        def send(records: list[Record]) -> None:
            by_epoch: dict[int, dict[str, float]] = {}
            for record in stored.new(records):
                by_epoch.setdefault(record["epoch"], {}).update(scalars(record))
            for epoch, values in by_epoch.items():
                active.log(values, step=epoch)
            stored.keep(records)

        yield send


class _Stored:
    """What `tracking.json` in the run's folder keeps of a tracker: its name for the run, and the last epoch it was sent."""

    def __init__(self, run: RunFolder, tracker: str) -> None:
        self._path: Path = run.path / "tracking.json"
        self._tracker = tracker
        found = self._read().get(tracker, {})
        self.name: str = found.get("run", "")
        self._epoch: int = found.get("epoch", 0)

    def new(self, records: list[Record]) -> list[Record]:
        """Those that were not sent yet."""
        return [record for record in records if record["epoch"] > self._epoch]

    def keep(self, records: list[Record]) -> None:
        """Remember that `records` were sent."""
        self._epoch = max((record["epoch"] for record in records), default=self._epoch)
        write_json(self._path, self._read() | {self._tracker: {"run": self.name, "epoch": self._epoch}})

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


_TRACKERS: dict[str, Callable[[RunFolder, Mapping[str, Any]], AbstractContextManager[Send]]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
