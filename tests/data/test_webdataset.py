"""Shards are read as the WebDataset library reads them; what is wrong with one is said, and the rest is used."""

import gc
import gzip
import io
import json
import os
import pickle
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from PIL import Image

from visus.data import webdataset as webdataset_module
from visus.data.addresses import Place
from visus.data.decode import UndecodableError
from visus.data.keeping import decode_once
from visus.data.sources import open_source, read_source
from visus.errors import DataError


def png(number):
    content = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def write(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(numbers, label=lambda number: [("cls", b"%d" % (number % 3))]):
    return [
        (f"{number:04}.{suffix}", content)
        for number in numbers
        for suffix, content in (("png", png(number)), *label(number))
    ]


@pytest.fixture
def shards(tmp_path):
    for number in range(3):
        write(tmp_path / f"train-{number:06}.tar", samples(range(5 * number, 5 * number + 5)))
    write(tmp_path / "val-000000.tar", samples(range(15, 21)))
    return tmp_path


def files(part):
    return [part.images.source(place) for place in range(len(part))]


def test_shards_are_listed_without_an_object_for_each_image(tmp_path):
    """150 bytes an image at the most, besides a block of names, when they are read and when what was found is recalled."""
    count, names = 20_000, [f"n{number % 97}/n{number % 97}_{number:07}" for number in range(20_000)]
    for shard in range(20):
        some = names[1000 * shard : 1000 * (shard + 1)]
        samples = [each for name in some for each in ((f"{name}.jpg", b"x"), (f"{name}.cls", b"7"))]
        write(tmp_path / f"{shard}.tar", [*samples, ("other.jpg", b"x"), ("other.cls", b"8")])
    # What is imported on the way is none of it.
    read_source(tmp_path / "0.tar")
    gc.collect()
    for spare in (2_000_000, 1_000_000):
        tracemalloc.start()
        try:
            assert len(read_source(tmp_path).train) == count + 20
            assert tracemalloc.get_traced_memory()[1] < 150 * count + spare
        finally:
            tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_they_are_what_webdataset_reads(shards):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(shards / "train-000003.tar")) as writer:
        for number in range(40, 46):
            writer.write(
                {"__key__": f"a/b{number}", "PNG": png(number), "cls": number % 3, "seg.png": png(1)}
            )
            writer.write({"__key__": f"text{number}", "txt": "no image", "bin": b"1"})
    data = read_source(shards)
    urls = sorted(str(path) for path in shards.glob("train-*.tar"))
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    theirs = [each for each in read if "png" in each]
    assert len(read) == 27
    assert files(data.train) == [each["png"] for each in theirs]
    assert data.train.labels.tolist() == [int(each["cls"]) for each in theirs]
    assert (len(data.val), data.classes) == (6, ("0", "1", "2"))
    # It leaves files open.
    gc.collect()


@pytest.mark.parametrize(
    ("label", "classes", "labels"),
    [
        (lambda n: [("cls", b"%d\n" % (n % 11 + 1))], tuple(map(str, range(1, 12))), lambda n: n % 11),
        (lambda n: [("CLS", b"dog" if n % 2 else b"cat")], ("cat", "dog"), lambda n: n % 2),
        (lambda n: [("txt", b"dog" if n % 2 else b"cat")], ("cat", "dog"), lambda n: n % 2),
        (lambda n: [("json", b"%d" % (n % 2))], ("0", "1"), lambda n: n % 2),
        (lambda n: [("json", json.dumps({"label": str(n % 12)}).encode()), ("cls", b"7")],
         tuple(sorted(map(str, range(12)))), lambda n: sorted(map(str, range(12))).index(str(n % 12))),
        (lambda n: [("json", b'{"cls": %d, "site": "x"}' % (n % 2)), ("txt", b"A picture")], ("0", "1"), lambda n: n % 2),
    ],
)  # fmt: skip
def test_what_labels_look_like(tmp_path, label, classes, labels):
    data = read_source(write(tmp_path / "a.tar", samples(range(30), label)))
    assert data.classes == classes
    assert data.train.labels.tolist() == [labels(number) for number in range(30)]
    assert data.skipped == ()


