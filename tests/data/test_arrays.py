import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from visus.data.arrays import adapt_pixels, array_split, read_digits, read_npz, to_pixels
from visus.data.decode import decode_image
from visus.data.sources import open_source, read_source
from visus.errors import DataError

IMAGES = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
LABELS = np.array([0, 1, 2, 1])


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


def test_one_class_is_too_few_to_train_on(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.zeros(4, int))
    assert read_source(tmp_path / "a.npz").classes == ("0",)
    with pytest.raises(DataError, match="at least two classes, found only 0"):
        open_source(tmp_path / "a.npz")


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_shrunk_and_converted_as_files_are(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    ours = adapt_pixels(torch.from_numpy(image).permute(2, 0, 1)[None], channels, 20, "bicubic")
    theirs = decode_image(tmp_path / "a.png", channels=channels, resize=20, interpolation="bicubic")
    np.testing.assert_array_equal(ours[0], theirs)
    assert ours.shape == (1, channels, 20, 26)


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


@pytest.mark.parametrize("content", [b"", b"PK", b"no npz"])
def test_a_damaged_npz_is_named(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: cannot be read as \.npz"):
        read_npz(tmp_path / "a.npz")


def test_an_npz_that_is_cut_closes_its_file(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    whole = (tmp_path / "a.npz").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
            read_npz(tmp_path / "a.npz")


def test_an_npz_that_claims_more_than_memory_is_named(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**14,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("images.npy", "labels.npy"):
            archive.writestr(name, header.getvalue())
    with pytest.raises(DataError, match=r"a\.npz: cannot be read as \.npz"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({}, "expected arrays named images and labels, found none"),
        ({"images": IMAGES}, "found images"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"found \(0, 5, 6\)"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "expected 4 labels for 4 images"),
        ({"images": IMAGES, "labels": LABELS - 1}, "found -1 for image 0"),
        ({"images": IMAGES, "labels": LABELS, "classes": ["a", "b"]}, "from 0 to 1, found 2 for image 2"),
        ({"images": IMAGES, "labels": LABELS, "classes": ["a", "b", "a"]}, "found a twice"),
        ({"images": IMAGES, "labels": LABELS, "classes": 3}, "expected a list of names as classes"),
        ({"images": IMAGES, "labels": [0, 1, np.nan, 1]}, "found nan for image 2"),
        ({"images": IMAGES, "labels": [0, 1, 10**15, 1]}, "at most 1,000,000 classes"),
        ({"images": IMAGES / 60, "labels": LABELS}, "float64 pixels from 0 to 1, found 0.0 to 1.9"),
        ({"images": np.where(IMAGES == 80, np.nan, 0.5), "labels": LABELS}, "found NaN in image 2"),
        ({"images": np.where(IMAGES == 80, np.inf, 0.5), "labels": LABELS}, "found 0.5 to inf"),
        ({"images": np.zeros(4, dtype=[("a", "u1")]), "labels": LABELS}, "expected images"),
    ],
)
def test_npz_whose_arrays_do_not_fit_are_named(tmp_path, arrays, sentence):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=rf"a\.npz: .*{sentence}"):
        read_npz(tmp_path / "a.npz")
