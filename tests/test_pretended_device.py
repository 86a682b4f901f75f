"""On a device with a memory of its own all comes out as on the CPU, and no step waits for it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils import backend_registration

from visus.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch knows no backends that are written in Python",
)
SCRIPT = Path(__file__).with_name("pretended_device.py")


def pretended(*words):
    done = subprocess.run([sys.executable, SCRIPT, *words], stdout=subprocess.PIPE, text=True, check=True)
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


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What commands left behind on the CPU and on the device."""
    made = {each: tmp_path_factory.mktemp(each) for each in ("cpu", "pretended")}
    for device, folder in made.items():
        digit = Image.fromarray((load_digits().images[7] * 15.9).astype(np.uint8))
        digit.save(folder / "seven.png")
        run = str(folder / "digits-small")
        settings = ["--model", "small", "--lr", "0.02", "--augment", "standard", "--mixup", "0.2", "--ema"]
        begun = ["train", "digits", *settings, "--amp", "off", "--epochs", "2", "--out", str(folder)]
        commands = [
            [*begun, "--schedule", "constant", "--quiet", "--no-report"],
            ["train", "--resume", run, "--epochs", "3", "--quiet"],
            ["evaluate", run, "digits", "--tta"],
            ["predict", run, str(folder / "seven.png")],
            ["calibrate", run, "digits"],
        ]
        assert pretended("run", device, json.dumps(commands)) == [0] * len(commands)
    return {device: folder / "digits-small" for device, folder in made.items()}


def test_a_model_is_trained_to_the_same_weights(folders):
    here, there = (load_checkpoint(each / "last.safetensors") for each in folders.values())
    assert here.document["state"]["step"] == there.document["state"]["step"]
    assert here.tensors.keys() == there.tensors.keys()
    for name, tensor in here.tensors.items():
        np.testing.assert_allclose(tensor, there.tensors[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_it_is_evaluated_to_the_same_figures(folders):
    here, there = (json.loads((each / "evaluation.json").read_text()) for each in folders.values())
    assert here["n"] == there["n"]
    assert here["accuracy"] == pytest.approx(there["accuracy"], abs=1 / here["n"])
    assert here["loss"] == pytest.approx(there["loss"], rel=1e-3)
    assert here["ece"] == pytest.approx(there["ece"], abs=5e-3)


def test_its_temperature_and_report_are_the_same(folders):
    here, there = (load_checkpoint(each / "best.safetensors").temperature for each in folders.values())
    assert here == pytest.approx(there, rel=1e-3)
    assert here != 1
    here, there = ((each / "report.html").read_text() for each in folders.values())
    assert len(here) == pytest.approx(len(there), rel=0.02)
