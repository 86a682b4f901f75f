"""Where the time of a run goes: a table of its phases, what limits it, and a trace of some steps for Perfetto."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from visus.files import replacing

PHASES = {
    "data": "wait for data",
    "copy": "copy to the device",
    "forward": "forward, and loss",
    "backward": "backward",
    "exchange": "exchange between processes",
    "optimizer": "optimizer",
    "metrics": "metrics",
    "progress": "progress, signals",
    "checkpoint": "checkpoints",
    "validation": "validation",
    "curves": "curves",
}
"""The phases of the loop, and what they are called in the table."""

_ADVICE = {
    "data": (
        {"data"},
        "waiting for data: keep decoded images (--cache ram or disk), give it more processes (-j), or augment less",
    ),
    "model": (
        {"forward", "backward", "optimizer"},
        "the model: a faster device, --amp, --compile or a smaller model would make it faster",
    ),
    "copy": ({"copy"}, "copies to the device: larger batches would make it faster"),
    "exchange": (
        {"exchange"},
        "the exchange between processes: larger batches, or --accumulate, would make it faster",
    ),
    "validation": (
        {"validation"},
        "validation: a smaller --val-fraction or a larger --val-batch-size would make it faster",
    ),
    "rest": (
        {"metrics", "progress", "checkpoint", "curves"},
        "what surrounds the steps: --checkpoint-every at longer intervals would make it faster",
    ),
}
_FIRST_TRACED, _TRACED = 5, 10
"""Steps that pass before the trace begins, so that it shows the usual; and how many it holds."""


class Profile:
    """Measures the phases of a run on `device`; a context around them all.

    `phase(name)` says what begins now. On a GPU each waits for the device, so that its work counts where it was asked for: a
    run that is profiled is a little slower. The trace holds torch's own events and ours for a few steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps = 0
        self._current: tuple[str, float, AbstractContextManager[Any]] | None = None
        self._tracing = False
        # Or the profiler's own lines, that it begins and that there is no GPU, would stand between ours.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
        self._profiler = profile(activities=activities)

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_phase()
        self._stop_tracing()

    def phase(self, name: str) -> None:
        """What went on until now ends; `name`, one of `PHASES`, begins."""
        self._end_phase()
        mark: AbstractContextManager[Any] = record_function(f"visus: {PHASES[name]}")
        mark.__enter__()
        self._current = (name, time.perf_counter(), mark)

    def step(self) -> None:
        """An update is done."""
        self.steps += 1
        if self.steps == _FIRST_TRACED:
            self._profiler.start()
            self._tracing = True
        elif self.steps == _FIRST_TRACED + _TRACED:
            self._stop_tracing()

    def write_trace(self, path: Path) -> None:
        """Write what Perfetto (ui.perfetto.dev) opens; nothing where there were too few steps."""
        if self.steps > _FIRST_TRACED:
            with replacing(path) as temporary:
                self._profiler.export_chrome_trace(str(temporary))

    def to_json(self) -> dict[str, Any]:
        """`steps, seconds, phases[{phase, seconds, share}], limit`."""
        total = sum(self.seconds.values())
        phases = [
            {"phase": name, "seconds": self.seconds[name], "share": self.seconds[name] / total}
            for name in PHASES
            if name in self.seconds
        ]
        return {"steps": self.steps, "seconds": total, "phases": phases, "limit": self.limit()[0]}

    def limit(self) -> tuple[str, str]:
        """What takes most of the time, as a word and as a sentence."""
        total = sum(self.seconds.values())
        sums = {each: sum(self.seconds[name] for name in names) for each, (names, _) in _ADVICE.items()}
        most = max(sums, key=lambda each: sums[each])
        return most, f"{100 * sums[most] / total:.0f} % of the time goes to {_ADVICE[most][1]}"

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        rows = [
            f"  {PHASES[name]:<28}{self.seconds[name]:>10.2f} s{100 * self.seconds[name] / total:>7.1f} %"
            for name in PHASES
            if name in self.seconds
        ]
        return "\n".join([f"where the time went, {self.steps} steps:", *rows, self.limit()[1]])

    def _end_phase(self) -> None:
        if self._current is None:
            return
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        name, began, mark = self._current
        self.seconds[name] += time.perf_counter() - began
        mark.__exit__(None, None, None)
        self._current = None

    def _stop_tracing(self) -> None:
        if self._tracing:
            self._profiler.stop()
            self._tracing = False
