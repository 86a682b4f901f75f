"""What a run writes while it goes on: metrics, checkpoints and curves, into its folder."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from visus.checkpoint import Snapshot, Tensors, save_checkpoint, snapshot
from visus.display import Progress
from visus.document import CUSTOM
from visus.errors import UsageError
from visus.files import link, write_json
from visus.plots import Kind, plot_curves
from visus.runs import Record, RunFolder, history_of

Keep = Literal["last", "all"]
_CURVES: dict[Kind, str] = {"loss": "loss.png", "accuracy": "accuracy.png", "both": "loss_accuracy.png"}
_RETRY_SECONDS = 10.0
_PROGRESS_SECONDS = 5.0
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_interval(text: str) -> tuple[float | None, int | None]:
    """`5m`, `90s`, `1h` or `500steps` as (seconds, steps), one of them `None`; `UsageError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|steps?)", text)
    if not match or float(match[1]) == 0:
        raise UsageError(f"expected an interval such as 5m, 30s or 500steps, found {text!r}")
    number, unit = float(match[1]), match[2]
    return (number * _SECONDS[unit], None) if unit in _SECONDS else (None, max(1, int(number)))


class RunRecorder:
    """Writes a run's folder, checkpoints from a thread of its own while training goes on.

    A write that fails (a full disk) does not end the run: `warn` is told, `failure` keeps the sentence until a later one
    succeeds, and the files that were there stay. `flush` waits for what is still to be written, and so does leaving a `with`
    block: whatever a run ends of, nothing is written to its folder afterwards.
    """

    def __init__(
        self,
        run: RunFolder,
        document: Mapping[str, Any] | None = None,
        *,
        every: str = "5m",
        keep: Keep = "last",
        warn: Callable[[str], object] = str,
    ) -> None:
        self.run = run
        self.records = run.records()
        """Of the epochs that are finished."""
        self.track: Callable[[list[Record]], object] | None = None
        """Is given the records as well, after each epoch."""
        self._failures: dict[Path, str] = {}
        self._document = dict(document or {"model": CUSTOM, "classes": [], "preprocess": None, "config": {}})
        self._every_seconds, self._every_steps = parse_interval(every)
        self._keep = keep
        self._saved_at = self._drawn_at = self._told_at = time.monotonic()
        self._drawing_seconds = 0.0
        self._warn = warn
        # One thread, so that the best is always there before the last that speaks of it.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._waiting: list[Future[None]] = []
        self._best_left: tuple[Snapshot, dict[str, Any]] | None = None

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()
        self.end_progress()

    @property
    def failure(self) -> str | None:
        """What could not be written, and has not been since."""
        return next(iter(self._failures.values()), None)

    def due(self, step: int) -> bool:
        """Whether it is time for a checkpoint in the middle of an epoch; one that failed is tried again soon."""
        elapsed = time.monotonic() - self._saved_at
        if self.run.last in self._failures and elapsed >= _RETRY_SECONDS:
            return True
        return step % self._every_steps == 0 if self._every_steps else elapsed >= (self._every_seconds or 0)

    def progress_due(self) -> bool:
        """Whether it is time to tell those who watch how far the epoch is."""
        return time.monotonic() - self._told_at >= _PROGRESS_SECONDS

    def write_progress(self, epoch: int, epochs: int, progress: Progress) -> None:
        """Write how far `epoch` (from 0, in the file from 1) is to `progress.json`, until `end_progress`.

        Nothing depends on that file: it is not synced, and a failure is not told.
        """
        self._told_at = time.monotonic()
        told = {
            "epoch": epoch + 1,
            "epochs": epochs,
            "iteration": progress.iteration,
            "iterations": progress.iterations,
            "seconds": progress.seconds,
            "loss": progress.mean_loss if math.isfinite(progress.mean_loss) else None,
            "correct": progress.correct,
            "n": progress.n,
        }
        with suppress(OSError):
            write_json(self.run.progress, told, durable=False)

    def end_progress(self) -> None:
        """The epoch's training is over, or is left: there is nothing to watch."""
        with suppress(OSError):
            self.run.progress.unlink(missing_ok=True)

    def write_metrics(self, records: list[Record]) -> None:
        """Write `metrics.jsonl`; checkpoints hold these lines as well from now on."""
        self.records = list(records)
        self.attempt(self.run.metrics, partial(self.run.write_records, records))
        if self.track:
            self.track(self.records)

    def save_best(self, tensors: Tensors, plain: Mapping[str, Any]) -> None:
        """Write `best.safetensors`, the weights to use, as `tensors` are now."""
        self._submit(self.run.best, tensors, plain)

    def save_last(self, tensors: Tensors, plain: Mapping[str, Any]) -> None:
        """Write `last.safetensors` as `tensors` are now; the one that was there becomes `previous.safetensors`."""
        self._saved_at = time.monotonic()
        self._submit(self.run.last, tensors, plain)

    def flush(self) -> None:
        """Wait until everything is written that was to be."""
        while self._waiting:
            self._waiting.pop(0).result()

    def curves_due(self) -> bool:
        """Whether drawing again would keep to a twentieth of the time: of a short epoch the pictures would take most."""
        return time.monotonic() - self._drawn_at >= 20 * self._drawing_seconds

    def draw_curves(self, records: list[Record]) -> None:
        """Redraw the three pictures."""
        began = time.monotonic()
        history = history_of(records)
        for kind, name in _CURVES.items():
            path = self.run.path / name
            self.attempt(path, partial(plot_curves, history, kind, path))
        self._drawn_at = time.monotonic()
        self._drawing_seconds = self._drawn_at - began

    def attempt(self, path: Path, write: Callable[[], object]) -> None:
        """Call `write`, which writes `path`; where that fails, say so and go on."""
        try:
            write()
        except OSError as error:
            self._failures[path] = (
                f"{path}: could not be written ({error.strerror or error}); what was there is untouched"
            )
            self._warn(self._failures[path])
        else:
            self._failures.pop(path, None)

    def _submit(self, path: Path, tensors: Tensors, plain: Mapping[str, Any]) -> None:
        # A disk that is slower than the checkpoints come holds the training up, rather than filling the memory.
        while len(self._waiting) > 1:
            self._waiting.pop(0).result()
        document = {**self._document, "state": dict(plain)}
        document |= {name: plain[name] for name in ("epoch", "step")} | {"accuracy": plain["best_accuracy"]}
        if path == self.run.last:
            document["records"] = self.records
        self._waiting.append(self._writer.submit(self._write, path, snapshot(tensors), document))

    def _write(self, path: Path, taken: Snapshot, document: dict[str, Any]) -> None:
        """In the writer's thread."""
        if path == self.run.best:
            self._best_left = (taken, document)
        # One that failed goes before the next last, too, which speaks of it.
        if self._best_left:
            self.attempt(self.run.best, partial(save_checkpoint, self.run.best, *self._best_left))
            if self.run.best not in self._failures:
                self._best_left = None
        if path == self.run.last:
            self.attempt(path, partial(self._save_last, taken, document))

    def _save_last(self, taken: Snapshot, document: dict[str, Any]) -> None:
        save_checkpoint(self.run.last, taken, document, before=self._keep_previous)
        if self._keep == "all":
            link(self.run.last, self.run.path / f"step-{document['step']}.safetensors")

    def _keep_previous(self) -> None:
        """Once the new one is whole, and before it takes the place of the last."""
        if self.run.last.exists():
            self.attempt(self.run.previous, partial(link, self.run.last, self.run.previous))
