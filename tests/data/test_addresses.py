"""Files by their addresses: patterns, ranges, and what is said where something is not there."""

import pickle

import fsspec
import pytest

from visus.data import addresses
from visus.data.addresses import Place, expand_braces, is_address
from visus.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{train,val}-{0..1}", ["train-0", "train-1", "val-0", "val-1"]),
        ("a{}b", ["ab"]),
        ("a{2..1}", []),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names


def test_braces_as_the_library_that_webdataset_uses():
    braceexpand = pytest.importorskip("braceexpand")
    for pattern in ("x-{000..012}-{a,b}.tar", "s3://b/{00..03}.tar", "{9..11}"):
        assert expand_braces(pattern) == list(braceexpand.braceexpand(pattern))


def test_a_pattern_for_everything_is_refused():
    for pattern in ("{0..99999999999}", "{0..9999}{0..9999}{0..9999}"):
        with pytest.raises(UsageError, match="at most 1,000,000 files"):
            expand_braces(pattern)


def test_what_is_an_address():
    assert all(map(is_address, ("memory://a", "http://x/y", "s3://b", "simplecache::http://x")))
    assert not any(map(is_address, ("/a/b", "a", "C:\\a", "C:/a", "a/b://c", "./{0..3}.tar")))


def test_a_range_of_a_file_on_the_web_is_all_that_is_sent(web):
    web.files["/a/b.bin"] = bytes(range(256)) * 1000
    place = Place(f"{web.url}/a")
    assert place.stamp("b.bin")[0] == 256_000
    web.sent.clear()
    assert place.read("b.bin", 1000, 500) == web.files["/a/b.bin"][1000:1500]
    assert web.sent == [500]
    assert place.read("b.bin", 255_990, 500) == web.files["/a/b.bin"][255_990:]
    with pytest.raises(DataError, match=r"/a/none.bin: expected a file, found none there"):
        place.read("none.bin", 0, 5)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_place_finds_reads_and_stamps(kind, tmp_path):
    base = str(tmp_path) if kind == "local" else "memory://places"
    files = fsspec.filesystem("memory" if kind == "memory" else "file")
    for name in ("a.tar", "train/b.tar", ".hidden.tar", "train/.no/c.tar", "d.txt"):
        path = f"{base.removeprefix('memory:/')}/{name}"
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, b"0123456789")
    place = pickle.loads(pickle.dumps(Place(base)))
    assert place.find(".tar") == ["a.tar", "train/b.tar"]
    assert place.read("a.tar", 3, 4) == b"3456"
    assert place.read("a.tar", 8, 40) == b"89"
    assert place.read("a.tar", 8, 0) == b""
    assert place.read("a.tar") == b"0123456789"
    assert place.exists("d.txt")
    assert not place.exists("e.txt")
    before = place.stamp("a.tar")
    assert before[0] == 10
    files.pipe_file(f"{base.removeprefix('memory:/')}/a.tar", b"9876543210")
    assert place.stamp("a.tar") != before


def test_what_cannot_be_read_is_said():
    with pytest.raises(UsageError, match="nonsense://x: cannot be read: Protocol not known: nonsense"):
        Place("nonsense://x").find(".tar")


def test_a_connection_that_is_lost_is_tried_again(monkeypatch):
    monkeypatch.setattr(addresses, "_WAITS_SECONDS", (0.0, 0.0))
    files = fsspec.filesystem("memory")
    files.pipe_file("/lost/a", b"12345")
    left = [ConnectionResetError("gone"), TimeoutError()]
    read = type(files).cat_file

    def cat_file(self, path, **options):
        if left:
            raise left.pop()
        return read(self, path, **options)

    monkeypatch.setattr(type(files), "cat_file", cat_file)
    assert Place("memory://lost").read("a", 1, 2) == b"23"
    left.extend([ConnectionResetError("gone")] * 3)
    with pytest.raises(DataError, match=r"memory://lost/a: cannot be read: gone"):
        Place("memory://lost").read("a", 1, 2)
