import unicodedata

import pytest

from visus.data.folders import find_parts, is_image, list_classes, list_images
from visus.data.trees import FolderTree
from visus.errors import DataError


def make(root, *paths):
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(b"x")


def test_classes_and_paths_are_in_lexicographic_order(tmp_path):
    make(tmp_path, "class2/b.png", "class10/a.JPG", "class2/deep/a.jpeg", "class2/notes.txt")
    listing = list_classes(FolderTree(tmp_path), "")
    assert listing.classes == ["class10", "class2"]
    assert listing.paths == ["class10/a.JPG", "class2/b.png", "class2/deep/a.jpeg"]
    assert listing.labels.tolist() == [0, 1, 1]
    assert listing.others == 1


def test_hidden_and_empty_folders_are_no_classes(tmp_path):
    make(
        tmp_path,
        "cat/a.png",
        "dog/a.png",
        ".ipynb_checkpoints/a.png",
        "cat/.hidden.png",
        "cat/.h/a.png",
        "bird/",
    )
    listing = list_classes(FolderTree(tmp_path), "")
    assert listing.classes == ["cat", "dog"]
    assert len(listing.paths) == 2
    assert listing.empty == ["bird"]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["train", "val", "test"], ["test", "train", "val"]),
        (["Training", "VALID"], ["train", "val"]),
        (["train", "validation", "testing"], ["test", "train", "val"]),
    ],
)
def test_parts_go_by_their_usual_names(tmp_path, names, parts):
    for name in names:
        make(tmp_path, f"{name}/cat/a.png")
    assert sorted(find_parts(FolderTree(tmp_path))) == parts


def test_a_single_wrapping_folder_is_looked_through(tmp_path):
    make(tmp_path, "set/train/cat/a.png", "set/val/cat/a.png")
    assert find_parts(FolderTree(tmp_path)) == {"train": "set/train", "val": "set/val"}
    other = tmp_path / "other"
    make(other, "all/cat/a.png", "all/dog/a.png")
    assert find_parts(FolderTree(other)) == {"train": "all"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("test", {"test": "test"}),
        ("set/Validation", {"val": "set/Validation"}),
        ("test/all", {"test": "test/all"}),
        ("train", {"train": "train"}),
        ("tests", {"train": "tests"}),
    ],
)
def test_a_part_alone_is_that_part(tmp_path, name, parts):
    make(tmp_path, f"{name}/cat/a.png", f"{name}/dog/a.png")
    assert find_parts(FolderTree(tmp_path)) == parts


def test_parts_under_a_folder_called_as_one_are_found(tmp_path):
    make(tmp_path, "test/train/cat/a.png", "test/val/cat/a.png")
    assert find_parts(FolderTree(tmp_path)) == {"train": "test/train", "val": "test/val"}


def test_two_folders_for_one_part_are_refused(tmp_path):
    make(tmp_path, "train/a/a.png", "val/a/a.png", "valid/a/a.png")
    with pytest.raises(DataError, match="expected one folder for val"):
        find_parts(FolderTree(tmp_path))


def test_a_single_class_is_not_taken_for_a_wrapper(tmp_path):
    make(tmp_path, "cat/a.png")
    assert find_parts(FolderTree(tmp_path)) == {"train": ""}


def test_names_that_look_alike_are_refused(tmp_path):
    make(tmp_path, unicodedata.normalize("NFC", "café/a.png"), unicodedata.normalize("NFD", "café/b.png"))
    with pytest.raises(DataError, match="differ in more than case and accents"):
        list_classes(FolderTree(tmp_path), "")


def test_links_in_a_circle_end(tmp_path):
    make(tmp_path, "cat/a.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    assert list_images(tmp_path) == [str(tmp_path / "cat" / "a.png")]


def test_names_that_are_not_utf8_are_listed(tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    make(tmp_path, f"cat/{name}")
    assert list_classes(FolderTree(tmp_path), "").paths == [f"cat/{name}"]


@pytest.mark.parametrize(
    ("name", "expected"), [("a.PNG", True), ("a.tar.gz", False), ("png", False), ("a.avif", True)]
)
def test_images_go_by_their_suffix(name, expected):
    assert is_image(name) is expected


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, "train/a.png", "bus/a.png", "plane/a.png")
    assert find_parts(FolderTree(tmp_path)) == {"train": ""}
    assert list_classes(FolderTree(tmp_path), "").classes == ["bus", "plane", "train"]


def test_a_folder_train_beside_others_is_a_part_where_it_holds_classes(tmp_path):
    make(tmp_path, "train/cat/a.png", "train/dog/a.png", "documents/about.txt")
    assert find_parts(FolderTree(tmp_path)) == {"train": "train"}
