import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from made_runs import make_images, make_run
from PIL import Image
from sklearn.datasets import load_sample_image
from sklearn.neighbors import NearestNeighbors

from visus.checkpoint import load_checkpoint, rebuild_model
from visus.config import make_config
from visus.data.batching import EvaluationBatches
from visus.data.images import Data
from visus.data.sources import open_named, open_source
from visus.display import Display
from visus.explaining import explain
from visus.features import embed
from visus.overlays import overlay
from visus.reporting.closer import look_closer
from visus.reporting.contents import Place, describe_run
from visus.reporting.page import write_report
from visus.reporting.reading import read_run
from visus.reporting.thumbnails import drawing
from visus.testing import decode_for
from visus.training import train

SIDE = 12
QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on noise, whose first test image is also its fifth training image."""
    folder = tmp_path_factory.mktemp("alike")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, SIDE, SIDE, 3)).astype(np.uint8)
    images[60] = images[5]
    labels = np.arange(90) % 3
    for part, places in (("train", slice(0, 60)), ("test", slice(60, 90))):
        for place, (pixels, label) in enumerate(zip(images[places], labels[places], strict=True)):
            path = folder / "set" / part / "abc"[label] / f"{place:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return trained_on(folder / "set", folder / "runs")


def trained_on(source, out):
    # In memory, so that the report has something to decode.
    settings = {"model": "small", "augment": "none", "epochs": 1, "batch_size": 20, "cache": "ram"}
    return train(make_config(data=str(source), out=str(out), device="cpu", amp="off", **settings))


def opened(folder):
    """What a run's folder tells, and its data."""
    results = read_run(folder)
    return results, open_named(results.config)


@pytest.fixture(scope="module")
def looked(run):
    results, data = opened(run.run)
    return look_closer(results, data, "test", dict.fromkeys([*data.test.paths[:4], "gone.png"], "b"), QUIET)


def decoded(part, checkpoint):
    """The part as batches, by the way that training takes."""
    data = decode_for(checkpoint, Data("set", part.classes, val=part))
    return EvaluationBatches(data.val, checkpoint.preprocessing, 1000)


def test_the_most_similar_come_first_and_are_those_of_scikit_learn(run, looked):
    looks, compared = looked
    checkpoint = load_checkpoint(run.checkpoints["best"])
    data = open_source(checkpoint.config["data"])
    model = rebuild_model(checkpoint)
    features, others = (embed(model, decoded(part, checkpoint)) for part in (data.test, data.train))
    assert compared == len(others)
    distance, place = NearestNeighbors(n_neighbors=3, metric="cosine").fit(others).kneighbors(features[:4])
    assert list(looks) == list(data.test.paths[:4])
    for look, expected, far in zip(looks.values(), place, distance, strict=True):
        assert [path for path, _, _ in look.nearest] == [data.train.paths[each] for each in expected]
        assert [name for _, name, _ in look.nearest] == ["abc"[data.train.labels[each]] for each in expected]
        np.testing.assert_allclose([each for _, _, each in look.nearest], 1 - far, atol=1e-4)


def test_a_copy_in_training_is_found(looked):
    first = next(iter(looked[0].values()))
    assert first.nearest[0][0].endswith("05.png")
    assert first.nearest[0][2] == pytest.approx(1, abs=1e-5)


def test_the_picture_is_the_image_and_its_map(run, looked):
    checkpoint = load_checkpoint(run.checkpoints["best"])
    data = open_source(checkpoint.config["data"])
    images = next(iter(decoded(data.test, checkpoint))).images[:4]
    heat = explain(rebuild_model(checkpoint), images, torch.ones(4, dtype=torch.int64))
    assert heat.any()
    for image, one, look in zip(images, heat, looked[0].values(), strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(look.seen.partition(",")[2])))
        expected = Image.fromarray(overlay(image, one, checkpoint.preprocessing)).resize(picture.size)
        assert picture.size == (320, 160)
        # WebP is lossy.
        difference = np.asarray(picture, dtype=float) - np.asarray(expected)
        assert np.abs(difference).mean() < 8


def parts_of_photographs(n, side, seed=0):
    """Squares cut from scikit-learn's two photographs, of any size from `side` on and mirrored or not: `[n, side, side, 3]`."""
    photographs = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    rng = np.random.default_rng(seed)
    images = []
    for place in range(n):
        photograph = photographs[place % 2]
        size = int(rng.integers(side, min(photograph.size) + 1))
        left, top = (int(rng.integers(0, full - size + 1)) for full in photograph.size)
        part = photograph.crop((left, top, left + size, top + size)).resize(
            (side, side), Image.Resampling.LANCZOS
        )
        images.append(np.asarray(part)[:, :: rng.choice([-1, 1])])
    return np.stack(images)


