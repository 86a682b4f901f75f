import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from visus.data.sources import open_named, open_source, read_source
from visus.data.splitting import held_out, held_out_groups
from visus.errors import DataError, UsageError

FASHION = Path("/usr/share/datasets/fashion-mnist")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.floats(0, 0.99), st.integers(0, 99))
def test_a_split_is_stratified_and_follows_names(labels, fraction, seed):
    labels = np.array(labels)
    names = [f"{label}/{index}" for index, label in enumerate(labels)]
    away = held_out(names, labels, fraction, seed)
    for label in range(4):
        assert (labels[away] == label).sum() == round(fraction * (labels == label).sum())
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = held_out([names[i] for i in order], labels[order], fraction, seed)
    assert {names[order[i]] for i in shuffled} == {names[i] for i in away}


def test_another_seed_sets_aside_other_images():
    first, second = open_source("digits"), open_source("digits", split_seed=1)
    assert set(first.val.paths) != set(second.val.paths)
    assert first.test.paths == second.test.paths


def test_digits_are_a_partition():
    data = open_source("digits")
    everyone = [*data.train.paths, *data.val.paths, *data.test.paths]
    assert sorted(map(int, everyone)) == list(range(1797))
    assert len(data.test) == pytest.approx(359, abs=5)


def test_a_fraction_of_nothing_leaves_validation_out():
    assert open_source("digits", val_fraction=0).val is None


def test_where_there_is_a_validation_part_it_is_said_that_nothing_is_set_aside(tmp_path):
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / part / label / f"{part}.png")
    said = "nothing was set aside by --val-fraction and --split-seed, since there is a validation part"
    assert said not in open_source(tmp_path).notes
    for asked in ({"val_fraction": 0.3}, {"split_seed": 1}):
        assert said in open_source(tmp_path, **asked).notes
        # The settings of a run are given by nobody who looks at its images again.
        assert said not in open_named({"data": tmp_path, **asked}).notes
        assert said not in open_source("digits", **asked).notes


@pytest.mark.parametrize("fraction", [1, -0.1, 1.5])
def test_an_impossible_fraction_is_refused(fraction):
    with pytest.raises(UsageError, match="fraction"):
        open_source("digits", val_fraction=fraction)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_a_folder_of_idx_files(tmp_path):
    for part, n in (("train", 40), ("t10k", 10)):
        write_idx(tmp_path / f"{part}-images.idx3-ubyte", np.zeros((n, 4, 4)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(n) % 4)
    data = open_source(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 10)
    assert "4 classes" in data.notes[0]


def test_idx_images_without_labels_are_named(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 4, 4)))
    with pytest.raises(DataError, match="expected a file of labels beside"):
        open_source(tmp_path)


