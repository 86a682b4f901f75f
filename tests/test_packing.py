"""What is packed is the set that it was: the same images, classes, parts and weights, in bytes that do not vary."""

import gc
import io
import json
import os
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image

from visus.cli import main
from visus.data import shardwriting
from visus.data.listing import fingerprint, split_rows
from visus.data.sources import open_source, read_source
from visus.errors import DataError, UsageError
from visus.packing import pack_source

KINDS = ("cat", "dog", "dog.old")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set") / "pets"
    for part, count in (("train", 9), ("test", 3)):
        for label, kind in enumerate(KINDS):
            (root / part / kind).mkdir(parents=True)
            for number in range(count):
                random = np.random.default_rng([part == "test", label, number])
                image = Image.fromarray(random.integers(0, 256, (18 + number, 16, 3), np.uint8))
                image.save(root / part / kind / f"{number}.v1 é.{'png' if number % 2 else 'jpg'}")
    return root


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def told(data):
    return list(split_rows(data))


def test_the_packed_set_is_the_set(folder, tmp_path):
    packed = pack_source(str(folder), tmp_path / "a", shard_bytes=10_000)
    assert packed.images == {"train": 27, "test": 9}
    assert packed.shards == len(list((tmp_path / "a").glob("*.tar"))) > 4
    before, after = open_source(folder), open_source(tmp_path / "a")
    assert told(after) == told(before)
    assert (after.classes, fingerprint(after)) == (before.classes, fingerprint(before))
    for name in ("train", "val", "test"):
        one, other = getattr(before, name).images, getattr(after, name).images
        for place in range(len(one)):
            assert Path(one.source(place)).read_bytes() == other.source(place)
    (tmp_path / "a" / "index.npz").unlink()
    assert told(open_source(tmp_path / "a")) == told(before)


