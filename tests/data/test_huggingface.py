"""Hugging Face's data sets: from Python, from disk, and as Parquet files; images are taken as their bytes."""

import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from visus.data.decode import UndecodableError
from visus.data.keeping import decode_once
from visus.data.sources import open_source, read_source
from visus.errors import DataError, UsageError

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")


def png(number):
    content = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


@pytest.fixture(scope="module", autouse=True)
def own_folder(tmp_path_factory):
    """The library keeps what it makes of Parquet files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        were_off = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        yield
        if not were_off:
            datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def pets():
    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["dog", "cat"]),
        "site": datasets.Value("string"),
        "age": datasets.Value("int64"),
    }
    rows = {
        "image": [{"bytes": png(number), "path": None} for number in range(20)],
        "label": [number % 2 for number in range(20)],
        "site": ["x"] * 20,
        "age": [None, *range(1, 20)],
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def files(part):
    return [part.images.source(place) for place in range(len(part))]


def test_a_data_set_is_taken_as_it_lies(pets):
    data = read_source(pets)
    assert data.classes == ("dog", "cat")
    assert data.train.labels.tolist() == [0, 1] * 10
    assert files(data.train) == [png(number) for number in range(20)]
    assert data.train.columns["age"].tolist() == ["", *map(str, range(1, 20))]
    assert data.train.images.sizes_bytes().tolist() == [len(png(number)) for number in range(20)]
    shuffled = read_source(pets.shuffle(seed=1).select(range(7)))
    assert files(shuffled.train) == [png(int(number or 0)) for number in shuffled.train.columns["age"]]


def test_the_parts_of_a_dict_and_the_way_to_disk_and_back(pets, tmp_path):
    parts = datasets.DatasetDict(
        train=pets, validation=pets.select([3, 4]), test=pets.select([5]), spare=pets
    )
    data = open_source(parts)
    assert [len(part) for part in (data.train, data.val, data.test)] == [20, 2, 1]
    assert data.notes[-1] == "parts passed over: spare"
    parts.save_to_disk(tmp_path / "saved")
    pets.save_to_disk(tmp_path / "one")
    for folder, count in (("saved", 3), ("one", 1)):
        read = read_source(tmp_path / folder)
        assert files(read.train) == files(data.train)
        assert sum(part is not None for part in (read.train, read.val, read.test)) == count
    kept = decode_once(open_source(tmp_path / "saved"), resize=None, memory_bytes=10**9)
    np.testing.assert_array_equal(kept.test.images.decoded[0], data.test.images.read(0))
    assert pickle.loads(pickle.dumps(read.train.images)).source(3) == png(3)


@pytest.mark.parametrize("place", ["", "data/"])
def test_parquet_files_as_on_the_hub(pets, tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / "README.md").write_text("")
    for name, rows in (
        ("train-00000-of-00002", range(8)),
        ("train-00001-of-00002", range(8, 12)),
        ("test-00000", [5]),
    ):
        pets.select(rows).to_parquet(tmp_path / place / f"{name}.parquet")
    data = read_source(tmp_path)
    assert data.notes[0] == "a Hugging Face data set: 2 classes, images: 12 in train, 1 in test"
    assert data.classes == ("dog", "cat")
    assert files(data.train) == [png(number) for number in range(12)]
    one = read_source(tmp_path / place / "train-00001-of-00002.parquet")
    assert files(one.train) == [png(number) for number in range(8, 12)]


def test_columns_by_other_names_and_labels_of_other_kinds(pets):
    renamed = pets.rename_columns({"image": "img", "label": "fine"})
    assert files(read_source(renamed).train) == files(read_source(pets).train)
    texts = pets.remove_columns("label").add_column("label", ["10", "9"] * 10)
    assert read_source(texts).classes == ("10", "9")
    numbers = pets.remove_columns("label").add_column("label", [10, 9] * 10)
    assert read_source(numbers).classes == ("9", "10")
    grouped = open_source(
        pets.add_column("group", [f"p{number % 5}" for number in range(20)]), val_fraction=0.2
    )
    assert not set(grouped.val.columns["group"]) & set(grouped.train.columns["group"])


def test_a_test_part_without_labels_is_passed_over(pets):
    blind = (
        pets.remove_columns("label")
        .add_column("label", [-1] * 20)
        .cast_column("label", pets.features["label"])
    )
    data = read_source(datasets.DatasetDict(train=pets, test=blind))
    assert data.test is None
    assert data.notes[-1] == "test: no label in it, passed over"
    some = datasets.concatenate_datasets([pets, blind])
    with pytest.raises(DataError, match="train, row 20 from 0: expected a label, found none, nor in 19 more"):
        read_source(some)


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        (lambda each: each.to_iterable_dataset(), UsageError, "found IterableDataset; load it without streaming"),
        (lambda each: each.with_transform(dict), UsageError, "found a transform; leave it out"),
        (
            lambda each: each.remove_columns("image").add_column("image", [[[0] * 4] * 4] * 20),
            DataError,
            r"expected images in the column image, found \w+; cast_column\('image', datasets.Image\(\)\)",
        ),
        (lambda each: each.remove_columns("image"), DataError, "expected a column image, found label, site, age"),
        (lambda each: each.remove_columns("label"), DataError, "expected a column label, found image, site, age"),
        (lambda each: datasets.DatasetDict(a=each, b=each), DataError, "found a, b; rename them"),
        (lambda each: datasets.DatasetDict(val=each, valid=each), DataError, "expected one part for val, found two"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(pets, change, kind, sentence):
    with pytest.raises(kind, match=sentence):
        read_source(change(pets))


@pytest.mark.parametrize("column", ["label", "site"])
def test_text_that_is_no_utf8_is_said(column):
    # What Arrow is given as bytes it does not look into.
    other = pyarrow.array([b"caf\xe9", b"bar"]).view(pyarrow.string())
    words = {"label": pyarrow.array(["a", "b"]), "site": pyarrow.array(["x", "y"]), column: other}
    images = pyarrow.array([{"bytes": png(number), "path": None} for number in range(2)])
    table = pyarrow.table({"image": images, **words})
    with pytest.raises(DataError, match=f"train: expected UTF-8 in {column}, found other bytes"):
        read_source(datasets.Dataset(datasets.table.InMemoryTable(table)))


def test_images_by_path_and_images_that_are_not_there(pets, tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    cells = [{"bytes": None, "path": str(tmp_path / name)} for name in ("a.png", "gone.png")]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = read_source(
        datasets.Dataset.from_dict({"image": [*cells, None], "label": [0, 1, 0]}, features=features)
    )
    assert data.train.images.source(0) == png(1)
    assert data.train.images.sizes_bytes().tolist() == [len(png(1)), -1, -1]
    for place, reason in ((1, "No such file"), (2, "found nothing")):
        with pytest.raises(UndecodableError, match=reason):
            data.train.images.source(place)


def test_damaged_folders_and_a_missing_library(pets, tmp_path, monkeypatch):
    pets.save_to_disk(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot be read as a saved data set: .*; save it again"):
        read_source(tmp_path / "one")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'visus\[hf\]'"):
        read_source(tmp_path / "one")