@pytest.mark.skipif(not FASHION.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_complete_fashion_mnist():
    data = open_source(FASHION)
    assert (len(data.train), len(data.val), len(data.test)) == (54_000, 6_000, 10_000)
    assert np.bincount(data.val.labels).tolist() == [600] * 10


def test_what_is_no_source_is_named(tmp_path):
    for source in (tmp_path, tmp_path / "none", "no-such"):
        with pytest.raises(DataError, match="expected"):
            open_source(source)


def put(root, *paths):
    for path in paths:
        folder, _, file = path.rpartition("/")
        (root / folder).mkdir(parents=True, exist_ok=True)
        if file:
            (root / path).write_bytes(b"x")


@pytest.mark.parametrize(
    ("paths", "source", "sentence"),
    [
        ([], "", "expected class folders with images in them, found none"),
        (["notes.txt"], "", "expected class folders with images in them, found none"),
        (["a.png"], "", "found none, only images that lie in no class; make a folder for each class"),
        (["cat/", "dog/"], "", "expected class folders with images in them, found none"),
        ([".git/a.png", "cat/.a.png"], "", "expected class folders with images in them, found none"),
        (["cat/a.png"], "", "at least two classes, found only cat; add images of others"),
        (["cat/a.png", "dog/"], "", "at least two classes, found only cat"),
        (["cat/a.png", ".dog/a.png"], "", "at least two classes, found only cat"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "", r"test differs \(missing: a, b; more: c\)"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/"], "", r"val differs \(missing: b\)"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/B/1.png"], "", "missing: b; more: B"),
        (["val/a/1.png", "test/a/1.png"], "", "found none; give a folder train beside the others"),
        (["train/a/1.png", "Training/a/1.png"], "", "expected one folder for train, found Training and train"),
        (["cat/a.png"], "cat/a.png", "found a single image; give the folder above its class"),
        (["a.txt"], "a.txt", "found another file"),
        ([], "nothing", "found nothing there"),
        ([], "x" * 5000, "cannot be opened: File name too long"),
        ([], "a\0b", "cannot be opened: embedded null byte"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_used_says_why(tmp_path, paths, source, sentence):
    put(tmp_path, *paths)
    with pytest.raises(DataError, match=sentence) as caught:
        open_source(tmp_path / source if source else tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match="neither a folder nor a file"):
        open_source(tmp_path / "a.npz")
    with pytest.raises(DataError, match="expected class folders"):
        open_source(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("place", ["", "cat", "cat/deep"])
def test_a_folder_without_permission_is_named(tmp_path, place):
    put(tmp_path, "cat/a.png", "dog/a.png", "cat/deep/a.png")
    (tmp_path / place).chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be listed: Permission denied; check its permissions"):
            open_source(tmp_path)
    finally:
        (tmp_path / place).chmod(0o755)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80),
    st.floats(0.02, 0.6),
    st.integers(0, 99),
)
def test_groups_are_set_aside_whole_and_whatever_the_order(images, fraction, seed):
    labels, numbers = np.array(images).T
    groups = [f"p{number}" for number in numbers]
    try:
        away = held_out_groups(groups, labels, fraction, seed)
    except DataError:
        # Each group has all that there is of some class.
        assert all(
            any(set(numbers[labels == label]) == {number} for label in labels[numbers == number])
            for number in set(numbers)
        )
        return
    stay = np.setdiff1d(np.arange(len(labels)), away)
    assert len(away)
    assert not set(numbers[away]) & set(numbers[stay])
    assert set(labels[stay]) == set(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = held_out_groups([groups[i] for i in order], labels[order], fraction, seed)
    assert sorted(order[shuffled]) == away.tolist()


@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0.05, 0.4))
def test_groups_are_stratified_within_the_size_of_one(seed, classes, fraction):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 6, 60 * classes)
    of_group = random.integers(0, classes, len(sizes))
    labels, groups = np.repeat(of_group, sizes), np.repeat(np.arange(len(sizes)), sizes)
    away = held_out_groups([str(each) for each in groups], labels, fraction, seed)
    for label in range(classes):
        # Of one class each, so that every class can be met to half of its largest group.
        wanted = fraction * (labels == label).sum()
        assert abs((labels[away] == label).sum() - wanted) <= 2.5


def test_groups_of_several_classes_are_stratified_nearly():
    random = np.random.default_rng(0)
    groups = random.integers(0, 200, 4000)
    leaning = random.dirichlet([0.5] * 4, 200)
    labels = np.array([random.choice(4, p=leaning[group]) for group in groups])
    away = held_out_groups([str(each) for each in groups], labels, 0.2, 0)
    shares = np.bincount(labels[away], minlength=4) / np.bincount(labels)
    # A group has 2 % of a class, on average.
    np.testing.assert_allclose(shares, 0.2, atol=0.02)
    others = held_out_groups([str(each) for each in groups], labels, 0.2, 1)
    assert set(away.tolist()) != set(others.tolist())


def test_a_group_too_large_is_better_than_no_validation():
    labels = np.array([0, 1] * 30)
    groups = np.repeat(["a", "b", "c"], 20).tolist()
    away = held_out_groups(groups, labels, 0.1, 0)
    assert len({groups[place] for place in away}) == 1
    assert len(away) == 20


def test_images_that_are_groups_of_their_own_are_stratified_as_ever():
    labels = np.repeat(np.arange(3), [100, 40, 25])
    away = held_out_groups([f"g{place}" for place in range(165)], labels, 0.1, 5)
    assert np.bincount(labels[away]).tolist() == [10, 4, 2]


def test_what_lies_beside_the_parts_is_said(tmp_path):
    for place in ("train/a", "train/b", "val/a", "val/b", "unlabelled", "holdout/a", "."):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            Image.new("L", (8, 8), number).save(tmp_path / place / f"{number}.png")
    assert (
        "beside train and val, passed over: folders holdout, unlabelled and 2 images"
        in read_source(tmp_path).notes
    )
    for name in ("holdout", "unlabelled"):
        shutil.rmtree(tmp_path / name)
    for number in range(2):
        (tmp_path / f"{number}.png").unlink()
    assert not any("beside" in note for note in read_source(tmp_path).notes)
