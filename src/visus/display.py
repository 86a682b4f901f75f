"""What a person sees of a run: on stderr, refreshed in place on a terminal, plain lines in a log, nothing when quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from visus.ops.stopwatch import format_duration

_REFRESH_SECONDS = 0.2
_LOG_SECONDS = 30.0


@dataclass(frozen=True)
class Progress:
    """How far a phase is."""

    iteration: int
    iterations: int | None
    seconds: float
    loss: float
    """Of the latest update."""
    mean_loss: float
    correct: int
    n: int

    def __str__(self) -> str:
        total = "?" if self.iterations is None else self.iterations
        accuracy = 100 * self.correct / self.n
        return (
            f"Iter: {self.iteration} / {total} ({self.seconds:.0f}s)  Loss= {self.loss:.4f} ({self.mean_loss:.4f})  "
            f"Acc= {accuracy:.2f}% ({self.correct}/{self.n})"
        )


class Display:
    """Lines about a run on `stream` (stderr if not given).

    On a terminal, progress is one line that is written over; elsewhere it is a line every half minute. A stream that is closed or
    broken never stops a run.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._clock = clock
        self._in_place = not quiet and self._stream.isatty()
        self._every = _REFRESH_SECONDS if self._in_place else _LOG_SECONDS
        self._refreshed_at = clock()
        self._pending = 0

    def line(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._write(f"{self._erased()}{text}\n")

    def epoch(self, epoch: int, epochs: int, lr: float, best_accuracy: float | None) -> None:
        """The beginning of `epoch` (from 0)."""
        best = 100 * (best_accuracy or 0.0)
        self.line(f"Epoch {epoch + 1}/{epochs}, lr = {lr:.6g}  [best_acc = {best:.4f}%]")
        self.line("-" * 10)

    def due(self) -> bool:
        """Whether it is time to show progress."""
        return not self._quiet and self._clock() - self._refreshed_at >= self._every

    def progress(self, progress: Progress) -> None:
        """How far the phase is, in place of what was shown before."""
        self._refreshed_at = self._clock()
        if not self._in_place:
            return self.line(str(progress))
        text = str(progress)
        self._write(f"{self._erased()}{text}")
        self._pending = len(text)

    def phase(self, phase: str, loss: float, correct: int, n: int, seconds: float, speed: float) -> None:
        """The end of a phase; `speed` in images per second."""
        self.line(
            f"[ {phase} ]  Loss: {loss:.4f} Acc: {100 * correct / n:.3f}% ({correct}/{n}) "
            f"({format_duration(seconds)})  {speed:.0f} images/s"
        )

    def _erased(self) -> str:
        blank, self._pending = f"\r{' ' * self._pending}\r" if self._pending else "", 0
        return blank

    def _write(self, text: str) -> None:
        # Closed (ValueError), a broken pipe (OSError), or characters that it cannot encode.
        with contextlib.suppress(OSError, ValueError):
            encoding = self._stream.encoding or "utf-8"
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
