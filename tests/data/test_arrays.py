import gzip
import os
import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits

from visus.data.arrays import array_split, read_digits, read_idx, read_npz, to_pixels
from visus.errors import DataError

IMAGES = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
LABELS = np.array([0, 1, 2, 1])


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def test_digits_are_those_of_scikit_learn():
    split, original = read_digits(), load_digits()
    pixels = split.images.pixels[:, 0].numpy()
    np.testing.assert_array_equal(np.rint(pixels.astype(float) * 16 / 255), original.images)
    np.testing.assert_array_equal(split.labels, original.target)
    assert split.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5, 6), (4, 1, 5, 6)),
        ((4, 5, 6, 1), (4, 1, 5, 6)),
        ((4, 5, 6, 3), (4, 3, 5, 6)),
        ((4, 3, 5, 6), (4, 3, 5, 6)),
        ((4, 5, 6, 4), (4, 3, 5, 6)),
        ((4, 1, 5, 6), (4, 1, 5, 6)),
    ],
)
def test_layouts(shape, expected):
    assert to_pixels(np.zeros(shape, np.uint8), "x").shape == expected


@pytest.mark.parametrize(
    ("images", "value"),
    [
        (np.full((1, 2, 2), 0.5), 128),
        (np.full((1, 2, 2), 1.0, np.float32), 255),
        (np.full((1, 2, 2), 65535, np.uint16), 255),
        (np.full((1, 2, 2), 200, np.int64), 200),
        (np.ones((1, 2, 2), bool), 255),
    ],
)
def test_other_types_are_scaled(images, value):
    assert to_pixels(images, "x").flatten().tolist() == [value] * 4


def test_alpha_is_composed_on_white():
    pixels = np.array([[[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]]], np.uint8)
    assert to_pixels(pixels, "x")[0, :, 0].T.tolist() == [[10, 20, 30], [255, 255, 255], [127, 127, 127]]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 5)),
        np.zeros((0, 5, 5)),
        np.zeros((4, 7, 5, 6)),
        np.full((1, 2, 2), 1.5),
        np.full((1, 2, 2), np.nan),
        np.full((1, 2, 2), -1),
        np.full((1, 2, 2), 300),
        np.full((1, 2, 2), "a"),
    ],
)
def test_what_are_no_images_is_refused(images):
    with pytest.raises(DataError, match="x: expected"):
        to_pixels(images, "x")


@pytest.mark.parametrize(
    "labels", [[0, 1], [0, 1, 2, 5], [-1, 0, 1, 1], [0.5, 1, 1, 1], [[0], [1], [1], [0]]]
)
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(DataError, match="labels"):
        array_split("train", IMAGES, labels, ["a", "b", "c"], "x")


def test_one_class_is_refused():
    with pytest.raises(DataError, match="at least two classes"):
        array_split("train", IMAGES, np.zeros(4, int), None, "x")


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS, classes=["cat", "猫", "dog"])
    split = read_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(split.images.pixels[:, 0], IMAGES)
    assert split.classes == ("cat", "猫", "dog")


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_npz_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", images=np.array([Hostile()], dtype=object), labels=[0])
    with pytest.raises(DataError, match=r"a\.npz"):
        read_npz("a.npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DataError, match=r"b\.npz"):
        read_npz("b.npz")
    assert not (tmp_path / "ran").exists()


def test_npz_without_the_arrays_says_what_it_holds(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES)
    with pytest.raises(DataError, match="expected arrays named images and labels, found x"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx(tmp_path, pack):
    (tmp_path / "a").write_bytes(pack(idx(IMAGES)))
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), IMAGES)


@pytest.mark.parametrize("cut", [0, 3, 10, 40, -1])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_truncated_idx_file_is_named(tmp_path, pack, cut):
    (tmp_path / "a-idx3").write_bytes(pack(idx(IMAGES))[:cut])
    with pytest.raises(DataError, match="a-idx3"):
        read_idx(tmp_path / "a-idx3")
