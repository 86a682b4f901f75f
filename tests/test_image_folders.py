"""Folders of real files through the whole of it: train, skip what is broken, evaluate, go on."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from listening import Listening
from PIL import Image

from visus.config import make_config
from visus.data.batching import EvaluationBatches, TrainingBatches, measure_preprocessing
from visus.data.crops import centre_crop, random_resized_crop
from visus.data.keeping import decode_once
from visus.data.sources import open_source
from visus.errors import DataError
from visus.preparing import prepare
from visus.training import train

MODES = ["RGB", "L", "RGBA", "P", "CMYK", "1"]


def visus(*arguments):
    command = [sys.executable, "-m", "visus", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def paint(path, kind, number):
    """A picture of mixed size, mode and format: horizontal stripes, vertical ones, or a disc."""
    random = np.random.default_rng(number)
    height, width = random.integers(70, 140, 2)
    y, x = np.mgrid[:height, :width]
    period = random.integers(8, 16)
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 3) ** 2
    shape = {"rows": y // period % 2, "columns": x // period % 2, "disc": disc}[kind]
    pixels = np.where(shape[..., None], random.integers(150, 256, 3), random.integers(0, 90, 3))
    noisy = np.clip(pixels + random.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
    mode = MODES[number % len(MODES)]
    suffix = "jpg" if mode in ("RGB", "L", "CMYK") else "png"
    path.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy).convert(mode).save(path / f"{number:03} é.{suffix}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    for part, count in (("train", 20), ("test", 7)):
        for index, kind in enumerate(("rows", "columns", "disc")):
            for number in range(count):
                paint(root / part / kind, kind, 1000 * (part == "test") + 100 * index + number)
    return root


def opened(root, **options):
    return decode_once(open_source(root), resize=32, memory_bytes=10**9, **options)


def test_classes_that_nothing_is_validated_on_are_named(tmp_path):
    for kind, count in {"rows": 20, "columns": 20, "disc": 1}.items():
        for number in range(count):
            paint(tmp_path / "data" / kind, kind, number)
    display = Listening()
    config = make_config(data=str(tmp_path / "data"), model="small", epochs=1, out=str(tmp_path / "runs"))
    train(config, display=display)
    assert "classes without an image to validate on: disc" in display.lines


def test_a_folder_of_mixed_files_trains_with_resnet18_and_is_evaluated(folder, tmp_path):
    (folder / "train" / "rows" / "broken.png").write_bytes(b"no image")
    options = [
        "--model",
        "resnet18",
        "--img-size",
        32,
        "--epochs",
        6,
        "-b",
        10,
        "--lr",
        0.02,
        "--max-bad",
        0.05,
    ]
    done = visus("train", folder, *options, "--out", tmp_path, "--json")
    (folder / "train" / "rows" / "broken.png").unlink()
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["skipped"] == 1
    assert "skipped train/rows/broken.png: cannot identify image file" in done.stderr
    assert done.stderr.endswith("the exit code is 1 for files that could not be used: 1\n")
    assert document["test"]["n"] == 21
    assert document["test"]["accuracy"] > 0.6
    scores = json.loads(visus("evaluate", document["run"], folder, "--json").stdout)
    assert (scores["n"], scores["accuracy"]) == (21, document["test"]["accuracy"])


def test_streamed_files_give_the_same_batches(folder):
    kept = opened(folder)
    streamed = decode_once(open_source(folder), resize=32, memory_bytes=0)
    assert kept.train.images.decoded is not None
    assert streamed.train.images.decoded is None
    record = measure_preprocessing(kept.train, (28, 28), 32)
    assert measure_preprocessing(streamed.train, (28, 28), 32) == record
    for one, other in zip(
        TrainingBatches(kept.train, record, 9, "standard")(2),
        TrainingBatches(streamed.train, record, 9, "standard")(2),
        strict=True,
    ):
        assert one.images.shape[1:] == (3, 28, 28)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


def test_standard_crops_depend_on_the_image_alone(folder):
    data = opened(folder)
    record = measure_preprocessing(data.train, (28, 28), 32)

    def images(batch_size):
        batches = list(TrainingBatches(data.train, record, batch_size, "standard")(1))
        return torch.cat([b.images for b in batches])[torch.cat([b.indices for b in batches]).argsort()]

    assert torch.equal(images(7), images(20))
    assert len(list(EvaluationBatches(data.test, record, 8))) == 3


def test_a_size_in_the_cache_that_no_crops_would_come_from_is_said(folder):
    def told(augment, data=str(folder)):
        display = Listening()
        config = make_config(data=data, img_size=32, cache_size=50, augment=augment, max_bad=0.5)
        prepare(config, display).close()
        return [line for line in display.lines if line.startswith("--cache-size changes nothing")]

    assert [len(told(augment)) for augment in ("none", "light", "standard")] == [1, 1, 0]
    assert told("standard", "digits")


def test_too_many_broken_files_stop_before_anything_is_written(folder, tmp_path):
    for number in range(4):
        (folder / "train" / "disc" / f"broken{number}.png").write_bytes(b"\x89PNG")
    done = visus("train", folder, "--model", "small", "--out", tmp_path / "runs")
    for number in range(4):
        (folder / "train" / "disc" / f"broken{number}.png").unlink()
    assert done.returncode == 3
    assert "4 of 85 files are no images that can be used" in done.stderr
    assert "train/disc/broken" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_class_that_loses_all_its_images_is_named(tmp_path):
    for kind in ("rows", "columns"):
        for number in range(5):
            paint(tmp_path / "train" / kind, kind, number)
    (tmp_path / "train" / "disc").mkdir()
    (tmp_path / "train" / "disc" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none that can be used of disc"):
        opened(tmp_path, max_bad=0.5)


def test_parts_with_other_classes_are_refused(tmp_path):
    for part, kinds in (("train", ("rows", "columns")), ("val", ("rows", "disc"))):
        for kind in kinds:
            paint(tmp_path / part / kind, kind, 1)
    with pytest.raises(DataError, match=r"val differs .missing: columns; more: disc"):
        open_source(tmp_path)


@pytest.mark.parametrize(("kinds", "sentence"), [([], "class folders"), (["rows"], "at least two classes")])
def test_no_images_and_one_class_are_refused(tmp_path, kinds, sentence):
    for kind in kinds:
        paint(tmp_path / kind, kind, 1)
    with pytest.raises(DataError, match=sentence):
        open_source(tmp_path)


def test_a_made_split_follows_paths_and_not_what_was_broken(folder, tmp_path):
    before = open_source(folder).val.paths
    (folder / "train" / "rows" / "zz.txt").write_text("")
    assert open_source(folder).val.paths == before
    (folder / "train" / "rows" / "zz.txt").unlink()


@pytest.mark.parametrize("shape", [(3, 10, 40), (3, 40, 10), (3, 28, 28), (3, 5, 5), (3, 100, 29)])
def test_the_middle_is_taken_and_small_images_are_enlarged(shape):
    image = torch.arange(int(np.prod(shape))).remainder(256).to(torch.uint8).reshape(shape)
    cropped = centre_crop(image, (28, 28))
    assert cropped.shape == (3, 28, 28)
    if shape == (3, 28, 28):
        assert torch.equal(cropped, image)


def test_random_crops_have_the_areas_and_shapes_asked_for():
    random = np.random.default_rng(0)
    column = torch.arange(256, dtype=torch.uint8).expand(1, 200, 256)
    widths = []
    for _ in range(400):
        crop = random_resized_crop(column, (64, 64), random.random(40)).float()
        widths.append((crop[0, 0, -1] - crop[0, 0, 0]).item() / 256)
    assert 0.2 < min(widths) < 0.4
    assert 0.85 < max(widths) <= 1


def test_a_folder_of_small_images_keeps_their_size(tmp_path):
    random = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for number in range(8):
            image = Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8))
            image.save(tmp_path / "data" / kind / f"{number}.png")
    options = ["--model", "small", "-b", 4, "--epochs", 1, "--val-fraction", 0.25, "--amp", "off"]
    done = visus("train", tmp_path / "data", *options, "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert "images of 20x24" in done.stderr
    assert "augment: light" in (tmp_path / "data-small" / "config.yaml").read_text()


def test_a_test_part_may_have_some_of_the_classes(folder, tmp_path):
    shutil.copytree(folder / "train", tmp_path / "train")
    shutil.copytree(folder / "test" / "disc", tmp_path / "test" / "disc")
    data = open_source(tmp_path)
    assert {data.classes[label] for label in data.test.labels} == {"disc"}
    assert "test: columns, rows not in it" in data.notes
