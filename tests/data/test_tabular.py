"""Tables that list images: understood as people write them, or refused with the row."""

import contextlib
import csv
import gc
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from visus.data import tabular
from visus.data.listing import fingerprint, split_header, split_rows
from visus.data.sources import open_source, read_source
from visus.data.tabular import number_labels
from visus.errors import DataError, UsageError

NAMES = [f"images/{kind}{place}.png" for kind in ("cat", "dog") for place in range(4)]
ROWS = [[name, name[7:10]] for name in NAMES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pets")
    (root / "images").mkdir()
    for place, name in enumerate(NAMES):
        Image.fromarray(np.full((6, 5, 3), place, np.uint8)).save(root / name)
    return root


def write(folder, rows, header=("path", "label"), name="a.csv"):
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return folder / name


def told(data):
    return {(path, label, part) for path, label, part, *_ in split_rows(data)}


def test_a_table_is_the_same_set_whatever_the_order_of_its_rows(folder):
    data = read_source(write(folder, ROWS))
    assert data.classes == ("cat", "dog")
    assert data.notes == ("a CSV table: 2 classes, images: 8 in train",)
    assert list(data.train.paths) == NAMES
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert data.train.images.read(6)[0, 0, 0] == 6
    other = read_source(write(folder, ROWS[::-1]))
    assert list(other.train.paths) == NAMES


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffPath,LABEL\r\nimages/cat0.png,cat\r\n\r\nimages/dog0.png,dog\r\n",
        'path,label\n"images/cat0.png","cat"\nimages/dog0.png, "dog"',
        "label;path;\ncat;images/cat0.png;\ndog;images/dog0.png;\n,,\n".replace(",,", ";;"),
        "path\tlabel\nimages/cat0.png\tcat \nimages/dog0.png\tdog\n",
        ",path,label\n0,./images/cat0.png,cat\n1,images//dog0.png,dog,\n",
        "path,label,Split\nimages/cat0.png,cat,\nimages/dog0.png,dog,\n",
    ],
    ids=["excel", "quotes", "semicolons", "tabs", "pandas", "empty split"],
)
def test_the_ways_in_which_people_write_them(folder, text):
    (folder / "odd.csv").write_bytes(text.encode())
    data = read_source(folder / "odd.csv")
    assert told(data) == {("images/cat0.png", "cat", "train"), ("images/dog0.png", "dog", "train")}


def test_absolute_paths_in_the_folder_are_as_relative_ones(folder, tmp_path):
    absolute = [[folder / name, label] for name, label in ROWS]
    assert list(read_source(write(folder, absolute)).train.paths) == NAMES
    elsewhere = read_source(write(tmp_path, absolute))
    assert list(elsewhere.train.paths) == [str(folder / name) for name in NAMES]
    assert elsewhere.train.images.read(3)[0, 0, 0] == 3


def test_splits_and_other_columns(folder):
    splits = ["Train", "training", "valid", "TEST"] * 2
    rows = [
        [*row, part, place % 3, "x" * place]
        for place, (row, part) in enumerate(zip(ROWS, splits, strict=True))
    ]
    data = open_source(write(folder, rows, ["path", "label", "split", "Site", "note"]))
    assert [len(part) for part in (data.train, data.val, data.test)] == [4, 2, 2]
    assert data.train.columns["Site"].tolist() == ["0", "1", "1", "2"]
    assert data.test.columns["note"].tolist() == ["xxx", "xxxxxxx"]
    assert data.notes[-1] == "columns kept with each image: Site, note"
    assert data.val.subset(np.array([1])).columns["Site"].tolist() == ["0"]


