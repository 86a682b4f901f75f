"""Temperatures: found where they are known, stored without touching a weight, used by whoever takes the checkpoint."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from visus.calibration import _cross_fitted, _honesty, calibrate_checkpoint, fit_temperature
from visus.checkpoint import load_checkpoint, rebuild_model, save_checkpoint
from visus.data.batching import TrainingBatches, measure_preprocessing
from visus.data.sources import open_source
from visus.errors import DataError, UsageError
from visus.models.build import build_model
from visus.preprocessing import Preprocessing
from visus.testing import evaluate_checkpoint


def drawn(seed, n=4000, classes=5, temperature=1.0):
    """Labels drawn from the softmax of logits, which are then `temperature` times too large."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found_and_is_the_best(temperature):
    logits, labels = drawn(0, temperature=temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    best = F.cross_entropy(logits.double() / found, labels)
    for other in (0.98 * found, 1.02 * found):
        assert best < F.cross_entropy(logits.double() / other, labels)


def test_images_that_settle_nothing_are_said():
    logits = 5 * torch.eye(4)[[0, 1, 2, 3]]
    with pytest.raises(DataError, match=r"found 4 that do not: all are right, .*; take more images"):
        fit_temperature(logits, torch.arange(4))
    with pytest.raises(DataError, match=r"above 20, .*; train for longer"):
        fit_temperature(logits, torch.tensor([1, 0, 3, 2]))
    # A single image is wrong, and by next to nothing.
    logits = torch.eye(2)[[0] * 1000 + [1]] * 0.01
    logits[-1] = torch.tensor([1e-9, 0])
    with pytest.raises(DataError, match=r"below 0.05; take more images"):
        fit_temperature(logits, torch.tensor([0] * 1000 + [1]))


@pytest.fixture(scope="module")
def trained():
    """A model that knows the digits a little, far too sure of it: its last weights were blown up."""
    torch.manual_seed(0)
    data = open_source("digits")
    model = build_model("small", num_classes=10, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    record = measure_preprocessing(data.train)
    for images, labels, *_ in TrainingBatches(data.train, record, 100, "none", 0)(0, 0):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    head = next(each for each in reversed(list(model.modules())) if isinstance(each, torch.nn.Linear))
    with torch.no_grad():
        head.weight.mul_(8)
    return data, record, model


@pytest.fixture
def overconfident(trained, tmp_path):
    """Its checkpoint."""
    data, record, model = trained
    document = {
        "model": "small",
        "model_args": {"num_classes": 10, "in_channels": 1, "stem": None},
        "classes": list(data.classes),
        "preprocess": record.to_json(),
        "config": {"data": "digits", "val_batch_size": 100, "threads": 1},
    }
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, {f"model.{name}": each for name, each in model.state_dict().items()}, document)
    return path


def test_the_checkpoint_is_honest_afterwards_and_has_the_same_weights(overconfident):
    before, fresh = (
        load_checkpoint(overconfident),
        evaluate_checkpoint(load_checkpoint(overconfident), "digits"),
    )
    found = calibrate_checkpoint(overconfident, "digits")
    after = load_checkpoint(overconfident)
    assert after.temperature == found.temperature > 1
    assert after.document["digest"] == before.document["digest"] == found.digest
    assert all(torch.equal(tensor, before.tensors[name]) for name, tensor in after.tensors.items())
    assert (found.split, found.n) == ("val", 143)
    assert found.after.loss < found.before.loss
    assert found.after.ece < found.before.ece
    low, high = found.after.loss_ci95
    assert low < found.after.loss < high
    tested = evaluate_checkpoint(after, "digits")
    assert tested.scores.accuracy == fresh.scores.accuracy
    assert tested.scores.loss < fresh.scores.loss
    assert tested.temperature == found.temperature
    assert tested.fingerprint == fresh.fingerprint


def test_logits_are_divided_in_the_module_itself_and_in_what_is_exported(overconfident):
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = rebuild_model(load_checkpoint(overconfident)).eval()
    temperature = calibrate_checkpoint(overconfident, "digits").temperature
    model = rebuild_model(load_checkpoint(overconfident)).eval()
    torch.testing.assert_close(model(images), plain(images) / temperature)
    assert list(model.state_dict()) == list(plain.state_dict())
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))


def test_calibrating_again_gives_the_same(overconfident):
    first = calibrate_checkpoint(overconfident, "digits")
    assert calibrate_checkpoint(overconfident, "digits") == first


@pytest.fixture
def photographs(tmp_path):
    """Two classes in `d/train` and in `d/val`, 40 images each."""
    rng = np.random.default_rng(0)
    for part, name in product(("train", "val"), "ab"):
        place = tmp_path / "d" / part / name
        place.mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "d"