def test_a_packed_shard_that_was_cut_off_is_named_and_the_rest_is_used(folder, tmp_path):
    pack_source(str(folder), tmp_path / "a", shard_bytes=10_000)
    whole = open_source(tmp_path / "a", val_fraction=0)
    contents = {path: whole.train.images.source(place) for place, path in enumerate(whole.train.paths)}
    (shard,) = sorted((tmp_path / "a").glob("train-000001.tar"))
    os.truncate(shard, shard.stat().st_size // 2)
    cut = open_source(tmp_path / "a", val_fraction=0)
    (skipped,) = cut.skipped
    assert skipped.path == shard.name
    assert skipped.reason.startswith("cut off")
    assert 0 < len(whole.train) - len(cut.train) < 9
    assert [path for path in whole.train.paths if path in set(cut.train.paths)] == list(cut.train.paths)
    assert list(cut.test.paths) == list(whole.test.paths)
    for place, path in enumerate(cut.train.paths):
        assert cut.train.images.source(place) == contents[path]
    shard.unlink()
    with pytest.raises(
        DataError, match=r"found train-000001.tar not in both; copy all again, or pack them again"
    ):
        open_source(tmp_path / "a")


def test_the_same_images_make_the_same_bytes(folder, tmp_path):
    for name in ("a", "b"):
        pack_source(str(folder), tmp_path / name, shard_bytes=15_000)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_readers_find_mixed_classes_with_numbers(folder, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pack_source(str(folder), tmp_path / "a")
    found = list(
        webdataset.WebDataset(str(tmp_path / "a" / "train-000000.tar"), shardshuffle=False).decode("pil")
    )
    labels = [each["cls"] for each in found]
    assert len(found) == 27
    assert sorted(labels) == [0] * 9 + [1] * 9 + [2] * 9 != labels
    documents = [each["json"] for each in found]
    assert [KINDS.index(each["label"]) for each in documents] == labels
    assert sorted(each["position"] for each in documents) == list(range(27))
    assert {each["split"] for each in documents} == {"train"}
    # It leaves files open.
    gc.collect()


@pytest.mark.parametrize("stop", [1, 5, 20, 30])
def test_what_was_interrupted_goes_on_to_the_same_bytes(folder, tmp_path, monkeypatch, stop):
    pack_source(str(folder), tmp_path / "a", shard_bytes=10_000)
    calls = []

    def progress(done, total):
        calls.append(done)
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_source(str(folder), tmp_path / "b", shard_bytes=10_000, progress=progress)
    assert not (tmp_path / "b" / "index.npz").exists()
    assert not list((tmp_path / "b").glob(".*"))
    before = {name: (tmp_path / "b" / name).stat().st_mtime_ns for name in contents(tmp_path / "b")}
    (tmp_path / "b" / ".train-000009.tar.1234.tmp").write_bytes(b"of one that was killed")
    packed = pack_source(str(folder), tmp_path / "b", shard_bytes=10_000)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    assert packed.images == {"train": 27, "test": 9}
    for name, time in before.items():
        assert name == "pack.json" or (tmp_path / "b" / name).stat().st_mtime_ns == time


def test_nothing_is_overwritten(folder, tmp_path):
    pack_source(str(folder), tmp_path / "a", shard_bytes=10_000)
    refused = {
        "is complete already": (str(folder), tmp_path / "a"),
        "found other things in it; choose another": (str(folder), tmp_path),
        "make .* first": (str(folder), tmp_path / "x" / "y"),
        "outside of": (str(folder), folder / "packed"),
    }
    for sentence, arguments in refused.items():
        with pytest.raises(UsageError, match=sentence):
            pack_source(*arguments, shard_bytes=10_000)
    (tmp_path / "a" / "index.npz").unlink()
    with pytest.raises(UsageError, match="found other things in it"):
        pack_source(str(folder), tmp_path / "a", shard_bytes=20_000)
    (tmp_path / "a" / "train-000001.tar").unlink()
    with pytest.raises(UsageError, match="expected its shards one after the other, found some missing"):
        pack_source(str(folder), tmp_path / "a", shard_bytes=10_000)
    with (
        filelock.FileLock(tmp_path / "a" / ".pack.lock"),
        pytest.raises(UsageError, match="another process is writing it"),
    ):
        pack_source(str(folder), tmp_path / "a", shard_bytes=10_000)
    with pytest.raises(UsageError, match="--quality"):
        pack_source(str(folder), tmp_path / "new", quality=80)


def test_a_full_disk_leaves_whole_shards_and_can_go_on(folder, tmp_path, monkeypatch):
    add = shardwriting._add
    calls = []

    def fail(*arguments):
        calls.append(1)
        if len(calls) == 30:
            raise OSError(28, "No space left on device")
        return add(*arguments)

    monkeypatch.setattr(shardwriting, "_add", fail)
    with pytest.raises(OSError, match="No space"):
        pack_source(str(folder), tmp_path / "a", shard_bytes=5_000)
    assert not list((tmp_path / "a").glob(".*"))
    packed = pack_source(str(folder), tmp_path / "a", shard_bytes=5_000)
    assert packed.images == {"train": 27, "test": 9}
    assert told(read_source(tmp_path / "a")) == told(read_source(folder))


def test_arrays_are_packed_without_loss(tmp_path):
    pack_source("digits", tmp_path / "a")
    before, after = open_source("digits"), open_source(tmp_path / "a")
    assert told(after) == told(before)
    assert after.train.images.channels == 1
    for place in range(0, len(after.train), 100):
        pixels = before.train.images.pixels[place].numpy()
        np.testing.assert_array_equal(after.train.images.read(place), pixels)


def test_numbers_stay_in_their_order(tmp_path):
    images, labels = np.zeros((24, 4, 4), np.uint8), np.arange(24) % 12
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    pack_source(str(tmp_path / "a.npz"), tmp_path / "a")
    for _ in range(2):
        assert read_source(tmp_path / "a").classes == tuple(map(str, range(12)))
        (tmp_path / "a" / "index.npz").unlink(missing_ok=True)


def test_columns_and_groups_come_along(folder, tmp_path):
    rows = [
        f"train/{kind}/{n}.v1 é.{'png' if n % 2 else 'jpg'},{kind},p{n % 4},{n}"
        for kind in KINDS
        for n in range(9)
    ]
    (folder / "a.csv").write_text("\n".join(["path,label,group,age", *rows]), encoding="utf-8")
    pack_source(str(folder / "a.csv"), tmp_path / "a")
    for _ in range(2):
        before, after = open_source(folder / "a.csv"), open_source(tmp_path / "a")
        assert told(after) == told(before)
        assert after.train.columns["age"].tolist() == before.train.columns["age"].tolist()
        (tmp_path / "a" / "index.npz").unlink(missing_ok=True)


@pytest.mark.parametrize("place", ["path", "label", "group"])
def test_a_byte_of_zero_is_refused_before_anything_is_written(folder, tmp_path, place):
    """It is what stands between two texts in the index, which could not be read again."""
    row = {"path": f"{folder}/train/cat/0.v1 é.jpg", "label": "cat", "group": "a"}
    other = {"path": f"{folder}/train/dog/0.v1 é.jpg", "label": "dog", "group": "b"}
    other[place] += "\0c"
    lines = [",".join(each) for each in (row, row.values(), other.values())]
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=f"expected text as {place}, found a byte of zero in "):
        pack_source(str(tmp_path / "a.csv"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_are_shrunk_when_asked(folder, tmp_path):
    packed = pack_source(str(folder), tmp_path / "a", cache_size=10, quality=80)
    assert packed.images == {"train": 27, "test": 9}
    data = read_source(tmp_path / "a")
    for place in (0, 5):
        with Image.open(io.BytesIO(data.train.images.source(place))) as image:
            assert (image.format, min(image.size)) == ("JPEG", 10)
    shrunk = read_source(folder).train.images.read(5)
    assert shrunk.shape[1] > data.train.images.read(5).shape[1]


def test_files_that_cannot_be_read_are_named(folder, tmp_path, monkeypatch, capsys):
    missing = (
        "path,label\n" + "".join(f"test/{kind}/0.v1 é.jpg,{kind}\n" for kind in KINDS) + "gone.png,cat\n"
    )
    (folder / "b.csv").write_text(missing, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["visus", "pack", str(folder / "b.csv"), str(tmp_path / "a"), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert ended.value.code == 1
    assert document["images"] == {"train": 3}
    assert document["skipped"] == [{"path": "gone.png", "reason": "No such file or directory"}]
    assert "skipped gone.png: No such file or directory" in told.err
    assert len(read_source(tmp_path / "a").train) == 3
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "is complete already" in capsys.readouterr().err
