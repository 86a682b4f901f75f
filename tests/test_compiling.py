"""Training through `torch.compile`: the same within rounding, the same bits after a resume, and a sentence where it cannot be."""

import pytest
import torch

from visus.compiling import refuse_without_compiler
from visus.config import make_config
from visus.errors import Interrupted, UsageError
from visus.training import resume, train

CPU = torch.device("cpu")


def compiler_works():
    try:
        refuse_without_compiler(CPU, "off")
    except UsageError:
        return False
    return True


def test_without_a_compiler_it_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(
        UsageError, match=r"--compile: torch.compile does not work on .*; install a C\+\+ compiler"
    ):
        refuse_without_compiler(CPU, "off")


@pytest.mark.slow
def test_a_compiled_run_is_resumed_to_the_same_bits(tmp_path, monkeypatch):
    if not compiler_works():
        pytest.skip("no compiler")
    settings = {"data": "digits", "model": "small", "epochs": 2, "amp": "off", "threads": 1, "compile": True}
    whole = train(make_config(**settings, out=str(tmp_path / "whole")))
    eager = train(make_config(**{**settings, "compile": False}, out=str(tmp_path / "eager")))
    assert whole.final["loss"] == pytest.approx(eager.final["loss"], rel=0.05)

    monkeypatch.setattr("visus.processes.AgreedStop.received", property(_StopOnce()))
    with pytest.raises(Interrupted):
        train(make_config(**settings, out=str(tmp_path / "cut")))
    monkeypatch.undo()
    assert resume(str(tmp_path / "cut" / "digits-small")).digest == whole.digest


class _StopOnce:
    """Asks to stop at the seventh step."""

    def __init__(self):
        self.asked = 0

    def __call__(self, _):
        self.asked += 1
        return self.asked == 7
