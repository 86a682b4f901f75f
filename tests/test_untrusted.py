"""Checkpoints that somebody made to do harm: their checksums are right, and what is in them is not."""

import copy
import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from visus import cli, training
from visus.checkpoint import _canonical, _checksum, load_checkpoint
from visus.config import make_config
from visus.recording import RunRecorder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunRecorder, "draw_curves", lambda self, records: None)
        out = str(tmp_path_factory.mktemp("run"))
        options = {"model": "small", "amp": "off", "threads": 1, "epochs": 1, "ema": True}
        return training.train(make_config(data="digits", out=out, **options))


@pytest.fixture
def forged(run, tmp_path):
    """A function that changes the document and the tensors of a checkpoint, and writes them with a checksum that fits."""
    whole = load_checkpoint(run.checkpoints["last"])

    def forge(change):
        document, tensors = copy.deepcopy(whole.document), dict(whole.tensors)
        change(document, tensors)
        with_checksum = {**document, "checksum": _checksum(tensors, document)}
        path = tmp_path / "forged.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"visus": _canonical(with_checksum)})
        return path

    return forge


def visus(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["visus", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, capsys.readouterr().err


KINDS = [None, True, -1, 1e300, "x", [], [1], {}, {"x": 1}]
KEYS = [
    "model",
    "model_args",
    "classes",
    "preprocess",
    "config",
    "aliases",
    "state",
    "format",
    "digest",
    "epoch",
    "records",
]


def without(key):
    return lambda document, tensors: document.pop(key)


def put(key, value):
    return lambda document, tensors: document.update({key: value})


def inside(key, name, value):
    return lambda document, tensors: document[key].update({name: value})


def tensor(name, value):
    return lambda document, tensors: tensors.update({name: value})


CHANGES = {
    f"without {key}": without(key) for key in KEYS if key not in ("digest", "epoch", "records", "state")
}
CHANGES |= {
    "an alias of nothing": put("aliases", {"model.x": "model.none"}),
    "aliases of numbers": put("aliases", {"model.x": 1}),
    "classes of numbers": put("classes", [1] * 10),
    "fewer classes": put("classes", ["a"]),
    "a model of a hub": put("model", "hf-hub:somebody/something"),
    "a model that is a path": put("model", "../../etc/passwd"),
    "many outputs": inside("model_args", "num_classes", 10**12),
    "many channels": inside("model_args", "in_channels", 10**9),
    "an argument that there is not": inside("model_args", "command", "rm"),
    "a size of text": inside("preprocess", "size", "big"),
    "a size that is huge": inside("preprocess", "size", [10**7, 10**7]),
    "a size of nothing": inside("preprocess", "size", [0, 0]),
    "a mean of text": inside("preprocess", "mean", ["x"]),
    "a mean that is not finite": inside("preprocess", "mean", [1e400]),
    "channels of nothing": inside("preprocess", "channels", 0),
    "a resize of nothing": inside("preprocess", "resize", -5),
    "an interpolation of a list": inside("preprocess", "interpolation", []),
    "a batch size of text": inside("config", "val_batch_size", "many"),
    "a batch size below one": inside("config", "val_batch_size", -1),
    "threads of text": inside("config", "threads", "x"),
    "an amp that there is not": inside("config", "amp", "int1"),
    "pixels of text": inside("config", "max_pixels", "x"),
    "a weight of another shape": tensor("ema.classifier.weight", torch.zeros(3)),
    "a weight of another type": tensor("ema.classifier.weight", torch.zeros(10, dtype=torch.int64)),
    "another weight": tensor("ema.none", torch.zeros(3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_forged_checkpoint_is_refused_with_3(monkeypatch, capsys, tmp_path, forged, change):
    path = forged(CHANGES[change])
    code, said = visus(monkeypatch, capsys, "evaluate", path, "digits", "--device", "cpu")
    assert (code, "Traceback" in said) == (3, False), said
    assert "forged.safetensors" in said


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", KINDS, ids=str)
def test_no_kind_of_value_is_a_fault_of_ours(monkeypatch, capsys, forged, key, value):
    path = forged(put(key, value))
    code, said = visus(monkeypatch, capsys, "inspect", path)
    assert (code in (0, 3), "Traceback" in said) == (True, False), said


def test_a_header_of_many_brackets_is_refused(monkeypatch, capsys, tmp_path):
    path = tmp_path / "forged.safetensors"
    save_file({"model.x": torch.zeros(1)}, path, {"visus": "[" * 10**5})
    code, said = visus(monkeypatch, capsys, "inspect", path)
    assert (code, "Traceback" in said) == (3, False)


STATES = {
    "no state": put("state", {}),
    "a step of text": inside("state", "step", "x"),
    "an epoch of nothing": inside("state", "epoch", None),
    "a negative step": inside("state", "epoch_step", -3),
    "a scaler of text": inside("state", "scaler", {"scale": "x"}),
    "no optimizer": inside("state", "optimizer", {}),
    "a parameter that there is not": tensor("optimizer.none.momentum_buffer", torch.zeros(3)),
    "a momentum without a parameter": tensor("optimizer.x", torch.zeros(3)),
    "a momentum of another shape": tensor("optimizer.classifier.weight.momentum_buffer", torch.zeros(3)),
    "totals of another shape": tensor("state.totals", torch.zeros(9)),
    "a field that there is not": tensor("state.model", torch.zeros(9)),
    "records of text": put("records", ["x"]),
    "records without a phase": put("records", [{"epoch": 1}]),
    "a name that leads elsewhere": tensor("state./../../x", torch.zeros(9)),
}


@pytest.mark.parametrize("change", STATES)
def test_a_forged_state_is_refused_with_3_on_resume(monkeypatch, capsys, tmp_path, run, forged, change):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run.run, folder)
    forged(STATES[change]).replace(folder / "last.safetensors")
    (folder / "previous.safetensors").unlink(missing_ok=True)
    code, said = visus(monkeypatch, capsys, "train", "--resume", folder, "--epochs", "2")
    assert (code, "Traceback" in said) == (3, False), said


def test_a_checkpoint_as_it_was_is_taken(monkeypatch, capsys, forged):
    path = forged(lambda document, tensors: None)
    assert visus(monkeypatch, capsys, "inspect", path)[0] == 0
    assert json.loads(_canonical(load_checkpoint(path).document))["model"] == "small"
