"""A checkpoint on files with columns, and on images that nobody has labelled."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visus
from visus.checkpoint import load_checkpoint, save_checkpoint
from visus.config import make_config
from visus.data.arrays import array_split
from visus.data.attributes import file_attributes
from visus.data.files import FileImages
from visus.errors import UsageError
from visus.models.build import build_model
from visus.scoring import Wanted
from visus.tables import read_columns
from visus.tested_runs import read_run
from visus.testing import evaluate_checkpoint, record_outcomes
from visus.training import train
from visus.unlabelled import open_unlabelled, predict_unlabelled


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained model of two classes that takes grey images of 8 by 8 pixels."""
    torch.manual_seed(0)
    model = build_model("small", num_classes=2, in_channels=1)
    record = {
        "size": [8, 8],
        "channels": 1,
        "mean": [0.5],
        "std": [0.25],
        "resize": 8,
        "interpolation": "bilinear",
    }
    document = {
        "model": "small",
        "model_args": {"num_classes": 2, "in_channels": 1, "stem": None},
        "classes": ["cat", "dog"],
        "preprocess": record,
        "config": {"val_batch_size": 7, "threads": 1},
    }
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, {f"model.{name}": each for name, each in model.state_dict().items()}, document)
    return load_checkpoint(path)


def draw(path, seed, size=(8, 8)):
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def table(tmp_path):
    """Thirty images in a table, three of each patient but for the last three, who belong to nobody."""
    rows = []
    for place in range(30):
        name = f"{place}.{'png' if place % 2 else 'bmp'}"
        draw(tmp_path / name, place, (8, 16) if place < 10 else (8, 8))
        patient = f"p{place // 3}" if place < 27 else ""
        rows.append([name, "cat" if place % 3 else "dog", patient])
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "patient"], *rows])
    return tmp_path / "t.csv"


def test_a_source_in_no_parts_is_tested_whole_and_not_called_training(checkpoint, table):
    whole = evaluate_checkpoint(checkpoint, str(table))
    assert (whole.part, whole.scores.n) == ("all", 30)
    assert evaluate_checkpoint(checkpoint, str(table), part="train").part == "train"
    checkpoint.document["config"].update(data=str(table), val_fraction=0)
    # These are the images that it was trained on.
    assert evaluate_checkpoint(checkpoint, str(table)).part == "train"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_of_many_images_are_those_of_their_paths(tmp_path, suffix):
    n = 5000
    labels = np.random.default_rng(0).integers(0, 3, n)
    split = array_split("test", np.zeros((n, 2, 2), np.uint8), labels, ["a", "b", "c"], "made")
    logits = torch.zeros(n, 3)
    logits[torch.arange(n), torch.from_numpy(labels)] = torch.linspace(1, 2, n)
    logits[4097] = torch.nan
    outputs = zip(logits.split(300), torch.from_numpy(labels).split(300), strict=True)
    path = tmp_path / f"predictions{suffix}"
    record_outcomes(outputs, split, path)
    paths, true, said, p = read_columns(path, ["path", "label", "prediction", "p_a"])
    names = [split.classes[label] for label in labels]
    assert (paths, true) == ([str(place) for place in range(n)], names)
    names[4097] = ""
    assert said == names
    expected = logits.softmax(1)[:, 0].numpy()
    np.testing.assert_allclose(np.array(p, float), expected, rtol=1e-6)


