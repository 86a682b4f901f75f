import builtins
import io
import os
import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from visus.display import Display, Progress

GOLDEN = Path(__file__).parent / "golden" / "display_log.txt"
PROGRESS = Progress(12, 540, 3.4, 0.53124, 0.612, 996, 1200)
VALIDATION = Progress(3, None, 1.0, 0.5, 0.5123, 297, 300, phase="val")


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Screen:
    """As much of a terminal as the display uses: rows of text, and a cursor on them."""

    def __init__(self):
        self.rows, self.row, self.column, self.cursor_shown = [""], 0, 0, True

    def feed(self, text):
        for arguments, command, character in re.findall(r"\x1b\[([?\d;]*)([A-Za-z])|([^\x1b])", text):
            if command:
                self.obey(command, arguments)
            elif character == "\n":
                self.row, self.column = self.row + 1, 0
                self.rows += [""] * (self.row + 1 - len(self.rows))
            elif character == "\r":
                self.column = 0
            else:
                row = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
                self.column += 1
        return self

    def obey(self, command, arguments):
        if command == "A":
            self.row -= int(arguments or 1)
        elif command == "K":
            assert arguments == "2"
            self.rows[self.row] = ""
        elif arguments == "?25":
            self.cursor_shown = command == "h"
        else:
            assert command == "m", f"{arguments}{command}"

    @property
    def lines(self):
        """The rows down to the last that is not empty."""
        return "\n".join(self.rows).rstrip("\n").split("\n")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


def show(display):
    display.line("Training images: 54000")
    display.count("decoded", 54000, 54000)
    display.epoch(0, 10, 0.1, None)
    display.progress(PROGRESS)
    display.phase("train", 0.4021, 5000, 6000, 12.0, 500.2)
    display.progress(VALIDATION)
    display.phase("val", 0.5, 599, 600, 59.996, 10.0)
    display.epoch(1, 10, 0.01, 0.91234)


def lines_that_stay():
    return [line for line in GOLDEN.read_text().split("\n") if "Iter: " not in line]


def test_a_log_is_plain_lines():
    stream = io.StringIO()
    show(Display(stream))
    assert stream.getvalue() == GOLDEN.read_text()


def test_a_long_line_in_a_log_is_one_line():
    stream = io.StringIO()
    Display(stream).line("/folder" * 100)
    assert stream.getvalue() == "/folder" * 100 + "\n"


