import io
from pathlib import Path

import pytest

from visus.display import Display, Progress

GOLDEN = Path(__file__).parent / "golden" / "display_log.txt"
PROGRESS = Progress(12, 540, 3.4, 0.53124, 0.612, 996, 1200)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(display):
    display.line("Training images: 54000")
    display.epoch(0, 10, 0.1, None)
    display.progress(PROGRESS)
    display.phase("train", 0.4021, 5000, 6000, 12.0, 500.2)
    display.phase("val", 0.5, 599, 600, 59.996, 10.0)
    display.epoch(1, 10, 0.01, 0.91234)


def test_a_log_is_plain_lines():
    stream = io.StringIO()
    show(Display(stream))
    assert stream.getvalue() == GOLDEN.read_text()
    assert "\r" not in stream.getvalue()


def test_on_a_terminal_progress_is_written_over():
    stream = Terminal()
    show(Display(stream))
    assert f"\r{' ' * len(str(PROGRESS))}\r[ train ]" in stream.getvalue()


def test_quiet_shows_nothing():
    stream = Terminal()
    display = Display(stream, quiet=True)
    show(display)
    assert stream.getvalue() == ""
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


def test_a_stream_that_is_closed_or_cannot_encode_does_no_harm():
    closed = io.StringIO()
    closed.close()
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Display(ascii_only).line("猫")
    display = Display(io.StringIO())
    display._stream = closed
    display.line("text")
    ascii_only.seek(0)
    assert ascii_only.read() == "?\n"