@pytest.fixture
def of_photographs(photographs, tmp_path, monkeypatch):
    """A checkpoint of a model that was trained on their training part, and knows nothing of these; any temperature will do."""
    monkeypatch.setattr("visus.calibration.fit_temperature", lambda *_: 1.5)
    model = build_model("small", num_classes=2, in_channels=1)
    document = {
        "model": "small",
        "model_args": {"num_classes": 2, "in_channels": 1, "stem": None},
        "classes": ["a", "b"],
        "preprocess": Preprocessing((8, 8), 1, (0.5,), (0.25,)).to_json(),
        "config": {"data": str(photographs), "val_batch_size": 100, "threads": 1},
    }
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, {f"model.{name}": each for name, each in model.state_dict().items()}, document)
    return path


def test_training_images_under_another_name_are_refused(of_photographs, photographs, tmp_path):
    content = of_photographs.read_bytes()
    (tmp_path / "link").symlink_to(photographs / "train")
    (tmp_path / "some.csv").write_text("path,label\nd/train/a/3.png,a\nd/val/b/3.png,b\n")
    for source, said in (
        (
            photographs / "train",
            r"found 80 of 80 that it was \(a/0.png, a/1.png, a/10.png, ...\); take others",
        ),
        (tmp_path / "link", "found 80 of 80"),
        (tmp_path / "some.csv", r"found 1 of 2 that it was \(d/train/a/3.png\)"),
    ):
        with pytest.raises(UsageError, match=f"expected images that the model was not trained on, {said}"):
            calibrate_checkpoint(of_photographs, str(source), part="train")
    assert of_photographs.read_bytes() == content


def test_other_images_are_taken_also_where_those_to_train_on_are_gone(of_photographs, photographs, tmp_path):
    for source in (photographs / "val", tmp_path / "elsewhere"):
        if source.name == "elsewhere":
            photographs.rename(tmp_path / "moved")
            source.symlink_to(tmp_path / "moved/val")
        found = calibrate_checkpoint(of_photographs, str(source), part="train")
        assert found.n == 80
        assert not any("trained on" in note for note in found.notes)


def test_where_the_images_to_train_on_cannot_be_listed_it_is_said(of_photographs, photographs):
    (photographs / "training").mkdir()
    found = calibrate_checkpoint(of_photographs, str(photographs / "val"), part="train")
    (said,) = [note for note in found.notes if "trained on" in note]
    assert "one folder for train" in said


def test_a_wrong_part_or_outputs_that_are_no_numbers_leave_the_checkpoint_alone(overconfident, tmp_path):
    content = overconfident.read_bytes()
    with pytest.raises(UsageError, match="never used to choose"):
        calibrate_checkpoint(overconfident, "digits", part="test")
    pixels = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "other.npz", images=pixels, labels=[0, 1, 0, 1])
    # Nobody has given --split.
    with pytest.raises(
        UsageError, match=r"other.npz: expected a part val, found train; give data with a part val, or"
    ):
        calibrate_checkpoint(overconfident, str(tmp_path / "other.npz"))
    with pytest.raises(UsageError, match="digits: expected images that the model was not trained on"):
        calibrate_checkpoint(overconfident, "digits", part="train")
    assert overconfident.read_bytes() == content
    broken = load_checkpoint(overconfident)
    tensors = {
        name: torch.full_like(each, torch.nan) if "weight" in name else each
        for name, each in broken.tensors.items()
    }
    save_checkpoint(overconfident, tensors, broken.document)
    with pytest.raises(DataError, match="NaN or infinite ones for 143 images"):
        calibrate_checkpoint(overconfident, "digits")


def test_groups_stay_together_and_are_counted():
    logits, labels = drawn(0, n=400)
    # Of each group the images are the same one, four times.
    logits, labels = logits.repeat_interleave(4, dim=0), labels.repeat_interleave(4)
    groups = [str(place // 4) for place in range(len(labels))]
    fitted = _cross_fitted(logits, labels, groups)
    temperatures = (logits[:, 0].double() / fitted[:, 0]).reshape(-1, 4)
    assert (temperatures.std(dim=1) < 1e-9).all()
    assert len(set(temperatures[:, 0].numpy().round(9))) == 5
    counted, plain = _honesty(logits, labels, groups), _honesty(logits, labels, None)
    (low, high), (least, most) = counted.loss_ci95, plain.loss_ci95
    assert high - low > 1.5 * (most - least)
    assert counted.ece_ci95[0] < plain.ece_ci95[0]
    # As of the images once.
    once = _honesty(logits[::4], labels[::4], None)
    assert counted.loss_ci95 == pytest.approx(once.loss_ci95, abs=0.1 * (high - low))