@pytest.mark.parametrize("columns", ["80", "20", "1"])
def test_on_a_terminal_only_whole_lines_stay(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    stream = Terminal()
    with Display(stream) as display:
        show(display)
    screen = Screen().feed(stream.getvalue())
    assert screen.rows == lines_that_stay()
    assert (screen.row, screen.column, screen.cursor_shown) == (len(screen.rows) - 1, 0, True)


def test_on_a_terminal_progress_is_two_rows_that_are_written_over():
    stream, now = Terminal(), [100.0]
    display = Display(stream, clock=lambda: now[0])
    display.epoch(0, 10, 0.1, None)
    now[0] += 3.4
    for _ in range(3):
        display.progress(PROGRESS)
    screen = Screen().feed(stream.getvalue())
    # 540 iterations at 3.4 s for 12, ten times.
    assert screen.rows[2:] == [str(PROGRESS), f"train {'─' * 40}   2%  0:25:27 left", ""]
    assert (screen.row, screen.column, screen.cursor_shown) == (4, 0, True)


@pytest.mark.parametrize("columns", [1, 9, *range(18, 32), 65, 66, 67, 79, 80, 200])
def test_progress_fits_a_terminal_of_any_width(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    display = Display(stream)
    display.count("decoded", 0, 10)
    display._every = 0
    display.count("decoded", 5, 10)
    display.epoch(0, 10, 0.1, None)
    display.progress(PROGRESS)
    rows = Screen().feed(stream.getvalue()).rows[2:]
    assert max(map(len, rows)) <= columns
    assert columns < 20 or (rows[0].startswith("Iter: 12 / 540 (3s)") and "  2%" in rows[1])


def test_an_unknown_length_has_no_bar():
    stream = Terminal()
    display = Display(stream)
    display.progress(VALIDATION)
    assert Screen().feed(stream.getvalue()).rows == [str(VALIDATION), ""]


@pytest.mark.parametrize(
    ("settings", "bar"),
    [({}, "━"), ({"NO_COLOR": "1"}, "━"), ({"encoding": "ascii"}, "#"), ({"encoding": "latin-1"}, "#")],
)
def test_a_bar_on_a_terminal_of_any_kind(settings, bar, monkeypatch):
    encoding = settings.pop("encoding", "utf-8")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    stream.isatty = lambda: True
    display = Display(stream)
    display.epoch(0, 1, 0.1, None)
    display.progress(Progress(1, 2, 1.0, 0.5, 0.5, 1, 2))
    written = raw.getvalue().decode(encoding)
    assert Screen().feed(written).rows[3].startswith(f"train {bar * 20}")
    assert ("\x1b[36m" in written) == ("NO_COLOR" not in settings)


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_terminal_that_cannot_write_over_gets_a_log(name, monkeypatch):
    monkeypatch.setenv("TERM", name)
    stream = Terminal()
    show(Display(stream))
    assert stream.getvalue() == GOLDEN.read_text()


def test_forced_colours_do_not_make_a_log_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    show(Display(stream))
    assert stream.getvalue() == GOLDEN.read_text()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_text_is_shown_as_it_is_and_commands_nothing(kind):
    stream = kind()
    Display(stream).line("[red]cat[/red] :cat: [link=x]\x1b[2Jdog\r\x9b1A")
    assert stream.getvalue() == "[red]cat[/red] :cat: [link=x]\\x1b[2Jdog\\x0d\\x9b1A\n"


def test_quiet_shows_nothing():
    stream = Terminal()
    display = Display(stream, quiet=True)
    show(display)
    display.close()
    assert stream.getvalue() == ""
    assert not display.due()


def test_without_any_stream_nothing_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    display = Display()
    show(display)
    assert not display.due()


@pytest.mark.parametrize(("stream", "seconds"), [(Terminal(), 0.2), (io.StringIO(), 30)])
def test_progress_is_due_by_the_clock(stream, seconds):
    now = [0.0]
    display = Display(stream, clock=lambda: now[0])
    now[0] = seconds * 0.9
    assert not display.due()
    now[0] = seconds * 1.1
    assert display.due()
    display.progress(PROGRESS)
    assert not display.due()


def count_to(display, now, total, seconds):
    for done in range(total + 1):
        display.count("decoded", done, total)
        now[0] += seconds / total


def test_a_count_in_a_log_is_a_line_every_half_minute_and_one_at_the_end():
    stream, now = io.StringIO(), [0.0]
    count_to(Display(stream, clock=lambda: now[0]), now, 1000, 70)
    lines = stream.getvalue().splitlines()
    assert [int(line.split()[1]) for line in lines] == pytest.approx(
        [1000 * 30 / 70, 1000 * 60 / 70, 1000], abs=1
    )
    assert lines[-1] == "decoded 1000 of 1000"


def test_a_count_on_a_terminal_has_a_bar_and_leaves_a_line():
    stream, now = Terminal(), [0.0]
    display = Display(stream, clock=lambda: now[0])
    display.count("decoded", 20, 100)
    now[0] = 10.0
    display.count("decoded", 40, 100)
    assert Screen().feed(stream.getvalue()).rows == [
        "decoded 40 of 100",
        f"{'━' * 16}{'─' * 24}  40%  0:00:30 left",
        "",
    ]
    display.count("decoded", 100, 100)
    assert Screen().feed(stream.getvalue()).lines == ["decoded 100 of 100"]


def train_at_constant_speed(now, *, epochs, resumed=0):
    """Shown and true seconds left at each step: 10 steps of 3 s, 2 of 5 s in validation, 4 s for curves and checkpoints."""
    stream = Terminal()
    display = Display(stream, clock=lambda: now[0])
    end = now[0] + epochs * 44 - 3 * resumed
    for epoch in range(epochs):
        display.epoch(epoch, epochs, 0.1, None)
        for step in range(resumed if epoch == 0 else 0, 10):
            now[0] += 3
            display.progress(Progress(step + 1, 10, 3.0 * (step + 1), 1, 1, 1, 1))
            yield epoch, "train", shown_seconds(stream), end - now[0]
        display.phase("train", 1, 1, 1, 30, 1)
        for step in range(2):
            now[0] += 5
            display.progress(Progress(step + 1, 2, 5.0 * (step + 1), 1, 1, 1, 1, phase="val"))
            yield epoch, "val", shown_seconds(stream), end - now[0]
        display.phase("val", 1, 1, 1, 10, 1)
        now[0] += 4


def shown_seconds(stream):
    hours, minutes, seconds = re.findall(r"(\d+):(\d\d):(\d\d) left", stream.getvalue())[-1]
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds)


@pytest.mark.parametrize("resumed", [0, 4])
def test_the_time_left_is_right_at_constant_speed(resumed):
    for epoch, phase, shown, true in train_at_constant_speed([50.0], epochs=4, resumed=resumed):
        if epoch == 0 and phase == "train":
            # Of validation and the rest nothing is known yet: four times 14 seconds are missing.
            assert shown == true - 4 * 14
        elif phase == "train":
            assert shown == true
        else:
            assert shown == true - 4 * (4 - epoch)


def test_the_time_left_follows_a_slowdown():
    stream, now = Terminal(), [0.0]
    display = Display(stream, clock=lambda: now[0])
    display.epoch(0, 2, 0.1, None)
    now[0] = 100
    display.phase("train", 1, 1, 1, 100, 1)
    display.epoch(1, 2, 0.1, None)
    for share in (0.1, 0.5, 0.9):
        now[0] = 100 + 1000 * share
        display.progress(Progress(int(10 * share), 10, 1000 * share, 1, 1, 1, 1))
        assert shown_seconds(stream) == max(0, round(share * 1000 + (1 - share) * 100 - 1000 * share))


def test_a_stream_that_cannot_encode_gets_question_marks():
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Display(ascii_only).line("猫")
    lone = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    Display(lone).line("caf\udce9")
    for stream, text in ((ascii_only, "?\n"), (lone, "caf?\n")):
        stream.seek(0)
        assert stream.read() == text


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_stream_that_is_closed_does_no_harm(kind):
    stream = kind()
    display = Display(stream)
    display.progress(PROGRESS)
    stream.close()
    show(display)
    display.close()
    show(Display(stream))


@pytest.mark.parametrize("terminal", [False, True])
def test_a_broken_pipe_does_no_harm(terminal):
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    stream.isatty = lambda: terminal
    with Display(stream) as display:
        show(display)
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_after_an_interrupt_the_next_line_starts_at_the_margin():
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Display(stream) as display:
        display.line("before")
        display.progress(PROGRESS)
        raise KeyboardInterrupt
    display.line("visus: interrupted")
    assert Screen().feed(stream.getvalue()).lines == ["before", "visus: interrupted"]


def test_after_a_death_without_warning_the_next_line_starts_at_the_margin():
    stream = Terminal()
    display = Display(stream)
    display.progress(VALIDATION)
    screen = Screen().feed(stream.getvalue()).feed("Killed\n")
    assert screen.rows == [str(VALIDATION), "Killed", ""]
    assert screen.cursor_shown


def test_a_warning_while_progress_is_shown_is_a_line_of_its_own(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Display() as display:
        display.progress(VALIDATION)
        sys.stderr.write("a warning\n")
        display.progress(VALIDATION)
        assert Screen().feed(stream.getvalue()).rows == ["a warning", str(VALIDATION), ""]
    assert sys.stderr is stream


def test_through_a_pseudo_terminal():
    pytest.importorskip("pty")
    master, slave = os.openpty()
    written = []
    reader = threading.Thread(target=lambda: written.extend(iter(lambda: read(master), b"")))
    reader.start()
    with os.fdopen(slave, "w") as stream, Display(stream) as display:
        show(display)
        display.progress(PROGRESS)
    reader.join(10)
    os.close(master)
    text = b"".join(written).decode()
    assert "Iter: 12 / 540" in text
    screen = Screen().feed(text)
    assert [*screen.lines, ""] == lines_that_stay()
    assert (screen.column, screen.cursor_shown) == (0, True)


def read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux says so when the other end is closed, others return nothing.
        return b""


def test_in_a_notebook_rich_shows_the_lines(monkeypatch, capfd):
    shown = []
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    page = types.ModuleType("IPython.display")
    page.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython.display", page)
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    show(Display())
    assert re.sub(r"\x1b\[[\d;]*m", "", "".join(each.text for each in shown)) == GOLDEN.read_text()
    assert capfd.readouterr() == ("", "")


def test_rich_is_loaded_only_for_a_terminal():
    code = (
        "import io, sys; from visus.display import Display; Display(io.StringIO()).line('a'); "
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
