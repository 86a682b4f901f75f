"""A zip of class folders is what the folder would be; what is wrong with it is said, and nothing is unpacked."""

import io
import os
import pickle
import struct
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from visus.data.archives import ZipArchive
from visus.data.decode import UndecodableError
from visus.data.keeping import decode_once
from visus.data.sources import open_source
from visus.errors import DataError

RANDOM = np.random.default_rng(0)


def png(number=None, size=(6, 5)):
    random = RANDOM if number is None else np.random.default_rng(number)
    content = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(content, "png")
    return content.getvalue()


def pack(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def a_set(prefix=""):
    names = [f"{prefix}{kind}/{place} é.png" for kind in ("cat", "dog") for place in range(8)]
    return {name: png(place) for place, name in enumerate(names)}


def unpack(root, files):
    for name, content in files.items():
        folder, _, file = name.rpartition("/")
        (root / folder).mkdir(parents=True, exist_ok=True)
        if file:
            (root / name).write_bytes(content)
    return root


def decoded(source):
    return decode_once(open_source(source, val_fraction=0.25), resize=None, max_bad=0.5, memory_bytes=10**9)


@pytest.mark.parametrize("prefix", ["", "pets/", "pets/train/"])
@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_zip_is_read_as_the_folder_would_be(tmp_path, prefix, method):
    files = a_set(prefix) | {
        f"{prefix}notes.txt": b"",
        f"{prefix}cat/.hidden.png": b"",
        f"{prefix}bird/": b"",
    }
    if "train" in prefix:
        files |= a_set("pets/test/")
    zipped = decoded(pack(tmp_path / "a.ZIP", files, method))
    folder = decoded(unpack(tmp_path / "folder", files))
    assert zipped.notes[1:] == folder.notes[1:]
    assert zipped.notes[0].startswith("class folders in a zip: 2 classes")
    for one, other in ((zipped.train, folder.train), (zipped.val, folder.val), (zipped.test, folder.test)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one.paths, one.labels.tolist()) == (other.paths, other.labels.tolist())
            for a, b in zip(one.images.decoded, other.images.decoded, strict=True):
                np.testing.assert_array_equal(a, b)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ZIP", "folder"]


def test_the_odd_habits_of_other_packers(tmp_path):
    windows = {name.replace("/", "\\"): content for name, content in a_set("pets/").items()}
    finder = a_set("./pets/") | {"__MACOSX/pets/cat/._0 é.png": b"x", "__MACOSX/._pets": b"x"}
    for files in (windows, finder):
        data = decoded(pack(tmp_path / "a.zip", files))
        assert (data.classes, len(data.train) + len(data.val), data.skipped) == (("cat", "dog"), 16, ())


@pytest.mark.parametrize(
    "name", ["../cat/a.png", "cat/../../a.png", "/cat/a.png", "..\\cat\\a.png", "\\\\host\\cat\\a.png"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    pack(tmp_path / "a.zip", a_set() | {name: png()})
    with pytest.raises(DataError, match=r"a\.zip: expected names inside the zip, found"):
        open_source(tmp_path / "a.zip")


def test_folders_without_end_are_refused_at_once(tmp_path):
    pack(tmp_path / "a.zip", a_set() | {"a/" * 30_000 + "a.png": b""})
    with pytest.raises(DataError, match="expected at most 64 folders in one another, found 30000"):
        open_source(tmp_path / "a.zip")
    assert len(decoded(pack(tmp_path / "a.zip", a_set("a/" * 60))).train) == 12


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all", None])
def test_what_is_no_zip_is_named(tmp_path, content):
    whole = pack(tmp_path / "a.zip", a_set()).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=r"a\.zip: cannot be read as a zip"):
        open_source(tmp_path / "a.zip")


def test_a_zip_without_classes_says_what_was_expected(tmp_path):
    for files in ({}, {"a.png": png()}, {"notes/a.txt": b""}):
        pack(tmp_path / "a.zip", files)
        with pytest.raises(DataError, match=r"a\.zip: expected class folders with images in them"):
            open_source(tmp_path / "a.zip")
    pack(tmp_path / "a.zip", {"cat/a.png": png()})
    with pytest.raises(DataError, match="at least two classes, found only cat"):
        open_source(tmp_path / "a.zip")


def change(path, member, *, flag=0, size=None):
    """Set a flag of a member, or lie about its size, in the central directory and before the member itself."""
    content = bytearray(path.read_bytes())
    name = member.encode()
    start = content.index(b"PK\1\2")
    while content[start + 46 : start + 46 + len(name)] != name:
        start = content.index(b"PK\1\2", start + 1)
    local = struct.unpack_from("<L", content, start + 42)[0]
    for place, flags, sizes in ((start, 8, 24), (local, 6, 22)):
        content[place + flags] |= flag
        if size is not None:
            struct.pack_into("<L", content, place + sizes, size)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change_it", "reason"),
    [
        ({"flag": 1}, "encrypted; pack it again without a password"),
        ({"flag": 64}, "damaged in the zip: strong encryption"),
        ({"size": 10**9}, "too large: 1,000,000,000 bytes, the limit is 801,048,576"),
        ({"size": 20}, "damaged in the zip: Bad CRC-32"),
    ],
)
def test_a_member_that_cannot_be_used_is_skipped_with_a_reason(tmp_path, change_it, reason):
    path = pack(tmp_path / "a.zip", a_set() | {"dog/bad.png": png()})
    change(path, "dog/bad.png", **change_it)
    data = decoded(path)
    assert len(data.train) + len(data.val) == 16
    (skipped,) = data.skipped
    assert skipped.path == "dog/bad.png"
    assert skipped.reason.startswith(reason)


def test_damage_anywhere_is_skipped_or_said(tmp_path):
    path = tmp_path / "a.zip"
    whole = pack(path, a_set(), zipfile.ZIP_STORED).read_bytes()
    random = np.random.default_rng(1)
    skipped = refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 4):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            data = decode_once(open_source(path, val_fraction=0), resize=None, max_bad=1, memory_bytes=10**9)
            skipped += len(data.skipped)
        except DataError:
            refused += 1
    assert skipped > 30
    assert refused > 3


def test_a_member_that_is_longer_than_it_says_takes_no_memory(tmp_path):
    path = pack(tmp_path / "a.zip", {"bomb": bytes(50_000_000)})
    change(path, "bomb", size=1000)
    archive = ZipArchive(path)
    tracemalloc.start()
    with pytest.raises(UndecodableError, match="Bad CRC"):
        archive.read("bomb", 10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_threads_read_what_one_reads(tmp_path):
    files = {f"{place}": RANDOM.bytes(int(RANDOM.integers(1, 300_000))) for place in range(40)}
    archive = ZipArchive(pack(tmp_path / "a.zip", files))
    wrong = []

    def read():
        wrong.extend(name for name in files for _ in range(3) if archive.read(name, 10**6) != files[name])

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_it_can_be_sent_to_a_process_and_survives_a_fork(tmp_path):
    files = {f"{place}": RANDOM.bytes(20_000) for place in range(50)}
    archive = ZipArchive(pack(tmp_path / "a.zip", files))
    assert pickle.loads(pickle.dumps(archive)).read("7", 10**6) == files["7"]

    def right():
        return all(archive.read(name, 10**6) == content for _ in range(20) for name, content in files.items())

    child = os.fork()
    if child == 0:
        # Whatever happens, a child must not go on with the tests.
        try:
            os._exit(0 if right() else 1)
        finally:
            os._exit(2)
    assert right()
    assert os.waitpid(child, 0)[1] == 0
