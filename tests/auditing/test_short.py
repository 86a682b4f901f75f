import csv
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visus.auditing import short
from visus.auditing.scanning import pixel_digest
from visus.auditing.short import short_audit
from visus.config import make_config
from visus.data.arrays import array_split
from visus.data.images import Data
from visus.data.keeping import decode_once
from visus.data.sources import open_source
from visus.display import Display
from visus.errors import DataError, UsageError
from visus.training import resume, train


@pytest.fixture
def arrays(tmp_path):
    """60 images of each of two classes, of which image 7 is there again as image 100, under the other label."""
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    labels = np.arange(120) % 2
    images[100] = images[7]
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    return tmp_path / "set.npz"


def test_copies_are_found_across_the_parts_of_arrays(arrays):
    data = open_source(arrays, val_fraction=0.5)
    found = short_audit(data)
    (copy,) = [each for each in found.findings if each.kind == "exact_duplicate"]
    assert set(copy.paths) == {"7", "100"}
    assert [each.kind for each in found.findings if each.severity == "high"][-1] == "conflicting_label"
    assert found.images == 120


def twins():
    """Two images of other pixels with one CRC-32: among 100,000 there are some."""
    seen = {}
    for pixels in np.random.default_rng(0).integers(0, 256, (200_000, 4, 4), dtype=np.uint8):
        if (other := seen.setdefault(zlib.crc32(pixels), pixels)) is not pixels:
            return other, pixels
    raise AssertionError


def test_images_of_one_checksum_are_copies_only_if_their_pixels_are_the_same(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (80, 4, 4), dtype=np.uint8)
    images[[3, 20]] = twins()
    images[[41, 60]] = images[[20, 7]]
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(80) // 40)
    found = short_audit(open_source(tmp_path / "set.npz", val_fraction=0))
    copies = [each.paths for each in found.findings if each.kind == "exact_duplicate"]
    assert sorted(copies) == [("20", "41"), ("7", "60")]


@pytest.fixture
def folder(tmp_path):
    """25 images of each of two classes, of which one is there a second time under another name."""
    for number in range(50):
        pixels = np.random.default_rng(number % 49).integers(0, 256, (40, 50 + number % 7, 3), dtype=np.uint8)
        path = tmp_path / "folder" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "folder"


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_copies_among_kept_images_are_found_and_only_these_are_read(folder, cache, monkeypatch):
    data = decode_once(open_source(folder), resize=32, memory_bytes=10**9, cache=cache)
    read = []
    monkeypatch.setattr(short, "pixel_digest", lambda pixels: read.append(pixels) or pixel_digest(pixels))
    (copy,) = [each for each in short_audit(data).findings if each.kind == "exact_duplicate"]
    assert set(copy.paths) == {"a/00.png", "b/49.png"}
    assert len(read) == 2
    decoded = data.train.images.decoded
    in_memory = [np.ascontiguousarray(each.transpose(1, 2, 0)) for each in decoded]
    assert decoded.checksums().tolist() == [zlib.crc32(each) for each in in_memory]


def test_where_images_are_not_kept_a_note_says_that_copies_were_not_looked_for(folder):
    found = short_audit(decode_once(open_source(folder), resize=32, memory_bytes=10**9, cache="off"))
    assert found.notes == (
        "copies were not looked for, as the decoded images are not kept; visus audit does",
    )
    assert not [each for each in found.findings if each.kind == "exact_duplicate"]


def test_an_index_that_several_parts_have_is_called_with_its_part():
    part = open_source("digits", val_fraction=0).train.subset(np.arange(40))
    data = Data("twice", part.classes, train=part, test=part)
    found = short_audit(data)
    leaks = [each for each in found.findings if each.kind == "leakage"]
    assert len(leaks) == 40
    assert all(sorted(name.split("/")[0] for name in each.paths) == ["test", "train"] for each in leaks)
    assert all(each.drop == (each.paths[0],) and each.drop[0].startswith("train/") for each in leaks)


def test_it_is_quick_for_sixty_thousand_small_images():
    import time

    import torch

    from visus.data.images import ArrayImages, Split

    pixels = torch.randint(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8)
    labels = np.arange(60_000) % 10
    part = Split(
        "train", ArrayImages(pixels), labels, tuple(map(str, range(10))), list(map(str, range(60_000)))
    )
    began = time.process_time()
    assert not short_audit(Data("many", part.classes, train=part)).findings
    assert time.process_time() - began < 3


def settings(arrays, tmp_path, **others):
    return make_config(
        data=str(arrays), model="small", epochs=1, batch_size=20, out=str(tmp_path / "runs"), **others
    )


def test_training_says_what_is_wrong_and_keeps_it(arrays, tmp_path, capsys):
    run = train(settings(arrays, tmp_path), display=Display(sys.stderr))
    assert f"audit: every finding: {Path(run.run, 'audit.json')}" in capsys.readouterr().err.splitlines()
    document = json.loads((tmp_path / "runs/set-small/audit.json").read_text())
    assert run.findings == len(document["findings"]) == 2
    assert resume(run.run).findings == 2


def test_an_excluded_image_is_gone_and_no_other_moves(arrays, tmp_path):
    def parts(run):
        with Path(run.run, "split.csv").open() as file:
            return {row["path"]: row["split"] for row in csv.DictReader(file)}

    (tmp_path / "list.csv").write_text("path,kind,reason\n7,exact_duplicate,\n100,exact_duplicate,\nnone,,\n")
    whole, less = (
        train(settings(arrays, tmp_path, **e)) for e in ({}, {"exclude": str(tmp_path / "list.csv")})
    )
    assert parts(less) == {path: part for path, part in parts(whole).items() if path not in ("7", "100")}
    assert less.findings == 0
    assert resume(less.run).digest == less.digest
    (tmp_path / "list.csv").write_text("path\n7\n")
    with pytest.raises(DataError, match=r"the data has changed.*1 new \(100\)"):
        resume(less.run, epochs=2)
    (tmp_path / "list.csv").unlink()
    with pytest.raises(UsageError, match=r"--exclude .*cannot be read"):
        resume(less.run, epochs=2)


def test_digests_and_checksums_do_not_depend_on_how_pixels_lie_in_memory(folder):
    data = decode_once(open_source(folder), resize=32, memory_bytes=10**9, cache="ram")
    images = data.train.images
    sizes = {pixels.shape for pixels in images.decoded}
    alike = [pixels for pixels in images.decoded if pixels.shape == min(sizes)]
    array = np.ascontiguousarray(np.stack(alike))
    assert [pixel_digest(each) for each in array] == [pixel_digest(each) for each in alike]
    split = array_split("train", array.transpose(0, 2, 3, 1), np.zeros(len(array), np.int64), None, "x")
    checksums = [
        number
        for number, pixels in zip(images.decoded.checksums(), images.decoded, strict=True)
        if pixels.shape == min(sizes)
    ]
    assert short._checksums(split).tolist() == [int(each) for each in checksums]
