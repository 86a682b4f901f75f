import dataclasses

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from visus.auditing.judging import held_out_probabilities
from visus.auditing.whole import audit
from visus.config import make_config
from visus.data.sources import open_source, read_source
from visus.errors import DataError, UsageError
from visus.models.build import build_model
from visus.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("runs"))
    return train(
        make_config(data="digits", model="small", epochs=3, batch_size=50, lr=0.05, augment="none", out=out)
    )


def test_a_run_speaks_of_what_it_was_not_trained_on(run):
    data = read_source("digits")
    known = held_out_probabilities(data, None, run.run)
    assert set(known) == {*data.test.paths, *open_source("digits").val.paths}
    right = [
        known[path].argmax() == label for path, label in zip(data.test.paths, data.test.labels, strict=True)
    ]
    assert abs(np.mean(right) - run.test["accuracy"]) < 1e-9


def test_other_classes_than_the_run_knows_are_refused(run):
    data = dataclasses.replace(read_source("digits"), classes=("cat",))
    with pytest.raises(DataError, match="lacks cat"):
        held_out_probabilities(data, None, run.run)


def test_both_models_judge_the_labels_and_a_picture_is_drawn(run, tmp_path):
    found = audit("digits", run=run.run, pictures=tmp_path / "found.png")
    judged = [note for note in found.notes if "were judged" in note]
    assert len(judged) == 2
    assert "labels of 502 images" in judged[1]
    with Image.open(tmp_path / "found.png") as image:
        assert image.format == "PNG"


def test_weights_give_the_features(tmp_path):
    for part, name, seed in (("train", "a", 0), ("train", "b", 20), ("test", "a", 40), ("test", "b", 60)):
        (tmp_path / "set" / part / name).mkdir(parents=True)
        for number in range(12):
            rng = np.random.default_rng(seed + number)
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / part / name / f"{number}.png")
    (tmp_path / "set/train/a/0.png").write_bytes(b"broken")
    save_file(build_model("timm/test_resnet", 2).state_dict(), tmp_path / "w.safetensors")
    found = audit(tmp_path / "set", model="timm/test_resnet", weights=str(tmp_path / "w.safetensors"))
    assert found.counts()["unreadable"] == 1
    assert any("were judged" in note for note in found.notes)


def test_a_model_without_weights_is_refused():
    with pytest.raises(UsageError, match="together"):
        audit("digits", model="resnet18")
