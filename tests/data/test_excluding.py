import numpy as np
import pytest
from PIL import Image

from visus.data.excluding import exclude, image_names, read_exclusions
from visus.data.images import Data
from visus.data.sources import open_source
from visus.errors import DataError, UsageError


@pytest.fixture
def data():
    part = open_source("digits", val_fraction=0).train.subset(np.arange(60))
    return Data(
        "some", part.classes, train=part.subset(np.arange(40)), val=part.subset(np.arange(40, 60), "val")
    )


def listed(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("path,kind\na/1.png,unreadable\n", ["a/1.png"]),
        ('kind,path\nx,"with, comma.png"\n', ["with, comma.png"]),
        ("a/1.png\nb/ä 2.png\n\n", ["a/1.png", "b/ä 2.png"]),
        ("", []),
    ],
)
def test_a_table_and_a_plain_list_are_read(tmp_path, text, names):
    assert read_exclusions(listed(tmp_path, text)) == names


def test_what_is_listed_goes_and_is_counted(data, tmp_path):
    first, last = data.train.paths[0], data.val.paths[-1]
    less = exclude(data, listed(tmp_path, f"path\n{first}\n{last}\nnobody\n"))
    assert list(less.train.paths) == list(data.train.paths[1:])
    assert list(less.val.paths) == list(data.val.paths[:-1])
    assert less.notes[-2:] == (
        "left out by --exclude: 1 of train, 1 of val",
        "--exclude: no image has 1 name of it: nobody",
    )


def test_paths_are_understood_as_in_tables(tmp_path, monkeypatch):
    for number in range(8):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(path)
    monkeypatch.chdir(tmp_path)
    data = open_source("set", val_fraction=0)
    names = f"path\n./a/0.png\n{tmp_path}/set/b/1.png\na//2.png\n{tmp_path}/other/b/3.png\n"
    less = exclude(data, listed(tmp_path, names))
    assert sorted(set(data.train.paths) - set(less.train.paths)) == ["a/0.png", "a/2.png", "b/1.png"]
    assert less.notes[-1] == f"--exclude: no image has 1 name of it: {tmp_path}/other/b/3.png"


@pytest.mark.parametrize(
    ("val", "name"), [("more/set", "more/set/b.png"), ("more/set.csv", "more/b.png"), ("set.CSV", "b.png")]
)
def test_images_of_another_source_are_called_by_where_they_are(val, name):
    assert image_names({"train": ["a.png"], "val": ["b.png"]}, val) == {"train": ["a.png"], "val": [name]}


def test_an_image_set_aside_is_still_one_of_training_to_the_list(data, tmp_path):
    twice = Data("some", data.classes, train=data.train, val=data.val, test=data.val)
    path = data.val.paths[3]
    less = exclude(twice, listed(tmp_path, f"path\ntrain/{path}\n"))
    assert len(less.val) == len(data.val) - 1
    assert len(less.test) == len(data.val)
    assert len(exclude(twice, listed(tmp_path, f"path\ntest/{path}\n")).test) == len(data.val) - 1


def test_a_class_without_an_image_left_is_refused(data, tmp_path):
    zeros = [path for path, label in zip(data.train.paths, data.train.labels, strict=True) if label == 0]
    with pytest.raises(DataError, match="found none left of 0"):
        exclude(data, listed(tmp_path, "\n".join(["path", *zeros])))


def test_an_empty_part_is_refused(data, tmp_path):
    with pytest.raises(DataError, match="all its images listed"):
        exclude(data, listed(tmp_path, "\n".join(data.val.paths)))


def test_a_list_that_is_not_there_is_refused(data, tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        exclude(data, tmp_path / "no.csv")


def test_what_is_no_text_is_refused_and_the_list_of_another_set_is_said_to_be_that(data, tmp_path):
    (tmp_path / "list").write_bytes(b"PK\x03\x04\x00\x00")
    with pytest.raises(UsageError, match="found no text"):
        exclude(data, tmp_path / "list")
    (tmp_path / "list").write_text("path\n" + "elsewhere/" + "x" * 1000 + "\n", encoding="utf-8")
    note = exclude(data, tmp_path / "list").notes[-1]
    assert "the list is of other images: no image has 1 name of it" in note
    assert len(note) < 400