def test_names_with_numbers_beside_them_are_in_that_order(tmp_path):
    def label(n):
        return [("json", json.dumps({"label": "abc"[n % 3]}).encode()), ("cls", b"%d" % [4, 7, 2][n % 3])]

    data = read_source(write(tmp_path / "a.tar", samples(range(9), label)))
    assert data.classes == ("c", "a", "b")
    assert data.train.labels.tolist() == [1, 2, 0] * 3


def test_json_says_more(tmp_path):
    def label(n, group=lambda n: f"p{n % 6}"):
        part = ["train", "valid"][n % 3 == 0]
        fields = {"label": "ab"[n // 6], "split": part, "group": group(n), "age": n, "caption": "x" * 101}
        return [("json", json.dumps(fields).encode())]

    data = read_source(write(tmp_path / "a.tar", samples(range(12), label)))
    assert (len(data.train), len(data.val)) == (8, 4)
    assert data.train.columns["age"].tolist() == [str(n) for n in range(12) if n % 3]
    assert data.val.columns["group"].tolist() == ["p0", "p3", "p0", "p3"]
    assert "caption" not in data.train.columns
    write(tmp_path / "a.tar", samples(range(12), lambda n: label(n, lambda n: f"p{n // 6}")))
    with pytest.raises(DataError, match=r"expected each group in one part, found p0 in train and in val"):
        open_source(tmp_path / "a.tar")


def test_parts_by_folder_or_by_a_word_of_the_name(tmp_path):
    for name in (
        "a/train/0.tar",
        "a/Validation/0.tar",
        "b/imagenet1k-train-00.tar",
        "b/imagenet1k-validation-00.tar",
    ):
        write(tmp_path / name, samples(range(6)))
    for folder in ("a", "b"):
        data = read_source(tmp_path / folder)
        assert (len(data.train), len(data.val), data.test) == (6, 6, None)
    write(tmp_path / "b/extra.tar", samples(range(6)))
    with pytest.raises(
        DataError, match=r"every file to say its part, as others do, found extra.tar; rename it"
    ):
        read_source(tmp_path / "b")


def test_the_same_keys_in_several_shards_are_several_images(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.tar", samples(range(3)))
    data = read_source(tmp_path)
    assert len(set(data.train.paths)) == len(data.train) == 6


@pytest.mark.parametrize("where", ["memory://web", "memory://web/train-{000000..000002}.tar"])
def test_shards_at_an_address(shards, where):
    fsspec.filesystem("memory").put(f"{shards}/", "/web", recursive=True)
    data, local = read_source(where), read_source(shards)
    assert files(data.train) == files(local.train)
    assert data.train.images.identity == where
    fsspec.filesystem("memory").rm("/web", recursive=True)


def test_a_pattern_and_a_single_shard(shards):
    pattern = read_source(f"{shards}/train-{{000000..000001}}.tar")
    assert pattern.notes[0] == "2 shards: 3 classes, images: 10 in train"
    assert files(pattern.train) == files(read_source(shards).train)[:10]
    assert read_source(shards / "val-000000.tar").notes[0].startswith("1 shard: ")
    with pytest.raises(DataError, match=r"train-000003.tar: expected a file, found none there"):
        read_source(f"{shards}/train-{{000000..000003}}.tar")
    for same in ("train-00000[01].tar", "train-*[01].tar", "train-00000?.tar"):
        found = read_source(f"{shards}/{same}")
        assert files(found.train) == files(read_source(shards).train)[: len(found.train)]
        assert len(found.train) == (15 if "?" in same else 10)
    with pytest.raises(DataError, match=r"tes\*.tar: expected shards, found none of that pattern"):
        read_source(f"{shards}/tes*.tar")


def test_a_damaged_shard_is_named_and_the_rest_is_used(shards):
    path = shards / "train-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:4000])
    data = open_source(shards)
    assert len(data.train) == 12
    assert [(each.path, each.reason) for each in data.skipped] == [
        (
            "train-000001.tar",
            "cut off; what is whole before that is used; copy it again",
        )
    ]
    path.write_bytes(b"")
    assert open_source(shards).skipped[0].reason.startswith("empty; ")


def test_odd_samples_are_named(tmp_path):
    odd = [
        ("two.png", png(1)), ("two.jpg", png(2)), ("two.cls", b"1"),
        ("none.png", png(3)),
        ("bad.png", png(4)), ("bad.json", b"{"),
        ("split.png", png(5)), ("split.json", b'{"label": 1, "split": "trian"}'),
        ("torn.png", png(6)), ("torn.json", b'{"label": 1, "site": "\\ud800"}'),
        ("zero.png", png(7)), ("zero.json", b'{"label": 1, "site": "a\\u0000b"}'),
        ("readme", b""), ("__meta__.json", b"{}"), ("caption.txt", b"of nothing"),
    ]  # fmt: skip
    data = read_source(write(tmp_path / "a.tar", [*samples(range(6)), *odd]))
    assert len(data.train) == 6
    reasons = {each.path.removeprefix("a.tar/"): each.reason for each in data.skipped}
    for name in ("bad.png", "torn.png"):
        assert reasons.pop(name).startswith("its label cannot be read: ")
    assert reasons == {
        "two": "2 images of one key",
        "none.png": "no label beside it",
        "split.png": "its label cannot be read: expected train, val or test as split, found trian",
        "zero.png": "its label cannot be read: expected text, found a byte of zero in it",
    }
    assert "4 other files passed over" in data.notes


def test_compressed_shards_are_refused(tmp_path):
    plain = write(tmp_path / "plain.tar", samples(range(3))).read_bytes()
    for name in ("a.tar.gz", "b.tar"):
        (tmp_path / "c" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "c" / name).write_bytes(gzip.compress(plain))
    with pytest.raises(
        DataError, match=r"c/b.tar: expected a plain .tar, .* found one compressed with gzip; unpack it"
    ):
        read_source(tmp_path / "c")
    with pytest.raises(DataError, match=r"expected a plain .tar, .* found a compressed one"):
        read_source(tmp_path / "c" / "a.tar.gz")
    (tmp_path / "c" / "b.tar").unlink()
    with pytest.raises(DataError, match=r"found compressed ones \(a.tar.gz\); unpack each"):
        read_source(tmp_path / "c")


def test_class_folders_in_a_tar(tmp_path):
    names = [f"./pets/{kind}/{number}.png" for kind in ("cat", "dog") for number in range(4)]
    data = read_source(write(tmp_path / "a.tar", [(name, png(place)) for place, name in enumerate(names)]))
    assert data.notes[0] == "class folders in a tar: 2 classes, images: 8 in train"
    assert list(data.train.paths)[:2] == ["pets/cat/0.png", "pets/cat/1.png"]
    assert files(data.train) == [png(place) for place in range(8)]
    with pytest.raises(DataError, match=r"with a label .* beside each, found 2 images and no label"):
        write(tmp_path / "b" / "0.tar", [("a/1.png", png(1))])
        write(tmp_path / "b" / "1.tar", [("b/1.png", png(1))])
        read_source(tmp_path / "b")
    with pytest.raises(DataError, match="found no images and no label"):
        read_source(write(tmp_path / "none.tar", [("a.txt", b"")]))


def test_in_class_folders_in_a_tar_dots_and_twins_are_nothing_special(tmp_path):
    names = ["cat/v1.5_1.png", "cat/v1.5_2.png", "cat/003.jpg", "cat/003.png", "dog/a. b.png", "dog/c.png"]
    path = write(
        tmp_path / "a.tar", [*((name, png(place)) for place, name in enumerate(names)), ("cat/x.md", b"")]
    )
    data = read_source(path)
    assert sorted(data.train.paths) == sorted(names)
    assert not data.skipped
    assert {bytes(each) for each in files(data.train)} == {png(place) for place in range(6)}
    dotted = write(tmp_path / "b.tar", [(f"{kind}/IMG.{kind}.1.png", png(1)) for kind in "ab"])
    for _ in range(2):
        assert len(read_source(dotted).train) == 2
    cut = tmp_path / "cut.tar"
    cut.write_bytes(path.read_bytes()[:2500])
    assert [each.path for each in read_source(cut).skipped] == ["cut.tar"]


def test_a_shard_that_has_changed_is_noticed(shards):
    images = read_source(shards).train.images
    path = shards / "train-000000.tar"
    images.source(0)
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))
    with pytest.raises(
        DataError, match=r"train-000000.tar: has changed since its images were listed; start again"
    ):
        images.source(0)
    assert images.source(5)
    path.unlink()
    with pytest.raises(DataError, match="found none there"):
        images.source(1)


def test_images_are_read_by_threads_and_by_other_processes(shards):
    images = read_source(shards).train.images
    expected = [images.source(place) for place in range(15)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.source, list(range(15)) * 20)) == expected * 20
    assert pickle.loads(pickle.dumps(images)).source(7) == expected[7]
    assert images.archive.read(images.paths[3], 10**6) == expected[3]
    with pytest.raises(UndecodableError, match="too large"):
        images.archive.read(images.paths[3], 10)


