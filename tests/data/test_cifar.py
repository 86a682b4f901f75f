"""Files in the very formats of CIFAR, written byte by byte; the pickles as Python 2 wrote them."""

import io
import os
import pickle
import random
import tarfile
import warnings

import numpy as np
import pytest

from visus.data.pickles import load_plain_pickle
from visus.data.sources import open_source
from visus.errors import DataError

RANDOM = np.random.default_rng(0)
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HUNDRED = [f"class_{number:02}" for number in range(100)]
BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
FOLDERS = ["cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python"]
ARCHIVES = ["cifar-10-binary", "cifar-100-binary", "cifar-10-python", "cifar-100-python"]


def some_images(n, classes):
    """Pixels `[n, 3, 32, 32]`, labels that reach every class, and coarse labels."""
    return RANDOM.integers(0, 256, (n, 3, 32, 32), np.uint8), np.arange(n) % classes, np.arange(n) % 20


def number(value):
    return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")


def text(value):
    return (
        b"U" + bytes([len(value)]) + value
        if len(value) < 256
        else b"T" + len(value).to_bytes(4, "little") + value
    )


def array(rows):
    """What Python 2's cPickle writes of a C-ordered uint8 array `[N, 3072]`."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\t(K\x01"
        + number(len(rows))
        + number(rows.shape[1])
        + b"\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + text(rows.tobytes())
        + b"tb"
    )  # fmt: skip


def listed(items):
    return b"]q\x05(" + b"".join(items) + b"e"


def pickled(**entries):
    body = b"".join(text(key.encode()) + value for key, value in entries.items())
    return b"\x80\x02}q\x01(" + body + b"u."


def binary_10(folder, parts):
    for name, (pixels, labels, _) in parts.items():
        records = [bytes([label]) + image.tobytes() for image, label in zip(pixels, labels, strict=True)]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    (folder / "batches.meta.txt").write_text("\n".join([*TEN, "", ""]))


def binary_100(folder, parts):
    for name, (pixels, labels, coarse) in parts.items():
        records = [
            bytes([c, label]) + image.tobytes()
            for image, label, c in zip(pixels, labels, coarse, strict=True)
        ]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    (folder / "fine_label_names.txt").write_text("\n".join([*HUNDRED, ""]))
    (folder / "coarse_label_names.txt").write_text("fish\n")


def python(folder, parts, key, meta, names):
    for name, (pixels, labels, _) in parts.items():
        entries = {"batch_label": text(name.encode()), key: listed(map(number, labels.tolist()))}
        if key == "fine_labels":
            entries["coarse_labels"] = listed(map(number, labels.tolist()))
        entries["data"] = array(pixels.reshape(len(pixels), -1))
        entries["filenames"] = listed(text(f"{place}.png".encode()) for place in range(len(pixels)))
        (folder / name).write_bytes(pickled(**entries))
    key = "label_names" if len(names) == 10 else "fine_label_names"
    (folder / meta).write_bytes(
        pickled(num_vis=number(3072), **{key: listed(text(n.encode()) for n in names)})
    )


def write(root, which):
    """A set in the folder that its archive unpacks to; also its training and test images."""
    folder = root / FOLDERS[which]
    folder.mkdir()
    ten = which in (0, 2)
    names = [*BATCHES, "test_batch"] if ten else ["train", "test"]
    parts = {name: some_images(11, 10) if ten else some_images(105, 100) for name in names}
    if which == 0:
        binary_10(folder, parts)
    elif which == 1:
        binary_100(folder, parts)
    elif which == 2:
        python(folder, parts, "labels", "batches.meta", TEN)
    else:
        python(folder, parts, "fine_labels", "meta", HUNDRED)
    train = [parts[name] for name in names[:-1]]
    return folder, [np.concatenate(each) for each in zip(*train, strict=True)], parts[names[-1]]


def same(part, expected):
    pixels, labels, _ = expected
    return (part.images.pixels.numpy() == pixels).all() and part.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("which", range(4))
def test_every_version_gives_the_images_that_were_written(tmp_path, which):
    folder, train, test = write(tmp_path, which)
    packed = tmp_path / f"{ARCHIVES[which]}.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, folder.name)
    for source in (folder, tmp_path, packed):
        data = open_source(source, val_fraction=0)
        assert data.classes == tuple(TEN if which in (0, 2) else HUNDRED)
        assert same(data.train, train)
        assert same(data.test, test)
        assert data.notes[0].startswith(
            f"CIFAR-{len(data.classes)} ({'binary' if which < 2 else 'python'} version)"
        )


def test_the_pickles_written_here_are_what_python_reads(tmp_path):
    folder, _, (pixels, labels, _) = write(tmp_path, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = pickle.loads((folder / "test_batch").read_bytes(), encoding="latin1")
    np.testing.assert_array_equal(batch["data"], pixels.reshape(len(pixels), -1))
    assert (batch["labels"], batch["filenames"][3]) == (labels.tolist(), "3.png")


@pytest.mark.parametrize("which", range(4))
def test_files_that_are_missing_are_named(tmp_path, which):
    folder, _, _ = write(tmp_path, which)
    missing = ["data_batch_3.bin", "test.bin", "batches.meta", "test"][which]
    (folder / missing).unlink()
    with pytest.raises(DataError, match=f"found no {missing}$"):
        open_source(tmp_path)


def test_two_sets_in_one_folder_are_not_chosen_between(tmp_path):
    write(tmp_path, 0)
    write(tmp_path, 3)
    with pytest.raises(
        DataError, match=r"found CIFAR-10 \(binary version\) and CIFAR-100 \(python version\)"
    ):
        open_source(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 3072, 3074, 11 * 3073 - 1])
def test_records_that_are_cut_are_named(tmp_path, length):
    folder, _, _ = write(tmp_path, 0)
    (folder / "data_batch_2.bin").write_bytes(bytes(length))
    with pytest.raises(
        DataError, match=rf"data_batch_2.bin: expected records of 3073 bytes, found {length} bytes"
    ):
        open_source(folder)


def test_labels_beyond_the_names_are_refused(tmp_path):
    folder, _, _ = write(tmp_path, 0)
    (folder / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(DataError, match="labels from 0 to 9, found 10"):
        open_source(folder)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


ROWS = np.zeros((2, 3072), np.uint8)
LABELS = listed([number(0), number(1)])
BAD = {
    "code": (pickle.dumps(Hostile(), 2), r"posix\.mkdir, which was not run"),
    "code within": (pickled(labels=LABELS, data=b"cos\nsystem\nU\x02idR"), r"os\.system, which was not run"),
    "code beside": (pickled(labels=LABELS, data=array(ROWS), x=b"cbuiltins\neval\nU\x011\x85R"), r"builtins\.eval"),
    "object": (b"\x80\x02(U\x02idios\nsystem\n.", "the operation INST"),
    "new": (pickle.dumps(Hostile, 4), "the operation"),
    "memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "exhaust memory"),
    "nested": (b"\x80\x02K\x01" + b"\x85" * 100_000 + b".", "exhaust memory"),
    "cut": (pickled(labels=LABELS, data=array(ROWS))[:900], "plain values"),
    "empty": (b"", "plain values"),
    "list": (b"\x80\x02" + LABELS + b".", r"expected data, uint8 \[N, 3072\], and labels"),
    "no labels": (pickled(data=array(ROWS)), "and labels"),
    "text labels": (pickled(data=array(ROWS), labels=listed([text(b"a")])), "and labels"),
    "narrow": (pickled(data=array(ROWS[:, :3071]), labels=LABELS), "expected data"),
    "short": (pickled(data=array(ROWS).replace(b"\x02M\x00\x0c", b"\x03M\x00\x0c"), labels=LABELS), "expected data"),
    "other type": (pickled(data=array(ROWS).replace(b"u1", b"O8"), labels=LABELS), "expected data"),
    "fewer labels": (pickled(data=array(ROWS), labels=listed([number(0)])), "expected 46 labels"),
    "state of a name": (pickled(data=b"cnumpy\nndarray\n}b", labels=LABELS), "expected data"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_pickle_of_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    folder, _, _ = write(tmp_path, 2)
    content, sentence = BAD[case]
    (folder / "data_batch_4").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        open_source(folder)
    assert not (tmp_path / "ran").exists()


def test_damaged_pickles_give_values_or_a_sentence():
    whole = pickled(labels=LABELS, data=array(ROWS[:, :40]), filenames=listed([text(b"a.png")] * 2))
    chance = random.Random(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(whole[: chance.randint(1, len(whole))] if chance.random() < 0.2 else whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            load_plain_pickle(bytes(damaged), "x")
        except DataError:
            refused += 1
    assert 1000 < refused < 3000


def test_an_archive_that_is_damaged_or_of_something_else_is_named(tmp_path):
    folder, _, _ = write(tmp_path, 0)
    packed = tmp_path / "cifar.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, folder.name)
    whole = packed.read_bytes()
    for damaged in (b"", b"x", whole[:5000], whole[:20_000] + bytes(100) + whole[20_100:]):
        packed.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cifar\.tar\.gz: cannot be read as \.tar\.gz"):
            open_source(packed)
    with tarfile.open(packed, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("notes.txt"), io.BytesIO())
    with pytest.raises(DataError, match="found a compressed one; unpack it"):
        open_source(packed)


def test_links_and_monstrous_files_in_an_archive_are_not_followed(tmp_path):
    packed = tmp_path / "cifar.tar.gz"
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3073))
    with tarfile.open(packed, "w:gz") as archive:
        for name in [*(f"{batch}.bin" for batch in BATCHES), "test_batch.bin"]:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(secret)
            archive.addfile(link)
    with pytest.raises(DataError, match="found a compressed one; unpack it"):
        open_source(packed)
