"""`batches` in Python: decodes at its first pass, and keeps what it decoded as `open_source` was told."""

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visus
import visus.data
from visus.data.batching import TrainingBatches
from visus.data.cache import list_caches
from visus.data.counts import PixelCounts
from visus.data.decoder import Decoder
from visus.data.keeping import decode_once
from visus.errors import UsageError
from visus.processes import Processes


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for number in range(14):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (70 + number, 90, 3), np.uint8)).save(path)
    return tmp_path / "set"


@pytest.fixture
def asked(monkeypatch):
    """Of which files pixels were asked for in a child."""
    names, decode = [], Decoder.decode_all
    monkeypatch.setattr(
        Decoder, "decode_all", lambda self, sources: names.extend(sources) or decode(self, sources)
    )
    return names


def pixels(data, **options):
    options = {"batch_size": 4, "img_size": 32, "augment": "standard", "seed": 1, **options}
    return list(visus.data.batches(data.train, **options))


def test_the_first_pass_fills_the_cache_and_others_do_not_decode(folder, asked):
    data = visus.open_source(folder, val_fraction=0.2, workers=2)
    assert not asked
    first = pixels(data)
    assert len(asked) == len(data.train) == 12
    (kept,) = list_caches()
    assert (kept.images, kept.settings["resize"]) == (12, round(32 * 256 / 224))
    again = pixels(data)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.images, other.images)
    assert not torch.equal(pixels(data, epoch=1)[0].images, first[0].images)
    assert torch.equal(pixels(data, start_step=2)[0].images, first[2].images)
    # Nor does another process, or what was opened anew.
    pixels(visus.open_source(folder, val_fraction=0.2))
    assert len(asked) == 12


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("cache", ["auto", "ram", "disk", "off"])
def test_pixels_are_those_of_a_run(folder, cache, workers):
    data = visus.open_source(folder, val_fraction=0.2, cache=cache, workers=workers)
    once = decode_once(visus.open_source(folder, val_fraction=0.2), resize=37, memory_bytes=10**9)
    record = visus.measure_preprocessing(once.train, (32, 32), 37)
    expected = TrainingBatches(once.train, record, 4, "standard", 1)(0)
    for one, other in zip(pixels(data), expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.indices, other.indices)
    assert len(list_caches()) == (cache in ("auto", "disk"))


def test_what_is_no_image_is_left_out_with_a_warning_and_positions_stay(folder, monkeypatch):
    data = visus.open_source(folder, val_fraction=0)
    monkeypatch.setattr("visus.data.keeping._MAX_BAD", 0.1)
    (folder / "a" / "04.png").write_bytes(b"none")
    with pytest.warns(UserWarning, match=r"1 files .* left out, the first a/04\.png: "):
        batches = pixels(data)
    seen = torch.cat([batch.indices for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    assert sorted(seen.tolist()) == [place for place in range(14) if data.train.paths[place] != "a/04.png"]
    assert targets.tolist() == data.train.labels[seen].tolist()
    # The second pass has been told.
    assert len(pixels(data)) == len(batches)


def test_a_part_that_loses_a_class_is_passed_through_with_a_warning(folder, monkeypatch):
    monkeypatch.setattr("visus.data.keeping._MAX_BAD", 0.6)
    data = visus.open_source(folder, val_fraction=0.2)
    (lost,) = [path for path in data.val.paths if path.startswith("a/")]
    (folder / lost).write_bytes(b"none")
    with pytest.warns(UserWarning, match="1 files are no images"):
        (batch,) = visus.data.batches(data.val, batch_size=len(data.val) - 1, img_size=32)
    assert len(batch) == len(data.val) - 1


def test_too_many_that_are_no_images_stop_it(folder):
    data = visus.open_source(folder, val_fraction=0)
    (folder / "a" / "04.png").write_bytes(b"none")
    with pytest.raises(visus.errors.DataError, match="1 of 14 files"):
        pixels(data)


def test_images_of_several_sizes_need_one_to_be_said(folder):
    with pytest.raises(UsageError, match="several"):
        pixels(visus.open_source(folder), img_size=None)
    assert not list_caches()


@pytest.mark.parametrize("wrong", [{"cache": "tape"}, {"workers": -1}])
def test_wrong_ways_of_keeping_are_refused(folder, wrong):
    with pytest.raises(UsageError, match="expected"):
        visus.open_source(folder, **wrong)


def test_a_script_ends_although_it_left_batches_unread(folder):
    code = (
        "import sys, visus\n"
        "data = visus.open_source(sys.argv[1], cache='off', workers=2)\n"
        "batches = visus.data.batches(data.train, batch_size=2, img_size=32)\n"
        "next(batches)\n"
        "raise KeyboardInterrupt"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


class Thread(Processes):
    """One of several threads that take the parts of processes."""

    def from_each(self, value):
        barrier, said = self.patient
        said[self.rank] = value
        barrier.wait(60)
        found = list(said)
        barrier.wait(60)
        return found


def in_processes(size, work):
    shared = threading.Barrier(size), [None] * size
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, [Thread(rank, size, patient=shared) for rank in range(size)]))


def look(folder, processes, memory_bytes=0, cache="off"):
    """What is skipped, mean and deviation, and how far along it was said to be."""
    counts, said = PixelCounts(3, (32, 32)), []
    data = decode_once(
        visus.open_source(folder, val_fraction=0.2),
        resize=37,
        memory_bytes=memory_bytes,
        cache=cache,
        max_bad=0.5,
        counts=counts,
        progress=lambda done, total: said.append((done, total)),
        processes=processes,
    )
    return (sorted(data.skipped, key=str), counts.images, counts.mean_and_std()), said[-1]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_of_several_processes_that_keep_nothing_each_looks_at_its_share(folder, asked, size):
    for bad in ("a/02.png", "b/11.png"):
        (folder / bad).write_bytes(b"none")
    (expected, said), *_ = in_processes(1, lambda alone: look(folder, alone))
    assert (len(expected[0]), said) == (2, (14, 14))
    asked.clear()
    looks = in_processes(size, lambda one: look(folder, one))
    assert [found for found, _ in looks] == [expected] * size
    # Those of the first process are shown.
    assert looks[0][1] == (14, 14)
    assert sorted(Path(each).name for each in asked) == [f"{number:02}.png" for number in range(14)]


def test_a_process_that_can_keep_nothing_looks_at_all_where_another_keeps(folder, asked):
    (folder / "a" / "02.png").write_bytes(b"none")
    found = in_processes(2, lambda one: look(folder, one, memory_bytes=10**9 * one.rank, cache="ram"))
    assert set(Counter(asked).values()) <= {2, 3}
    assert len(set(asked)) == 14
    assert found == [look(folder, Processes())] * 2
