"""On a device with its own memory, pretended or a GPU, all comes out as on the CPU; and no step waits for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils import backend_registration

from visus.checkpoint import load_checkpoint, model_digest

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch knows no backends that are written in Python",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SCRIPT = Path(__file__).with_name("pretended_device.py")


def pretended(*words, **environment):
    environment = {**os.environ, "NVIDIA_TF32_OVERRIDE": "0", **environment}
    command = [sys.executable, SCRIPT, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("wrong", ["there + here", "there[here.long()] + there.cpu()", "there.numpy()"])
def test_it_refuses_what_a_gpu_refuses(wrong):
    code = (
        "import torch; from pretended_device import DEVICE, only_device\n"
        f"with only_device():\n here = torch.ones(2); there = here.to(DEVICE); print((there + 1).device)\n {wrong}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("pretended:0\n", 1)
    assert "on the CPU" in done.stderr or "copy it to the CPU first" in done.stderr


def test_no_step_waits_for_the_device():
    few, many = pretended("steps", "3", "13")
    assert few["waits"] == many["waits"], "what is waited for, at the end of an epoch"
    assert few["waits"]["tolist"] == 1
    assert many["uploads"]["not waiting"] - few["uploads"]["not waiting"] == 2 * (13 - 3)
    assert many["uploads"].get("waiting") == few["uploads"].get("waiting")


def work(folder, device, **environment):
    """What the command line leaves in `folder`: a run that was gone on with, and one in one go."""
    digit = Image.fromarray((load_digits().images[7] * 15.9).astype(np.uint8))
    digit.save(folder / "seven.png")
    run = str(folder / "digits-small")
    settings = ["--model", "small", "--lr", "0.02", "--augment", "standard", "--mixup", "0.2", "--ema"]
    settings += ["--schedule", "constant", "--amp", "off", "--out", str(folder), "--quiet"]
    commands = [
        ["train", "digits", *settings, "--epochs", "2", "--no-report"],
        ["train", "--resume", run, "--epochs", "3", "--quiet"],
        ["train", "digits", *settings, "--epochs", "3", "--no-report", "--name", "in one go"],
        ["evaluate", run, "digits", "--tta"],
        ["predict", run, str(folder / "seven.png")],
        ["calibrate", run, "digits"],
    ]
    assert pretended("run", device, json.dumps(commands), **environment) == [0] * len(commands)
    return folder / "digits-small"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The run on the CPU."""
    return work(tmp_path_factory.mktemp("here"), "own", CUDA_VISIBLE_DEVICES="")


@pytest.fixture(scope="module", params=["pretended", pytest.param("own", marks=needs_gpu)])
def there(request, tmp_path_factory):
    """That on another device."""
    return work(tmp_path_factory.mktemp("there"), request.param)


def test_a_model_is_trained_to_the_same_weights(here, there):
    ours, theirs = (load_checkpoint(each / "last.safetensors") for each in (here, there))
    assert ours.document["state"]["step"] == theirs.document["state"]["step"]
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        np.testing.assert_allclose(tensor, theirs.tensors[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_run_that_was_gone_on_with_has_the_bits_of_one_in_one_go(there):
    gone_on, in_one_go = (
        load_checkpoint(there.with_name(name) / "last.safetensors") for name in (there.name, "in one go")
    )
    assert model_digest(gone_on.model_tensors) == model_digest(in_one_go.model_tensors)


def test_it_is_evaluated_to_the_same_figures(here, there):
    ours, theirs = (json.loads((each / "evaluation.json").read_text()) for each in (here, there))
    assert ours["n"] == theirs["n"]
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=1 / ours["n"])
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert ours["ece"] == pytest.approx(theirs["ece"], abs=5e-3)


def test_its_temperature_and_report_are_the_same(here, there):
    ours, theirs = (load_checkpoint(each / "best.safetensors").temperature for each in (here, there))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours != 1
    ours, theirs = ((each / "report.html").read_text() for each in (here, there))
    assert len(ours) == pytest.approx(len(theirs), rel=0.02)
