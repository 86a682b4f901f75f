import os
import signal

import pytest

from visus.signals import StopSignal


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_the_first_signal_only_asks(number, code):
    if not hasattr(signal, number):
        pytest.skip(f"no {number} here")
    with StopSignal() as stop:
        os.kill(os.getpid(), getattr(signal, number))
        assert stop.received == getattr(signal, number)
        assert stop.exit_code == code


def test_a_second_ctrl_c_acts_as_ever():
    with StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