def test_they_decode_and_are_cached(shards, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    said = []
    for _ in range(2):
        data = decode_once(
            read_source(shards), resize=None, memory_bytes=10**9, cache="disk", say=said.append
        )
    assert said[1].endswith("from an earlier run")
    for place, content in enumerate(files(data.train)):
        pixels = np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1)
        np.testing.assert_array_equal(data.train.images.decoded[place], pixels)


def test_the_memory_of_an_index_is_a_few_bytes_for_each_image(shards):
    archive = read_source(shards).train.images.archive
    arrays = [each for each in vars(archive).values() if isinstance(each, np.ndarray) and len(each) == 21]
    assert sum(each.itemsize for each in arrays) == 24
    assert not any(each.dtype == object for each in arrays)


def test_the_web(shards, web):
    for path in shards.glob("*.tar"):
        web.files[f"/set/{path.name}"] = path.read_bytes()
    data = read_source(f"{web.url}/set/train-{{000000..000002}}.tar")
    local = read_source(f"{shards}/train-{{000000..000002}}.tar")
    assert data.train.labels.tolist() == local.train.labels.tolist()
    web.sent.clear()
    assert files(data.train) == files(local.train)
    # The size of each shard is asked for once, without its content.
    assert sorted(web.sent) == sorted(len(each) for each in files(local.train))
    again = pickle.loads(pickle.dumps(data.train.images))
    web.files["/set/train-000000.tar"] = web.files["/set/train-000000.tar"] + bytes(512)
    with pytest.raises(DataError, match=r"train-000000.tar: has changed since its images were listed"):
        again.archive._seen.clear() or again.source(0)