def test_no_group_is_in_two_parts_and_groups_are_written_down(folder):
    rows = [[*row, f"p{place % 4}" if place % 4 else ""] for place, row in enumerate(ROWS)]
    data = open_source(write(folder, rows, ["path", "label", "group"]), val_fraction=0.25)
    assert data.notes[-1].startswith("2 of 8 training images set aside for validation (seed 0), ")
    assert not set(data.val.columns["group"]) & set(data.train.columns["group"]) - {""}
    assert split_header(data) == ["path", "label", "split", "group"]
    assert {(row[0], row[3]) for row in split_rows(data)} == {(row[0], row[2]) for row in rows}


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["10", "2", "2", "0"], ["0", "2", "10"], [2, 1, 1, 0]),
        (["1.0", "0.0", "1"], ["0", "1"], [1, 0, 1]),
        (["10", "2", "b"], ["10", "2", "b"], [0, 1, 2]),
        (["010", "2"], ["010", "2"], [0, 1]),
        (["-1", "2"], ["-1", "2"], [0, 1]),
    ],
)
def test_labels_that_are_numbers_are_in_the_order_of_numbers(names, classes, labels):
    found = number_labels(names)
    assert (found[1], found[0].tolist()) == (classes, labels)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected columns path and label in its first row, found no path and no label among nothing"),
        ("images/cat0.png,cat\n", "found no path and no label among images/cat0.png, cat; name them there"),
        ("file,label\na,b\n", "found no path among file, label"),
        ("path,label,PATH\na,b,c\n", "expected one column path, found 2"),
        ("path,label\n", "expected rows with a path and a label, found none"),
        ("path,label\nimages/cat0.png,cat\n\nimages/dog0.png\n", "row 4: expected 2 values, found 1"),
        ("path,label\nimages/cat0.png,cat,big\n", "row 2: expected 2 values, found 3; put those with a comma"),
        ("path,label\nimages/cat0.png,\n", "row 2: expected a label, found nothing; fill it in"),
        ("path,label\n,cat\n", "row 2: expected a path, found nothing"),
        ('path,label\n"images/cat0.png,cat\n', "row 2: cannot be read as CSV: unexpected end of data"),
        ("path,label\nimages/cat0.png,cat\n./images/cat0.png,dog\n", "row 3: expected each image once, found ./images/cat0.png in"),
        ("path,label\nimages/cat0.png,cat\nimages/dog0.png,Cat\n", "differ in more than case and accents, found 'Cat', 'cat'"),
        ("path,label,split\nimages/cat0.png,cat,trian\n", "row 2: expected train, val or test as split, found trian"),
        ("path,label,split\nimages/cat0.png,cat,train\nimages/dog0.png,dog,\n", "row 3: expected train, val or test as split, f"),
        ("path,label\nimages/no.png,cat\nimages/nor.png,dog\n", "row 2: expected an image at '.*no.png', found none there nor"),
        ("path,label,split\nimages/cat0.png,cat,train\nimages/dog0.png,dog,val\n", r"val differs \(missing: cat; more: dog\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_said_with_its_row(folder, text, sentence):
    (folder / "bad.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=sentence) as caught:
        open_source(folder / "bad.csv")
    assert str(caught.value).startswith(str(folder / "bad.csv"))
    assert "\n" not in str(caught.value)


def test_a_group_in_two_parts_is_refused_by_training_and_left_to_the_audit_to_name(folder):
    rows = [f"images/{name}{n}.png,{name},train,{'pqr'[n]}" for name in ("cat", "dog") for n in range(3)]
    rows.append("images/cat3.png,cat,test,p")
    (folder / "bad.csv").write_text("path,label,split,group\n" + "\n".join(rows))
    with pytest.raises(
        DataError, match=r"expected each group in one part, found p in train and in test; move it"
    ):
        open_source(folder / "bad.csv")
    assert len(read_source(folder / "bad.csv").test) == 1
    (folder / "fix.csv").write_text("path\nimages/cat0.png\nimages/dog0.png\n")
    data = open_source(folder / "bad.csv", exclude=folder / "fix.csv")
    assert (len(data.train) + len(data.val), len(data.test)) == (4, 1)


def test_groups_of_another_source_are_groups_of_their_own(folder):
    for name in ("one", "other"):
        rows = [f"images/{kind}{n}.png,{kind},{'pqrs'[n]}" for kind in ("cat", "dog") for n in range(4)]
        (folder / f"{name}.csv").write_text("path,label,group\n" + "\n".join(rows))
    assert len(open_source(folder / "one.csv", val=folder / "other.csv").val) == 8


def outcome(path):
    """What a table holds, or what is wrong with it."""
    try:
        data = open_source(path, val_fraction=0.3)
    except DataError as error:
        return str(error)
    parts = (data.train, data.val, data.test)
    return data.notes, [
        (list(each.paths), each.labels.tolist(), {k: v.tolist() for k, v in each.columns.items()})
        for each in parts
        if each
    ]


@pytest.mark.parametrize(
    "spoilt",
    [
        None,
        {17: ["", "cat", "q"]},
        {18: ["./images/cat3.png", "dog", "q"], 19: ["images/dog3.png", "dog", "q"]},
        {15: ["x", "", "q"], 16: ["y", "", "q"]},
        {16: ["x", "cat\udcff", "q"]},
        {19: ["x", "cat"]},
    ],
)
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_that_is_read_and_sorted_some_rows_at_a_time_is_the_same(folder, monkeypatch, spoilt, form):
    random = np.random.default_rng(0)
    rows = [[f"images/{k}{n}.png", k, f"g{n % 5}"] for k in ("cat", "dog") for n in range(10)]
    rows = [rows[place] for place in random.permutation(20)]
    rows = [(spoilt or {}).get(place, row) for place, row in enumerate(rows)]
    path = folder / f"some.{form}"
    if form == "csv":
        path.write_text(
            "\n".join(map(",".join, [("path", "label", "group"), *rows])), "utf-8", "surrogateescape"
        )
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        if spoilt and any("\udcff" in row[1] or len(row) < 3 for row in spoilt.values()):
            pytest.skip("no table of Parquet can be so")
        columns = zip(*rows, strict=True)
        parquet.write_table(pyarrow.table(dict(zip(("path", "label", "group"), columns, strict=True))), path)
    whole = outcome(path)
    monkeypatch.setattr(tabular, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(tabular, "_SORTED_AT_ONCE", 4)
    assert outcome(path) == whole
    if spoilt:
        assert f"row {min(spoilt) + (2 if form == 'csv' else 1)}: expected" in whole
    else:
        assert sorted(path for part in whole[1] for path in part[0]) == sorted(row[0] for row in rows)
        # Each part by class, and each class by name.
        for paths, labels, _ in whole[1]:
            assert labels == sorted(labels)
            assert [path for _, path in sorted(zip(labels, paths, strict=True))] == paths


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("split", [True, False])
def test_a_table_of_a_million_images_is_read_in_150_mb(tmp_path, count, split):
    """The most that is held at any time: with a part or without, and a group to every fifty images."""
    (tmp_path / "n0").mkdir()
    (tmp_path / "n0" / "n0_0000000.JPEG").touch()
    with (tmp_path / "a.csv").open("w") as file:
        file.write("path,label,split,group\n")
        for number in range(count):
            kind, part = number % 97, "val" if number // 50 % 10 == 1 else "train"
            file.write(f"n{kind}/n{kind}_{number:07}.JPEG,n{kind},{part * split},p{number // 50}\n")
    gc.collect()
    tracemalloc.start()
    try:
        data = open_source(tmp_path / "a.csv")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data.train) + len(data.val) == count
    # A block of rows and a run of names are lists of strings, of ten million bytes in all.
    assert peak < 150 * count + (10_000_000 if count < 10**6 else 0)


@given(st.binary(max_size=300))
def test_noise_is_a_sentence(folder, noise):
    for content in (noise, b"path,label\n" + noise, b"path,label,split\nimages/cat0.png,cat,train\n" + noise):
        (folder / "noise.csv").write_bytes(content)
        try:
            found = read_source(folder / "noise.csv")
        except DataError as error:
            sentence = str(error)
        else:
            sentence = found.notes[0]
        assert "\n" not in sentence


@pytest.mark.parametrize("cell", ["x" * 200_000, "x" * 5000, "a\0b"])
def test_cells_made_to_break_something(folder, cell):
    for text in (f"{cell}\n", f"path,label\n{cell},cat\n", f"path,label\nimages/cat0.png,{cell}\n"):
        (folder / "noise.csv").write_text(text)
        with contextlib.suppress(DataError):
            assert len(read_source(folder / "noise.csv").train) == 1


def test_other_encodings_are_refused_but_in_names_of_files(folder):
    (folder / "a.csv").write_bytes("path,label\nimages/cat0.png,chat rosé\n".encode("latin-1"))
    with pytest.raises(DataError, match="row 2: expected UTF-8, found other bytes in label"):
        read_source(folder / "a.csv")
    (folder / "a.csv").write_text("path,label\nimages/cat0.png,cat\n", encoding="utf-16")
    with pytest.raises(DataError, match="expected UTF-8, found UTF-16"):
        read_source(folder / "a.csv")


def test_some_missing_files_are_left_for_the_decoder(folder):
    data = read_source(write(folder, [*ROWS, ["images/gone.png", "cat"], ["images/gone\0.png", "dog"]]))
    assert len(data.train) == 10
    assert data.train.images.stamps()[1] == {4: "No such file or directory", 9: "embedded null byte"}
    assert data.train.images.sizes_bytes()[[4, 9]].tolist() == [-1, -1]
    assert len(fingerprint(data)) == 64


def test_a_group_of_its_own_class_cannot_be_set_aside(folder):
    rows = [[*row, row[1]] for row in ROWS]
    with pytest.raises(DataError, match="found classes that lie in one group each; give validation images"):
        open_source(write(folder, rows, ["path", "label", "group"]))


def test_parquet_says_what_csv_does(folder, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parts = ["train", "train", "test", "val"] * 2
    columns = {
        "Path": [name for name, _ in ROWS],
        "label": pyarrow.array([label for _, label in ROWS]).dictionary_encode(),
        "split": parts,
        "age": [1, None, 3, 4, 5, 6, 7, 8],
        "pixels": [[1, 2]] * 8,
    }
    parquet.write_table(pyarrow.table(columns), folder / "a.parquet")
    data = open_source(folder / "a.parquet")
    rows = [[*row, part] for row, part in zip(ROWS, parts, strict=True)]
    assert told(data) == told(open_source(write(folder, rows, ["path", "label", "split"])))
    assert data.train.columns["age"].tolist() == ["1", "", "5", "6"]
    numbers = pyarrow.table({"path": columns["Path"], "label": [3.0, 20.0] * 4})
    parquet.write_table(numbers, folder / "a.parquet")
    assert read_source(folder / "a.parquet").classes == ("3", "20")
    parquet.write_table(pyarrow.table({"path": ["a", "b"], "label": ["x", None]}), folder / "a.parquet")
    with pytest.raises(DataError, match="row 2: expected a label, found nothing"):
        read_source(folder / "a.parquet")
    latin = pyarrow.array([b"a", "é".encode("latin-1")]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"path": ["a", "b"], "label": latin}), folder / "a.parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet: 'utf-8' codec can't decode byte 0xe9"):
        read_source(folder / "a.parquet")
    (folder / "a.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_source(folder / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'visus\[table\]'"):
        read_source(folder / "a.parquet")


def test_texts_and_numbers_of_parquet_need_nothing_that_casts(folder):
    """It would take 40 MB, whatever the table."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "path": pyarrow.array(NAMES, pyarrow.large_string()),
        "label": pyarrow.array([label for _, label in ROWS]).dictionary_encode(),
        "ward": pyarrow.array([None, "b"] * 4).dictionary_encode(),
        "age": pyarrow.array([1, None, -3, 4] * 2, pyarrow.int8()),
        "number": pyarrow.array([2**64 - 1] * 8, pyarrow.uint64()).dictionary_encode(),
    }
    parquet.write_table(pyarrow.table(columns), folder / "a.parquet")
    code = (
        "import sys, pathlib, visus.data.tabular as tabular\n"
        f"columns = tabular.read_table(pathlib.Path({str(folder / 'a.parquet')!r}))['train'].columns\n"
        "print({name: texts.tolist() for name, texts in columns.items()}, 'pyarrow.compute' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    texts = {"ward": ["", "b"] * 4, "age": ["1", "", "-3", "4"] * 2, "number": [str(2**64 - 1)] * 8}
    assert done.stdout == f"{texts} False\n"


def test_two_tables_in_one_folder_have_a_cache_each(folder):
    one, other = (read_source(write(folder, ROWS, name=name)) for name in ("a.csv", "b.csv"))
    assert one.train.images.identity != other.train.images.identity
