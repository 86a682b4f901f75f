"""The stored index of shards: what was written is read, and what is damaged is said."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visus.data.addresses import Place
from visus.data.decode import UndecodableError
from visus.data.images import Skipped
from visus.data.shards import ShardArchive, ShardIndex, parse_index
from visus.errors import DataError


def index(count=5, **changes):
    rows = {
        "shard": np.arange(count) % 2,
        "offset": 512 + 1024 * np.arange(count),
        "length": np.arange(count),
        "label": np.arange(count) % 3,
        "part": np.arange(count) % 3,
    }
    given = {
        "shards": ["a.tar", "b é.tar"],
        "stamps": np.array([[10**6, 5], [10**6, 0]]),
        "paths": [f"cat/{number} \udcff.png" for number in range(count)],
        "rows": rows,
        "classes": ["cat", "dog", "خروف"],
        "crcs": np.arange(count, dtype=np.uint32),
        "columns": {"site": np.array(["", "x"] * count, dtype=object)[:count]},
        "channels": 1,
        "others": 3,
        "skipped": (Skipped("a", "b"),),
    }
    return ShardIndex(**{**given, **changes})


def as_file(index):
    file = io.BytesIO()
    index.write(file)
    return file.getvalue()


def parse_bytes(content):
    return parse_index(io.BytesIO(content), "here")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_what_was_written_is_read(count):
    written = index(count)
    read = parse_bytes(as_file(written))
    assert as_file(read) == as_file(written)
    assert (list(read.paths), list(read.classes), read.skipped) == (
        list(written.paths),
        written.classes,
        written.skipped,
    )
    assert read.columns["site"].tolist() == written.columns["site"].tolist()
    assert read.names() == written.paths


def test_images_of_two_parts_may_have_one_path():
    assert index(4, paths=["0", "0", "0", "1"]).names() == ["train/0", "val/0", "test/0", "train/1"]


@given(st.binary(max_size=30), st.integers(0, 10**6))
def test_a_damaged_index_is_a_sentence(noise, seed):
    content = bytearray(as_file(index()))
    place = seed % len(content)
    content[place : place + len(noise)] = noise
    with contextlib.suppress(DataError):
        assert len(parse_bytes(content).paths) == 5


@pytest.mark.parametrize("content", [b"", b"PK", as_file(index())[:300], as_file(index())[:-30]])
def test_what_is_no_index_is_said_in_a_sentence(content):
    with pytest.raises(
        DataError, match=r"^here: cannot be read as an index of shards \(.*\); remove it, and the"
    ):
        parse_bytes(content)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("shard", 2), ("shard", -1), ("offset", 10**6), ("label", 3), ("part", 3), ("length", -1)),
        # What is too much for the memory that they take.
        *(("shard", 2**32), ("label", 2**32), ("part", 256)),
    ],
)
def test_numbers_that_lead_out_of_something_are_refused(column, value):
    rows = dict(index().rows)
    rows[column] = np.where(np.arange(5) == 3, value, rows[column])
    with pytest.raises(
        DataError, match=r"here: cannot be read as an index of shards .*; remove it, and the shards"
    ):
        parse_bytes(as_file(index(rows=rows)))


def test_too_few_checksums_are_refused():
    with pytest.raises(DataError, match="lengths differ"):
        parse_bytes(as_file(index(crcs=np.zeros(4, np.uint32))))


def test_an_image_that_has_changed_in_its_shard_is_noticed(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(range(256)) * 10)
    rows = {"shard": [0, 0], "offset": [512, 1000], "length": [100, 3000], "label": [0, 0], "part": [0, 0]}
    found = ShardIndex(
        ["a.tar"],
        np.array([[2560, 0]]),
        ["x", "y"],
        {name: np.array(values) for name, values in rows.items()},
        ["cat"],
        np.array([7, 7], dtype=np.uint32),
    )
    archive = ShardArchive(Place(str(tmp_path)), found, found.paths, "here")
    with pytest.raises(UndecodableError, match=r"damaged in a.tar"):
        archive.read("x", 10**6)
    with pytest.raises(UndecodableError, match=r"a.tar ends in the midst of it"):
        archive.read("y", 10**6)
    assert archive.sizes_bytes(["y", "x"]).tolist() == [3000, 100]
    assert archive.times(["y", "x"]).tolist() == [7, 7]


def test_one_name_for_two_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="here: expected each image once, found a twice"):
        ShardArchive(Place(str(tmp_path)), index(), ["a", "b", "c", "d", "a"], "here")
