"""What a person sees of a run: on stderr, refreshed in place on a terminal, plain lines in a log, nothing when quiet."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO, cast

from visus.ops.stopwatch import format_duration

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

_REFRESH_SECONDS = 0.2
_LOG_SECONDS = 30.0
_BAR_COLUMNS = 40
_SHORTEST_BAR_COLUMNS = 5
# On a dark and on a light ground alike.
_PHASE_STYLES = {"train": "cyan", "val": "yellow"}
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
"""For `str.translate`: a file's name may hold an escape sequence; shown as text it moves no cursor."""
ONE_LINE = CONTROLS | {code: f"\\x{code:02x}" for code in map(ord, "\t\n")}
"""The same for what is to stay on one line."""


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 image`, `2 images`, `12,345 images`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


@dataclass(frozen=True)
class Progress:
    """How far a phase is."""

    iteration: int
    iterations: int | None
    seconds: float
    """Since the phase began, in all processes that have worked on it."""
    loss: float
    """Of the latest update."""
    mean_loss: float
    correct: int
    n: int
    phase: str = "train"

    def __str__(self) -> str:
        total = "?" if self.iterations is None else self.iterations
        accuracy = 100 * self.correct / self.n
        return (
            f"{'' if self.phase == 'train' else f'[ {self.phase} ]  '}"
            f"Iter: {self.iteration} / {total} ({self.seconds:.0f}s)  Loss= {self.loss:.4f} ({self.mean_loss:.4f})  "
            f"Acc= {accuracy:.2f}% ({self.correct}/{self.n})"
        )


class Display:
    """Lines about a run on `stream` (stderr, or the notebook, if not given).

    On a terminal and in a notebook, progress is written over, with a bar and the time that is left; elsewhere it is a line every
    half minute. A stream that is closed or broken never stops a run. Leaving a `with` block, or `close`, takes away what is
    written over, so that the next line starts at the margin.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._surface = None if quiet else _open_surface(stream)
        self._clock = clock
        in_place = isinstance(self._surface, _Screen) and self._surface.in_place
        self._every = _REFRESH_SECONDS if in_place else _LOG_SECONDS
        self._refreshed_at = clock()
        self._left = _TimeLeft()
        self._count: tuple[str, int, float] | None = None

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take away what is written over; lines may still follow."""
        if self._surface:
            self._surface.clear()

    def line(self, text: str) -> None:
        """A line that stays."""
        self._line(text)

    def epoch(self, epoch: int, epochs: int, lr: float, best_accuracy: float | None) -> None:
        """The beginning of `epoch` (from 0)."""
        self._left.begin(epoch, epochs, self._clock())
        best = 100 * (best_accuracy or 0.0)
        self._line(f"Epoch {epoch + 1}/{epochs}, lr = {lr:.6g}  [best_acc = {best:.4f}%]", "bold")
        self._line("-" * 10, "dim")

    def due(self) -> bool:
        """Whether it is time to show progress."""
        return self._surface is not None and self._clock() - self._refreshed_at >= self._every

    def progress(self, progress: Progress) -> None:
        """How far the phase is, in place of what was shown before."""
        now = self._clock()
        share = progress.iterations and progress.iteration / progress.iterations
        self._show(str(progress), progress.phase, share, self._left.of_run(progress, now), now)

    def phase(self, phase: str, loss: float, correct: int, n: int, seconds: float, speed: float) -> None:
        """The end of a phase; `speed` in images per second."""
        self.close()
        if phase == "train":
            self._left.trained(self._clock())
        text = (
            f"[ {phase} ]  Loss: {loss:.4f} Acc: {100 * correct / n:.3f}% ({correct}/{n}) "
            f"({format_duration(seconds)})  {speed:.0f} images/s"
        )
        self._line(text, _PHASE_STYLES.get(phase, ""), until=text.index("]") + 1)

    def count(self, what: str, done: int, total: int) -> None:
        """`what` (as in decoded) happened to `done` of `total`: shown when it is time to, and in a line that stays at the end.

        Cheap enough to be called for each of them.
        """
        text = f"{what} {done} of {total}"
        if done >= total:
            self.close()
            self._count = None
            return self._line(text)
        if self._count is None or self._count[0] != what:
            self._count = (what, done, self._clock())
        if self.due():
            now, (_, first, began) = self._clock(), self._count
            left = (now - began) * (total - done) / (done - first) if done > first else None
            self._show(text, "", done / total, left, now)
        return None

    def _line(self, text: str, style: str = "", until: int | None = None) -> None:
        if self._surface:
            self._surface.line(text.translate(CONTROLS), style, until)

    def _show(self, text: str, label: str, share: float | None, left: float | None, now: float) -> None:
        self._refreshed_at = now
        if self._surface:
            self._surface.show(text.translate(CONTROLS), label, share, left)


class _TimeLeft:
    """Reckons the time that is left of a run from the length of its epochs, whatever is in them."""

    def __init__(self) -> None:
        self._epochs = 0
        """To come, this one included."""
        self._began: float | None = None
        self._trained: float | None = None
        """When its training phase ended."""
        self._last: float | None = None
        """Length of the epoch before, in seconds; what came after its training phase is `_after`."""
        self._after = 0.0

    def begin(self, epoch: int, epochs: int, now: float) -> None:
        """An epoch begins (from 0)."""
        if self._began is not None:
            self._last = now - self._began
            self._after = now - (self._trained or now)
        self._epochs, self._began = epochs - epoch, now

    def trained(self, now: float) -> None:
        """The training phase of the epoch is over."""
        self._trained = now

    def of_run(self, progress: Progress, now: float) -> float | None:
        """Seconds, or `None` where the length of the phase is not known."""
        if not progress.iterations or self._began is None:
            return None
        # An epoch that was resumed began before this process did.
        self._began = min(self._began, now - progress.seconds)
        elapsed = now - self._began
        share = progress.iteration / progress.iterations
        length = elapsed + progress.seconds * (1 - share) / share
        if progress.phase == "train" and self._last is not None:
            # The first steps of an epoch tell little, the epoch before tells nothing of a slowdown: one gives way to the other.
            length = share * (length + self._after) + (1 - share) * self._last
        return max(0.0, self._epochs * length - elapsed)


class _Log:
    """Lines one after the other."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = _Unbreakable(stream)

    def line(self, text: str, *_: object) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def show(self, text: str, *_: object) -> None:
        self.line(text)

    def clear(self) -> None:
        """Nothing was written over."""


class _Screen:
    """Lines, and below them a text and a bar that are written over."""

    def __init__(self, console: Console, *, in_place: bool = True, own_stderr: bool = False) -> None:
        self.in_place = in_place
        self._console = console
        self._own_stderr = own_stderr
        self._live: Live | None = None

    def line(self, text: str, style: str = "", until: int | None = None) -> None:
        from rich.text import Text

        line = Text(text)
        line.stylize(style, 0, until)
        self._console.print(line, soft_wrap=True)

    def show(self, text: str, label: str, share: float | None, left: float | None) -> None:
        if not self.in_place:
            return self.line(text)
        from rich.text import Text

        rows = Text(text, no_wrap=True, overflow="ellipsis")
        if share is not None:
            rows.append("\n").append_text(_bar(self._console, label, share, left))
        # The cursor rests on an empty line: what follows a death without warning (a kill, a crash) starts at the margin.
        self._started().update(rows.append("\n"), refresh=True)
        return None

    def clear(self) -> None:
        if self._live:
            live, self._live = self._live, None
            live.stop()

    def _started(self) -> Live:
        if self._live is None:
            from rich.live import Live

            # What others write to stderr meanwhile (warnings) appears above. There is no thread that refreshes: it would take
            # its share of the interpreter from the training.
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=self._own_stderr,
            )
            self._live.start()
            # rich hides the cursor; nothing would bring it back after a kill -9 or a lack of memory.
            self._console.show_cursor(True)
        return self._live


class _Unbreakable(io.TextIOBase):
    """Writes to `stream` as far as that goes: closed, a broken pipe, characters that it cannot encode."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self._stream.isatty()
        return False


def _open_surface(stream: TextIO | None) -> _Log | _Screen | None:
    """What suits `stream`; `None` where there is no stream at all, as for Windows programs without a console."""
    if stream is None and "IPython" in sys.modules:
        from rich.console import Console

        notebook = Console(highlight=False)
        if notebook.is_jupyter:
            # rich writes over its lines by way of a widget.
            return _Screen(notebook, in_place=importlib.util.find_spec("ipywidgets") is not None)
    target = sys.stderr if stream is None else stream
    if target is None:
        return None
    file = _Unbreakable(target)
    if not file.isatty() or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return _Log(target)
    from rich.console import Console

    console = Console(
        file=cast("TextIO", file),
        force_terminal=True,
        force_jupyter=False,
        force_interactive=True,
        highlight=False,
    )
    return _Screen(console, own_stderr=target is sys.stderr)


def _bar(console: Console, label: str, share: float, left: float | None) -> Text:
    """`train ━━━━━───── 50%  0:04:10 left`, the bar as long as the terminal has room for."""
    from rich.text import Text

    row = Text()
    if label:
        row.append(f"{label} ", _PHASE_STYLES.get(label, ""))
    end = f"{int(100 * share):3d}%" + ("" if left is None else f"  {timedelta(seconds=round(left))} left")
    # One column is kept free, since some terminals go to the next line when the last one is written.
    columns = min(_BAR_COLUMNS, console.width - len(row) - len(end) - 2)
    if columns >= _SHORTEST_BAR_COLUMNS:
        done, rest = ("#", "-") if console.options.ascii_only else ("━", "─")
        full = min(columns, int(columns * share))
        row.append(done * full, "green").append(rest * (columns - full), "dim").append(" ")
    return row.append(end)
