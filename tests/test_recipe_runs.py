"""Runs with each setting of `docs/recipes.md`: interrupted in mid-epoch and resumed, they end in the same bits."""

import json
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from visus.checkpoint import load_checkpoint, model_digest
from visus.config import make_config, read_config
from visus.data.sources import open_source
from visus.display import Display
from visus.errors import CheckpointError, Interrupted, UsageError
from visus.prediction import predict_files
from visus.testing import evaluate_checkpoint
from visus.training import resume, train

SETTINGS = {
    "sampler": {"sampler": "balanced", "mixup": 0.2},
    "class weights": {"class_weights": True, "label_smoothing": 0.1, "cutmix": 1.0, "accumulate": 2},
    "bce": {"loss": "bce", "mixup": 0.2, "label_smoothing": 0.1},
    "focal": {"loss": "focal", "class_weights": True},
    "swa": {"swa": True, "schedule": "constant"},
    "patience": {"patience": 1, "lr": 1e-6},
    "fast": {"recipe": "fast", "model": "quick", "augment": "none"},
    "fast, lamb": {"recipe": "fast", "optimizer": "lamb"},
    "distill": {"distill": "teacher", "label_smoothing": 0.1, "mixup": 0.2},
}


class InterruptedAt(Display):
    """Asks for an end at a step, by a signal as from outside."""

    def __init__(self, step):
        super().__init__(quiet=True)
        self.left = step

    def due(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return False


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A short run of a small net."""
    out = str(tmp_path_factory.mktemp("teacher"))
    return train(config(out, "teacher", epochs=1)).run


def config(out, name, **settings):
    # 288 images: 6 batches, the last of them smaller.
    few = {"data": "digits", "val_fraction": 0.8, "batch_size": 50, "augment": "light", "amp": "off"}
    return make_config(**{"model": "small", "epochs": 4, **few, "out": str(out), "name": name, **settings})


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_interrupted_run_ends_in_the_same_bits(kind, teacher, tmp_path):
    settings = dict(SETTINGS[kind])
    if "distill" in settings:
        settings["distill"] = teacher
    whole = train(config(tmp_path, "whole", **settings))
    # In the last epoch but with patience, which has run out by then.
    steps_per_epoch = 3 if "accumulate" in settings else 6
    stop = 4 if kind == "patience" else 3 * steps_per_epoch + 2
    with pytest.raises(Interrupted):
        train(config(tmp_path, "stopped", **settings), display=InterruptedAt(stop))
    resumed = resume(str(tmp_path / "stopped"))
    assert resumed.digest == whole.digest
    assert (resumed.best, resumed.epochs, resumed.steps) == (whole.best, whole.epochs, whole.steps)
    best = [load_checkpoint(each.checkpoints["best"]) for each in (whole, resumed)]
    assert best[0].document["digest"] == best[1].document["digest"]


def test_patience_is_in_the_document_and_may_be_given_more(tmp_path):
    run = train(config(tmp_path, "a", patience=1, lr=1e-9, schedule="constant"))
    assert (run.epochs, run.best["epoch"]) == (2, 1)
    assert resume(run.run).to_json() == run.to_json()
    assert resume(run.run, patience=2).epochs == 3
    summary = json.loads(Path(run.run, "summary.json").read_text())
    assert summary["epochs"] == 3


def test_the_best_weights_of_swa_are_the_average_and_last_holds_both(tmp_path):
    run = train(config(tmp_path, "a", swa=True, schedule="constant"))
    last = load_checkpoint(run.checkpoints["last"])
    raw = {k.removeprefix("model."): v for k, v in last.tensors.items() if k.startswith("model.")}
    assert model_digest(raw) == run.digest
    assert model_digest(last.model_tensors) != run.digest
    if run.best["epoch"] == 4:
        best = load_checkpoint(run.checkpoints["best"])
        assert model_digest(best.model_tensors) == model_digest(last.model_tensors)


@pytest.mark.parametrize(("epochs", "says"), [(1, True), (2, False)])
def test_a_run_whose_last_quarter_is_one_update_says_that_swa_averages_nothing(tmp_path, epochs, says):
    lines = []
    display = Display(quiet=True)
    display.line = lines.append
    run = train(config(tmp_path, "a", swa=True, schedule="constant", epochs=epochs), display=display)
    told = "--swa averages nothing in --epochs 1: the last quarter of its updates (6 in all) is a single one"
    assert [line for line in lines if line.startswith("--swa")] == [told] * says
    last = load_checkpoint(run.checkpoints["last"])
    assert (model_digest(last.model_tensors) == run.digest) == says


def test_a_run_keeps_to_its_teacher(teacher, tmp_path):
    run = train(config(tmp_path, "a", distill=teacher, epochs=1))
    stored = read_config(Path(run.run, "config.yaml"))
    best = Path(teacher, "best.safetensors")
    assert stored["distill"] == str(best.resolve())
    assert stored["distill_digest"] == load_checkpoint(best).document["digest"]
    other = train(config(tmp_path, "other", epochs=1, seed=1))
    with pytest.raises(UsageError, match="--distill cannot change"):
        resume(run.run, distill=other.checkpoints["best"], epochs=2)
    moved = train(config(tmp_path, "b", distill=other.run, epochs=1))
    Path(other.checkpoints["best"]).write_bytes(best.read_bytes())
    with pytest.raises(CheckpointError, match="expected the teacher that the run began with"):
        resume(moved.run, epochs=2)
    with pytest.raises(CheckpointError, match="expected the teacher that the run began with"):
        train(make_config(**{**read_config(Path(moved.run, "config.yaml")), "out": str(tmp_path)}))


def test_a_teacher_of_other_classes_is_refused_before_a_folder_is_made(teacher, tmp_path):
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(40) % 2)
    with pytest.raises(UsageError, match="expected a teacher of the classes 0, 1, found"):
        train(config(tmp_path / "runs", "a", data=str(tmp_path / "a.npz"), distill=teacher, batch_size=4))
    assert not (tmp_path / "runs").exists()


def test_evaluation_and_prediction_see_the_mirror_image_when_asked(teacher, tmp_path):
    checkpoint = load_checkpoint(Path(teacher, "best.safetensors"))
    plain, both = (evaluate_checkpoint(checkpoint, "digits", tta=tta) for tta in (False, True))
    assert (plain.to_json()["tta"], both.to_json()["tta"]) == (False, True)
    assert any("mirror image" in note for note in both.notes)
    # Digits lose by it, which shows that it was done.
    assert both.scores.accuracy < plain.scores.accuracy
    pixels = open_source("digits").test.images.pixels[0, 0].numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:, ::-1]).save(tmp_path / "b.png")
    files = [str(tmp_path / name) for name in ("a.png", "b.png")]
    shares = [dict(each.top) for each in predict_files(checkpoint, files, topk=10)]
    mean = {name: (shares[0][name] + shares[1][name]) / 2 for name in shares[0]}
    for found in predict_files(checkpoint, files, topk=10, tta=True):
        assert dict(found.top) == pytest.approx(mean, abs=1e-5)