def test_ten_classes_of_photographs_with_a_closer_look_take_less_than_five_megabytes(tmp_path):
    images, labels = parts_of_photographs(330, 160), np.arange(330) % 10
    np.savez(tmp_path / "images.npz", images=images, labels=labels, classes=np.array(list("abcdefghij")))
    # It learns nothing, and has what is shown for mistakes.
    settings = {"model": "quick", "img_size": 160, "epochs": 1, "lr": 1e-9, "amp": "off", "device": "cpu"}
    source, out = str(tmp_path / "images.npz"), str(tmp_path / "runs")
    run = train(make_config(data=source, out=out, val_fraction=0.7, augment="none", **settings))
    page = write_report([run.run])
    (data,) = re.findall(r'class="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    data = json.loads(data)
    assert len(data["looks"]) == 24
    assert sum(row[1] != row[2] and len(row) == 6 for row in data["images"]) == 200
    looks = [data["pictures"][look["seen"]] for look in data["looks"].values()]
    sizes = [Image.open(io.BytesIO(base64.b64decode(each.partition(",")[2]))).size for each in looks]
    assert set(sizes) == {(320, 160)}
    assert sum(map(len, data["pictures"])) < page.stat().st_size < 5e6


def described(folder):
    """What the page is told of a run, with closer looks."""
    results, data = opened(folder)
    return describe_run(results, Place(draw=drawing(data), data=data))


def test_the_page_looks_closer_at_the_surest_mistakes(run):
    data = described(run.run)["data"]
    mistakes = [row[0] for row in data["images"] if row[1] != row[2]]
    assert mistakes
    assert set(data["looks"]) == set(mistakes[:24])
    assert data["compared"] == 54
    for look in data["looks"].values():
        assert data["pictures"][look["seen"]].startswith("data:image/webp")
        for path, name, similarity, address in look["nearest"]:
            assert path.startswith(f"train/{name}/")
            assert -1 <= similarity <= 1.00001
            assert data["pictures"][address].startswith("data:image/png")


def test_how_far_it_is_is_shown_and_changes_nothing(run, tmp_path):
    stream = io.StringIO()
    page = write_report([run.run], tmp_path / "page.html", display=Display(stream))
    looked_at = len(described(run.run)["data"]["looks"])
    assert stream.getvalue().splitlines() == [
        f"report: decoded {looked_at + 54} of {looked_at + 54}",
        f"report: mistakes explained {looked_at} of {looked_at}",
        "report: training images compared 54 of 54",
    ]
    assert page.read_bytes() == write_report([run.run], tmp_path / "again.html").read_bytes()


def test_a_model_that_cannot_be_run_leaves_a_note(run, monkeypatch):
    def fail(_):
        raise RuntimeError("no such\nmodel")

    monkeypatch.setattr("visus.testing.rebuild_model", fail)
    page = described(run.run)
    assert page["data"]["looks"] == {}
    assert "a closer look at mistakes (no such model)" in page["notes"]


def test_a_run_without_weights_has_none_and_says_nothing(tmp_path):
    source = make_images(tmp_path, list("abc"))
    page = described(make_run(tmp_path / "run", list("abc"), source=source))
    assert page["data"]["mistakes"]
    assert page["data"]["looks"] == {}
    assert not page["notes"]


def test_features_that_are_no_numbers_have_no_neighbours_and_are_none(run, monkeypatch):
    def some_broken(model, batches, **options):
        features = embed(model, batches, **options)
        features[1] = np.inf
        return features

    monkeypatch.setattr("visus.reporting.closer.embed", some_broken)
    results, data = opened(run.run)
    looks, _ = look_closer(results, data, "test", dict.fromkeys(data.test.paths[:3], "a"), QUIET)
    assert [len(look.nearest) for look in looks.values()] == [3, 0, 3]
    second = open_source(results.config["data"]).train.paths[1]
    assert second not in [path for look in looks.values() for path, _, _ in look.nearest]
    assert write_report([run.run]).exists()


def test_a_class_that_came_later_moves_no_name(run, tmp_path):
    source = tmp_path / "set"
    shutil.copytree(read_run(run.run).config["data"], source)
    again = trained_on(source, tmp_path / "runs")
    (source / "train" / "_first").mkdir()
    shutil.copy(next((source / "train" / "a").iterdir()), source / "train" / "_first" / "new.png")
    data = described(again.run)["data"]
    assert data["looks"]
    for look in data["looks"].values():
        for path, name, _, _ in look["nearest"]:
            assert path.startswith(f"train/{name}/")
            assert name != "_first"


def test_a_transformer_is_looked_at_as_often_as_it_may_cost(tmp_path):
    source = make_images(tmp_path, list("abcdefgh"), 80, side=64)
    settings = {"model": "timm/vit_tiny_patch16_224", "img_size": 64, "epochs": 1, "lr": 1e-9, "amp": "off"}
    run = train(make_config(data=str(source), out=str(tmp_path / "runs"), val_fraction=0.5, **settings))
    data = described(run.run)["data"]
    assert data["part"] == "validation"
    # 18 runs of the model for a map of 16 tokens, of 100.
    assert len(data["looks"]) == 5