def test_a_server_without_ranges_is_said(shards, web):
    web.refuses = True
    web.files["/set/train-000000.tar"] = (shards / "train-000000.tar").read_bytes()
    with pytest.raises(DataError, match=r"train-000000.tar: cannot be read: .*; copy the shards to a folder"):
        read_source(f"{web.url}/set/train-000000.tar")
    with pytest.raises(DataError, match="expected a part of it, found a server that sends whole files"):
        Place(f"{web.url}/set").read("train-000000.tar", 512, 10)


def test_a_class_that_is_not_trained_on_is_refused(tmp_path):
    write(tmp_path / "train-0.tar", samples(range(6), lambda n: [("cls", b"%d" % (n % 2))]))
    write(tmp_path / "test-0.tar", samples(range(6)))
    with pytest.raises(DataError, match=r"test differs \(more: 2\)"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"label": ' + b"9" * 5000 + b"}", b"\xff", b'{"label": {}}']
)
def test_labels_made_to_break_something(tmp_path, text):
    odd = [("bad.png", png(1)), ("bad.json", text)]
    data = read_source(write(tmp_path / "a.tar", [*samples(range(3)), *odd]))
    assert len(data.train) == 3
    assert [each.path for each in data.skipped] == ["a.tar/bad.png"]


def test_what_a_pass_has_found_serves_until_a_shard_changes(shards, monkeypatch):
    first = read_source(shards)
    read = []
    read_shard = webdataset_module.read_shard

    def reading(place, name, size):
        read.append(name)
        return read_shard(place, name, size)

    monkeypatch.setattr(webdataset_module, "read_shard", reading)
    again = read_source(shards)
    assert not read
    assert (again.notes, list(again.train.paths)) == (first.notes, list(first.train.paths))
    assert files(again.train) == files(first.train)
    write(shards / "train-000001.tar", samples(range(50, 56)))
    assert len(read_source(shards).train) == 16
    assert len(read) == 4
