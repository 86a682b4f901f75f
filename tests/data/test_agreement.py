"""A second source for validation."""

import numpy as np
import pytest
from PIL import Image

from visus.data.agreement import refuse_other_classes
from visus.data.dataset import ArrayDataset
from visus.data.sources import open_source
from visus.errors import DataError, UsageError

GREY = np.random.default_rng(0).integers(0, 256, (6, 4, 4), np.uint8)
RGB = np.stack([GREY] * 3, axis=-1)


def npz(path, labels, classes=None, images=GREY):
    arrays = {} if classes is None else {"classes": classes}
    np.savez(path, images=images[: len(labels)], labels=labels, **arrays)
    return path


def folder(root, *classes):
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (place, 0, 0)).save(root / name / "a.png")
    return root


def test_it_is_validated_on_and_training_images_all_stay(tmp_path):
    train = npz(tmp_path / "train.npz", [0, 1, 0, 1, 0, 1], ["cat", "dog"])
    val = npz(tmp_path / "val.npz", [0, 1, 1], ["dog", "cat"])
    data = open_source(train, val=val)
    assert (len(data.train), len(data.val), data.val.name) == (6, 3, "val")
    assert data.val.classes == data.classes == ("cat", "dog")
    assert data.val.labels.tolist() == [1, 0, 0]
    assert f"validation on {val}: 3 images" in data.notes


def test_of_a_source_with_parts_the_validation_part_or_else_the_training_part_is_taken(tmp_path):
    train = folder(tmp_path / "train set", "cat", "dog")
    other = tmp_path / "other"
    folder(other / "train", "cat", "dog")
    folder(other / "test", "cat", "dog")
    assert open_source(train, val=other).val.paths == ["train/cat/a.png", "train/dog/a.png"]
    folder(other / "val", "cat", "dog")
    assert open_source(train, val=other).val.paths == ["val/cat/a.png", "val/dog/a.png"]


def test_of_many_other_classes_the_first_are_named():
    names = [f"c{place:03}" for place in range(1000)]
    with pytest.raises(DataError) as raised:
        refuse_other_classes("photos", "val", [*names[:2], *(f"d{name}" for name in names)], names)
    said = str(raised.value)
    assert "missing: c002, c003, " in said
    assert "c021, ...; more: dc000, dc001, " in said
    assert said.endswith("dc019, ...)")


def test_data_sets_of_python_serve_too():
    train = ArrayDataset(GREY, [0, 1, 2, 0, 1, 2], ["a", "b", "c"])
    val = ArrayDataset(GREY[:3], [0, 1, 2], ["a", "b", "c"])
    assert len(open_source(train, val=val).val) == 3
    with pytest.raises(UsageError, match="other images than those to train on"):
        open_source(train, val=train)


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        (("cat", "owl"), "missing: dog; more: owl"),
        (("cat", "dog", "owl"), "more: owl"),
        (("cat",), "missing: dog"),
    ],
)
def test_other_classes_are_refused(tmp_path, classes, difference):
    train, val = folder(tmp_path / "train", "cat", "dog"), folder(tmp_path / "val", *classes)
    with pytest.raises(DataError, match=difference):
        open_source(train, val=val)


def test_numbers_without_names_must_fit(tmp_path):
    plain = npz(tmp_path / "plain.npz", [0, 1, 2])
    data = open_source(plain, val=npz(tmp_path / "few.npz", [1, 0, 1]))
    assert data.val.labels.tolist() == [1, 0, 1]
    assert data.val.classes == ("0", "1", "2")
    with pytest.raises(DataError, match="more: 3"):
        open_source(plain, val=npz(tmp_path / "many.npz", [0, 1, 2, 3]))
    # Whoever saved numbers without names may have meant another order than that of the names.
    named = npz(tmp_path / "named.npz", [0, 1, 2, 0, 1, 2], ["cat", "dog", "owl"])
    with pytest.raises(DataError, match="missing: 0, 1, 2; more: cat, dog, owl"):
        open_source(plain, val=named)
    with pytest.raises(DataError, match="missing: cat, dog, owl; more: 0, 1"):
        open_source(named, val=npz(tmp_path / "few.npz", [1, 0, 1]))
    with pytest.raises(DataError, match="missing: cat, dog, owl; more: 0, 1"):
        open_source(named, val=folder(tmp_path / "numbers", "0", "1"))


def test_named_classes_of_arrays_are_brought_to_lexicographic_order(tmp_path):
    data = open_source(npz(tmp_path / "a.npz", [0, 1, 2, 0, 1, 2], ["owl", "cat", "dog"]), val_fraction=0)
    assert data.classes == data.train.classes == ("cat", "dog", "owl")
    assert data.train.labels.tolist() == [2, 0, 1, 2, 0, 1]


def test_arrays_to_validate_on_get_the_channels_of_the_training_images(tmp_path):
    grey, rgb = npz(tmp_path / "grey.npz", [0, 1]), npz(tmp_path / "rgb.npz", [0, 1], images=RGB)
    data = open_source(grey, val=rgb)
    assert data.val.images.channels == 1
    assert any("rgb.npz are taken as grey" in note for note in data.notes)
    data = open_source(folder(tmp_path / "files", "0", "1"), val=grey)
    assert data.val.images.channels == 3
    assert (data.val.images.pixels[:, 0] == data.val.images.pixels[:, 2]).all()


def test_the_same_images_or_two_validation_parts_are_refused(tmp_path):
    train = npz(tmp_path / "train.npz", [0, 1])
    (tmp_path / "link.npz").symlink_to(train)
    with pytest.raises(UsageError, match="other images than those to train on"):
        open_source(train, val=tmp_path / "link.npz")
    folder(tmp_path / "parts" / "train", "0", "1")
    folder(tmp_path / "parts" / "val", "0", "1")
    with pytest.raises(DataError, match="has a validation part of its own; leave --val"):
        open_source(tmp_path / "parts", val=folder(tmp_path / "more", "0", "1"))


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_a_test_part_is_not_validated_on(tmp_path):
    write_idx(tmp_path / "t10k-images-idx3-ubyte", GREY)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(6) % 2)
    with pytest.raises(DataError, match="expected images to validate on, found only a test part"):
        open_source(npz(tmp_path / "train.npz", [0, 1]), val=tmp_path)