def test_columns_are_groups_and_slices(checkpoint, table):
    plain = evaluate_checkpoint(checkpoint, str(table))
    found = evaluate_checkpoint(checkpoint, str(table), groups="patient", wanted=Wanted(level=0.9))
    # Images of no patient are groups of their own.
    assert found.scores.groups == 9 + 3
    assert found.scores.accuracy == plain.scores.accuracy
    assert found.fingerprint == plain.fingerprint
    columns = {each.column for each in found.scores.slices}
    assert columns == {"class", "file_type", "megapixels", "aspect", "brightness"}
    aspects = {each.value: each.n for each in found.scores.slices if each.column == "aspect"}
    assert aspects == {"landscape": 10, "square": 20}
    # A patient has three images: too few to judge.
    (few,) = (each for each in found.scores.slices_left_out if each.column == "patient")
    assert (len(few.values), few.reason) == (10, "fewer than 5 images")
    assert 'not looked at as slices: patient "", p0, p1 and 7 more (fewer than 5 images)' in str(found.scores)
    with pytest.raises(UsageError, match=r"expected a part val, found train; name one of these with --split"):
        evaluate_checkpoint(checkpoint, str(table), part="val")
    with pytest.raises(UsageError, match="found patient"):
        evaluate_checkpoint(checkpoint, str(table), groups="scanner")


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A table of forty images to train on and thirty to test: these are of six groups of four, and six that belong to nobody."""
    folder = tmp_path_factory.mktemp("grouped")
    rows = []
    for place in range(70):
        draw(folder / f"{place}.png", place)
        tested = place >= 40
        group = f"{'test' if tested else 'train'}-{place // 4}" if place < 64 else ""
        rows.append([f"{place}.png", "cat" if place % 3 else "dog", "test" if tested else "train", group])
    with (folder / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split", "group"], *rows])
    return folder / "t.csv"


@pytest.mark.parametrize(("split", "groups"), [("test", 6 + 6), ("val", 2)])
def test_a_run_counts_groups_at_its_end_as_an_evaluation_of_it_does(grouped, tmp_path, split, groups):
    table = grouped
    if split == "val":
        table = grouped.with_name("no_test.csv")
        with grouped.open() as file:
            rows = [row for row in csv.reader(file) if row[2] != "test"]
        with table.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    settings = {"model": "small", "epochs": 1, "amp": "off", "device": "cpu", "val_fraction": 0.2}
    run = train(make_config(data=str(table), out=str(tmp_path), **settings))
    written = json.loads(Path(run.run, "evaluation.json").read_text())
    assert (written["split"], written["groups"], written["ci_method"]) == (split, groups, "bootstrap")
    units = read_run(run.run).units
    assert (len(units), units.max() + 1) == (written["n"], groups)
    loaded = load_checkpoint(Path(run.checkpoints["best"]))
    for asked in (None, "group"):
        assert (
            json.loads(json.dumps(evaluate_checkpoint(loaded, str(table), groups=asked).to_json())) == written
        )
    if split == "test":
        assert run.test["accuracy_ci95"] == written["accuracy_ci95"]


def test_where_groups_tell_nothing_or_an_accuracy_is_wanted_images_count(grouped, checkpoint):
    rows = [line.split(",") for line in grouped.read_text().split()]
    alone = grouped.with_name("alone.csv")
    alone.write_text(
        "\n".join(",".join([*row[:3], row[3] and row[0]]) for row in rows).replace("path\n", "group\n", 1)
    )
    assert evaluate_checkpoint(checkpoint, str(alone)).scores.groups is None
    assert evaluate_checkpoint(checkpoint, str(grouped)).scores.groups == 12
    exact = evaluate_checkpoint(checkpoint, str(grouped), wanted=Wanted(method="exact"))
    assert (exact.scores.groups, exact.scores.ci_method) == (None, "exact")
    assert any("some of these share a group" in each for each in exact.notes)
    one = grouped.with_name("one.csv")
    lines = (",".join([*row[:3], row[2] if place else "group"]) for place, row in enumerate(rows))
    one.write_text("\n".join(lines))
    found = evaluate_checkpoint(checkpoint, str(one))
    assert (found.scores.groups, found.scores.ci_method) == (None, "wilson")
    assert any("all images are of one group" in each for each in found.notes)
    promised = evaluate_checkpoint(checkpoint, str(grouped), wanted=Wanted(accuracy=0.5))
    assert promised.scores.groups is None
    assert any("some of these share a group" in each for each in promised.notes)
    with pytest.raises(UsageError, match="leave --groups out"):
        evaluate_checkpoint(checkpoint, str(grouped), wanted=Wanted(accuracy=0.5), groups="group")


def test_images_without_labels_are_predicted_and_nothing_is_scored(checkpoint, tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for place in range(9):
        draw(folder / f"{place}.png", place)
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    images = open_unlabelled(str(folder))
    assert len(images) == 10
    with pytest.raises(UsageError, match="--predictions FILE"):
        predict_unlabelled(checkpoint, str(folder), images, predictions=None)
    found = predict_unlabelled(checkpoint, str(folder), images, predictions=tmp_path / "p.csv")
    assert (found.n, [each.path for each in found.skipped]) == (9, ["bad.png"])
    assert found.to_json()["accuracy"] is None
    assert "nothing to score" in str(found)
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{place}.png" for place in range(9)]
    assert {row["label"] for row in rows} == {""}
    assert {row["prediction"] for row in rows} <= {"cat", "dog"}


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_tables_and_arrays_may_have_no_labels(checkpoint, tmp_path, kind):
    source = tmp_path / f"images.{kind}"
    for place in range(5):
        draw(tmp_path / f"{place}.png", place)
    names = [f"{place}.png" for place in range(5)]
    if kind == "csv":
        source.write_text("\n".join(["path,patient", *(f"{name},p" for name in names)]))
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"path": names}), source)
    else:
        np.savez(source, images=np.stack([np.asarray(Image.open(tmp_path / name)) for name in names]))
        names = ["0", "1", "2", "3", "4"]
    folder = predict_unlabelled(
        checkpoint, "x", open_unlabelled(str(tmp_path)), predictions=tmp_path / "a.csv"
    )
    found = predict_unlabelled(
        checkpoint, str(source), open_unlabelled(str(source)), predictions=tmp_path / "b.csv"
    )
    assert (folder.n, found.n) == (5, 5)
    with (tmp_path / "a.csv").open() as one, (tmp_path / "b.csv").open() as other:
        expected, rows = (list(csv.DictReader(file)) for file in (one, other))
    assert [row.pop("path") for row in rows] == names
    assert rows == [{key: value for key, value in row.items() if key != "path"} for row in expected]


def test_a_part_without_labels_is_passed_over_and_said(tmp_path):
    for part, name in (("train", "cat"), ("train", "dog"), ("test", ".")):
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        for place in range(3):
            draw(tmp_path / part / name / f"{place}.png", place)
    data = visus.open_source(str(tmp_path))
    assert data.test is None
    assert "test: images in no class folder passed over: 3" in data.notes
    assert len(open_unlabelled(str(tmp_path / "test"))) == 3


def test_folders_of_classes_and_other_sources_have_labels(tmp_path):
    (tmp_path / "cat").mkdir()
    draw(tmp_path / "cat" / "1.png", 0)
    assert open_unlabelled(str(tmp_path)) is None
    assert open_unlabelled("digits") is None


def test_an_image_that_lies_on_its_side_is_seen_upright(tmp_path):
    image = Image.fromarray(np.zeros((10, 20), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "b.JPG")
    (tmp_path / "c.png").write_bytes(b"")
    found = file_attributes(FileImages(tmp_path, ["a.jpg", "b.JPG", "c.png"]))
    assert found["aspect"] == ["portrait", "landscape", "unknown"]
    assert found["file_type"] == ["jpg", "jpg", "png"]
    assert found["megapixels"][:2] == [0.0002, 0.0002]
