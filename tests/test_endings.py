"""Of two processes one meets something: both end soon, with its code, and it is said once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from visus import cli
from visus.checkpoint import load_checkpoint
from visus.errors import EndedElsewhere, PeerLost
from visus.launching import _code_of_all

SCRIPT = Path(__file__).with_name("ending_processes.py")
GO_ON = "go on from the last checkpoint"
ENDINGS = {
    # Who says it, what, and the code.
    "settings_that_the_first_refuses": (0, "visus: the settings make no sense", 2),
    "a_full_disk_at_the_beginning": (0, "visus: config.yaml: could not be written (No space left", 2),
    "a_device_that_one_lacks": (1, "visus, process 1: no such device", 2),
    "data_that_one_lacks": (1, "visus, process 1: no such data", 3),
    "other_data_in_one": (0, "found others in process 1 than in process 0", 3),
    "data_that_nobody_has": (0, "visus: nowhere", 3),
    "an_interrupt_before_the_first_step": (0, "visus: interrupted", 130),
    "an_image_that_has_gone": (1, "visus, process 1: an image has gone", 3),
    "a_fault_in_one": (1, "visus, process 1: a fault in visus, please report it: TypeError: a mistake", 70),
    "a_fault_in_validation": (1, "visus, process 1: cannot be scored", 3),
    "a_loss_that_is_not_finite": (0, "visus: the training loss is not finite at step", 3),
    "a_process_that_is_killed": (0, "visus: process 1 (pid", 3),
    "the_first_process_is_killed": (1, "visus, process 1: process 0 (pid", 3),
    "a_signal_to_all": (0, "interrupted at step", 143),
    "a_signal_of_the_cluster": (0, "interrupted at step", 143),
    "a_signal_to_one": (0, "interrupted at step", 130),
    "another_checkpoint_in_one": (0, "expected the same checkpoint in every process", 3),
}
ENDED_BY_THE_LAUNCHER = -15
OTHERS_THAN_OURS = {"a_full_disk_at_the_beginning", "a_fault_in_one"}
SOON = [
    "settings_that_the_first_refuses",
    "a_device_that_one_lacks",
    "a_fault_in_one",
    "a_process_that_is_killed",
]
"""Those that are tested each time; each takes seconds."""
CASES = [pytest.param(name, marks=() if name in SOON else pytest.mark.slow) for name in ENDINGS]
KILLED = {"a_process_that_is_killed": 1, "the_first_process_is_killed": 0}


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """What came of a case; those that are tested each time run together."""
    folder, found = tmp_path_factory.mktemp("endings"), {}

    def of(name):
        if name not in found:
            cases = SOON if name in SOON else [each for each in ENDINGS if each not in SOON]
            done = subprocess.run(
                [sys.executable, SCRIPT, folder, *cases], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            found.update(json.loads(done.stdout))
        return found[name]

    return of


@pytest.mark.parametrize("name", CASES)
def test_both_end_with_the_code_of_the_one_and_it_is_said_once(ending, name):
    speaker, sentence, code = ENDINGS[name]
    found = ending(name)
    assert len(found["codes"]) == 2, found
    assert found["apart"] < 15, found
    sentences = [line for said in found["said"] for line in said.splitlines() if line.startswith("visus")]
    assert len(sentences) == 1, found
    assert sentence in found["said"][speaker], found
    codes = dict(found["codes"])
    if name in KILLED:
        assert codes.pop(str(KILLED[name])) == -9
    assert codes.pop(str(speaker)) == code, found
    # The other may have been ended by whoever started both; of an error that is none of ours it knows that a process was lost.
    others = {code, ENDED_BY_THE_LAUNCHER} | ({3} if name in OTHERS_THAN_OURS else set())
    assert set(codes.values()) <= others, found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a_signal_to_all", "a_signal_of_the_cluster", "a_signal_to_one"])
def test_a_signal_leaves_a_checkpoint_of_the_step_it_names(ending, name):
    found = ending(name)
    step = load_checkpoint(Path(found["run"]) / "last.safetensors").document["step"]
    assert f"interrupted at step {step}; go on with: visus train --resume {found['run']}" in found["said"][0]


@pytest.mark.parametrize(
    "name",
    [
        "a_fault_in_one",
        "a_process_that_is_killed",
        pytest.param("an_image_that_has_gone", marks=pytest.mark.slow),
        pytest.param("the_first_process_is_killed", marks=pytest.mark.slow),
    ],
)
def test_the_run_can_be_resumed(ending, name, monkeypatch, capsys):
    run = ending(name)["run"]
    monkeypatch.setattr(sys, "argv", ["visus", "train", "--resume", run, "--epochs", "1", "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    assert caught.value.code == 0
    assert "resumed from step" in captured.err
    assert json.loads(captured.out)["epochs"] == 1


class Failure:
    def __init__(self, exitcode, timestamp=1, pid=7):
        self.exitcode, self.timestamp, self.pid = exitcode, timestamp, pid


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ({0: Failure(2)}, 2),
        ({0: Failure(3), 1: Failure(70)}, 70),
        ({0: Failure(3, 2), 1: Failure(2, 1)}, 2),
        ({0: Failure(143, 1), 1: Failure(-15, 1)}, 143),
        ({0: Failure(-15, 1), 1: Failure(2, 1)}, 2),
        ({0: Failure(3, 1), 1: Failure(-9, 1)}, 3),
        ({0: Failure(-9, 40), 1: Failure(2, 1)}, 2),
    ],
)
def test_the_launcher_ends_with_the_code_of_the_first(failures, code):
    assert _code_of_all(failures) == code


def test_the_launcher_says_it_where_nobody_else_has():
    with pytest.raises(PeerLost, match=r"process 1 \(pid 7\) was killed by signal 9"):
        _code_of_all({0: Failure(-15), 1: Failure(-9)})


def test_what_another_has_said_is_not_said_again(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["visus", "devices"])

    def fail():
        raise EndedElsewhere("as process 1 says", 2)

    monkeypatch.setattr("visus.devices.describe_devices", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == ""
