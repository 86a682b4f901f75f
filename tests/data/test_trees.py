"""The tree that names spell is that of the files with those names."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visus.data.folders import find_parts, list_classes
from visus.data.trees import FolderTree, NameTree
from visus.errors import DataError

FOLDERS = st.sampled_from(["train", "Val", "test", "cat", "dog", ".git", "__MACOSX", "set"])
FILES = st.sampled_from(["a.png", "b.JPG", "c.txt", ".d.png"])
NAMES = st.builds(lambda folders, file: "/".join([*folders, file]), st.lists(FOLDERS, max_size=4), FILES)


def understood(tree):
    try:
        return {part: told(list_classes(tree, folder)) for part, folder in find_parts(tree).items()}
    except DataError as error:
        return str(error)


def told(listing):
    return {**vars(listing), "paths": list(listing.paths), "labels": listing.labels.tolist()}


@settings(max_examples=40, deadline=None)
@given(st.lists(NAMES, max_size=12), st.lists(st.lists(FOLDERS, min_size=1, max_size=3), max_size=3))
def test_names_are_understood_as_the_files_are(names, empty):
    folders = ["/".join(each) for each in empty]
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(root) / name).write_bytes(b"")
        for folder in folders:
            (Path(root) / folder).mkdir(parents=True, exist_ok=True)
        spelled = NameTree(Path(root), [*dict.fromkeys(names), *(f"{folder}/" for folder in folders)])
        assert understood(spelled) == understood(FolderTree(Path(root)))


@pytest.mark.skipif(os.name != "posix", reason="links to themselves")
def test_a_link_to_itself_is_a_file_that_nobody_can_open(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder").mkdir()
    assert FolderTree(tmp_path).entries("") == (["folder"], ["loop.png"])
