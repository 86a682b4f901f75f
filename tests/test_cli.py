"""The command line as a person or a script uses it: in a process of its own, with its exit codes."""

import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from visus import cli
from visus.training import TrainConfig

SMALL = ["train", "digits", "--model", "small", "--augment", "none", "--batch-size", "50", "--lr", "0.05"]


def visus(*arguments, **options):
    command = [sys.executable, "-m", "visus", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, and what it printed."""
    out = tmp_path_factory.mktemp("runs")
    done = visus(*SMALL, "--epochs", 10, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_help_is_quick_and_loads_no_torch():
    code = "import sys\nfrom visus.cli import app\ntry: app(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_flags_are_the_fields_of_the_settings():
    flags = set(inspect.signature(cli.train).parameters) - {"config", "resume", "as_json", "quiet"}
    flags = flags - {"no_deterministic"} | {"deterministic"}
    assert flags == {field.name for field in dataclasses.fields(TrainConfig)}


def test_training_ends_with_one_document(finished):
    document, log = finished
    keys = "run epochs steps seconds images_per_second best final test checkpoints digest skipped findings"
    assert list(document) == keys.split()
    assert (document["epochs"], document["steps"]) == (10, 260)
    assert document["test"]["accuracy"] >= 0.97
    low, high = document["test"]["accuracy_ci95"]
    assert low < document["test"]["accuracy"] < high
    assert "dataSize: {'train': 1295, 'val': 143}" in log
    assert "Epoch 10/10" in log
    for path in document["checkpoints"].values():
        assert Path(path).is_absolute()
        assert Path(path).exists()


def test_the_run_is_repeated_from_its_config(finished, tmp_path):
    document, _ = finished
    done = visus(
        "train", "--config", f"{document['run']}/config.yaml", "--out", tmp_path, "--json", "--quiet"
    )
    again = json.loads(done.stdout)
    assert done.stderr == ""
    assert again["digest"] == document["digest"]
    assert again["run"].startswith(str(tmp_path))


def test_evaluation_repeats_the_figures_of_training(finished):
    document, _ = finished
    val = json.loads(visus("evaluate", document["run"], "digits", "--split", "val", "--json").stdout)
    assert val["accuracy"] == document["best"]["accuracy"]
    test = json.loads(visus("evaluate", document["checkpoints"]["best"], "digits", "--json").stdout)
    assert (test["n"], test["accuracy"]) == (document["test"]["n"], document["test"]["accuracy"])
    assert sum(map(sum, test["confusion"])) == test["n"]
    last = json.loads(
        visus("evaluate", document["checkpoints"]["last"], "digits", "--split", "val", "--json").stdout
    )
    assert (last["accuracy"], last["loss"]) == (document["final"]["accuracy"], document["final"]["loss"])


def test_inspect_says_what_a_checkpoint_holds(finished):
    document, _ = finished
    found = json.loads(visus("inspect", document["checkpoints"]["last"], "--json").stdout)
    assert found["digest"] == document["digest"]
    assert (found["model"], found["epoch"], found["classes"]) == ("small", 10, list("0123456789"))


def test_resuming_a_finished_run_trains_nothing(finished):
    document, _ = finished
    done = visus("train", "--resume", document["run"], "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == document


@pytest.mark.parametrize("kind", ["SIGTERM", "SIGKILL"])
def test_a_run_that_is_killed_and_resumed_ends_in_the_same_bits(finished, tmp_path, kind):
    document, _ = finished
    command = [sys.executable, "-m", "visus", *SMALL, "--epochs", "10", "--out", str(tmp_path), "--name", "a"]
    process = subprocess.Popen([*command, "--checkpoint-every", "7steps"], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "a" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 4):
        time.sleep(0.005)
    process.send_signal(getattr(signal, kind))
    log = process.communicate()[1]
    if kind == "SIGTERM":
        assert process.returncode == 143
        assert f"go on with: visus train --resume {tmp_path / 'a'}" in log
    done = visus("train", "--resume", tmp_path / "a", "--json")
    assert "resumed from step" in done.stderr
    assert json.loads(done.stdout)["digest"] == document["digest"]
    assert json.loads(done.stdout)["best"] == document["best"]


def test_a_damaged_last_checkpoint_is_replaced_by_its_predecessor(finished, tmp_path):
    document, _ = finished
    visus(*SMALL, "--epochs", 9, "--out", tmp_path, "--name", "a", "--quiet", "--schedule", "constant")
    last = tmp_path / "a" / "last.safetensors"
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    done = visus("train", "--resume", tmp_path / "a", "--json")
    assert done.returncode == 0
    assert "going on from previous.safetensors" in done.stderr
    assert "resumed from step 208" in done.stderr
    assert visus("inspect", document["checkpoints"]["best"] + "x").returncode == 3


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["train"], 2, "expected DATA"),
        (["train", "digits", "--lr", "-1"], 2, "--lr: "),
        (["train", "digits", "--model", "smal"], 2, "unknown model 'smal'"),
        (["train", "digits", "--model", "small", "--optimizer", "sdg"], 2, "unknown optimizer"),
        (["train", "digits", "--augment", "much"], 2, "--augment: "),
        (["train", "digits", "--modle", "small"], 2, "--modle"),
        (["train", "digits", "--model", "small", "-b", "5000"], 2, "1295 training images"),
        (["train", "digits", "--checkpoint-every", "often"], 2, "often"),
        (["train", "digits", "--device", "7"], 2, "CUDA unavailable"),
        (["train", "no-such-folder"], 3, "no-such-folder"),
        (["train", "--resume", "no-such-run"], 2, "no-such-run"),
        (["evaluate", "no-such-file", "digits"], 3, "no-such-file"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_use_is_one_sentence_and_a_code(tmp_path, arguments, code, sentence):
    done = visus(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not os.listdir(tmp_path)


def test_other_classes_are_refused(finished, tmp_path):
    document, _ = finished
    np.savez(tmp_path / "a.npz", images=np.zeros((6, 8, 8), np.uint8), labels=[0, 1, 2] * 2)
    done = visus("evaluate", document["run"], tmp_path / "a.npz")
    assert done.returncode == 3
    assert "expected the model's classes" in done.stderr


def test_a_loss_that_blows_up_names_the_step_and_what_to_try(tmp_path):
    done = visus(*SMALL[:-1], "1e30", "--out", tmp_path, "--epochs", "2")
    assert done.returncode == 3
    assert "not finite at step" in done.stderr
    assert "--clip-grad" in done.stderr


def test_what_cannot_change_on_resume_is_named(finished):
    document, _ = finished
    done = visus("train", "--resume", document["run"], "--lr", "0.5")
    assert done.returncode == 2
    assert "--lr cannot change" in done.stderr


def test_devices_are_listed():
    assert json.loads(visus("devices", "--json").stdout)[0]["device"] == "cpu"


def test_an_unforeseen_error_is_70_and_shows_where(monkeypatch, capsys):
    def fail():
        raise KeyError("x")

    monkeypatch.setattr(sys, "argv", ["visus", "devices"])
    monkeypatch.setattr("visus.devices.describe_devices", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 70
    assert "a fault in visus" in capsys.readouterr().err
