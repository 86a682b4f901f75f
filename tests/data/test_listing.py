"""The list of a data set, and the fingerprint that changes with it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visus.data.arrays import array_split
from visus.data.images import Data
from visus.data.keeping import decode_once
from visus.data.listing import fingerprint, split_rows
from visus.data.sources import open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def arrays(pixels=PIXELS, labels=LABELS, classes=("a", "b", "c")):
    part = array_split("train", pixels, labels, classes, "x")
    return Data("x", tuple(classes), part, part.subset(np.array([1, 3]), "val"))


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / part / kind / f"{number}.png")
    return tmp_path


def test_every_image_has_a_row_with_its_part(folder):
    rows = list(split_rows(open_source(folder, val_fraction=0.34)))
    assert {path for path, _, _ in rows} == {str(p.relative_to(folder)) for p in folder.rglob("*.png")}
    assert len(rows) == 10
    for path, kind, part in rows:
        assert Path(path).parts[1] == kind
        assert (part == "test") == path.startswith("test")
    assert sum(part == "val" for _, _, part in rows) == 2


def test_rows_of_arrays_are_told_apart_by_their_part():
    rows = list(split_rows(open_source("digits")))
    assert len(rows) == len(set(rows)) == 1797
    assert list(split_rows(arrays()))[6:] == [("1", "b", "val"), ("3", "a", "val")]


def test_the_fingerprint_is_the_same_wherever_and_however_the_data_is_read(folder, tmp_path_factory):
    found = fingerprint(open_source(folder))
    assert len(found) == 64
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "set"
    folder.rename(elsewhere)
    data = open_source(elsewhere)
    assert fingerprint(data) == found
    assert fingerprint(decode_once(data, resize=2, memory_bytes=10**9)) == found
    folder.mkdir()


def test_a_zip_has_the_fingerprint_of_its_folder(folder, tmp_path_factory):
    packed = shutil.make_archive(str(tmp_path_factory.mktemp("zip") / "set"), "zip", folder)
    assert fingerprint(open_source(packed)) == fingerprint(open_source(folder))


@pytest.mark.parametrize("change", ["name", "size", "removed", "label", "split"])
def test_it_changes_with_the_files(folder, change):
    before, options = fingerprint(open_source(folder, val_fraction=0.34)), {}
    image = folder / "train" / "cat" / "1.png"
    if change == "name":
        image.rename(image.with_name("4.png"))
    elif change == "size":
        image.write_bytes(image.read_bytes() + b"x")
    elif change == "removed":
        image.unlink()
    elif change == "label":
        image.rename(folder / "train" / "dog" / "4.png")
    else:
        options["split_seed"] = 2
    assert fingerprint(open_source(folder, val_fraction=0.34, **options)) != before


def test_it_changes_with_each_pixel_label_class_and_part():
    pixels = PIXELS.copy()
    pixels[5, 3, 4, 2] ^= 1
    transposed = PIXELS.reshape(6, 5, 4, 3)
    data = arrays()
    changed = [
        arrays(pixels),
        arrays(transposed),
        arrays(labels=LABELS[::-1]),
        arrays(classes=("a", "c", "b")),
        replace(data, val=None),
        replace(data, val=None, test=data.val),
    ]
    prints = [fingerprint(each) for each in [data, arrays(), *changed]]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 7


def test_a_file_that_is_gone_counts_as_one(folder):
    data = open_source(folder)
    before = fingerprint(data)
    (folder / "test" / "dog" / "1.png").unlink()
    assert fingerprint(data) != before
