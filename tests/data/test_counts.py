"""Counts of pixel values: mean and standard deviation follow from them exactly."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from visus.data import batching
from visus.data.batching import measure_preprocessing
from visus.data.cache import remove_caches
from visus.data.counts import PixelCounts
from visus.data.crops import centre_crop
from visus.data.keeping import decode_once
from visus.data.sources import open_source


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_mean_and_standard_deviation_are_those_of_the_middles(seed, channels, height, width):
    random = np.random.default_rng(seed)
    images = [random.integers(0, 256, (channels, *random.integers(1, 20, 2)), np.uint8) for _ in range(4)]
    counts = PixelCounts(channels, (height, width))
    for image in images:
        counts.add(image)
    middles = torch.stack([centre_crop(torch.from_numpy(image), (height, width)) for image in images])
    values = middles.numpy().transpose(1, 0, 2, 3).reshape(channels, -1) / 255
    means, deviations = counts.mean_and_std()
    assert means == pytest.approx(values.mean(axis=1).tolist())
    stds = values.std(axis=1)
    assert deviations == pytest.approx(np.where(stds > 0, stds, 1).tolist())
    at_once = PixelCounts(channels, (height, width))
    at_once.add_all(middles)
    assert (at_once.mean_and_std(), at_once.images) == ((means, deviations), 4)


def test_threads_lose_none():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (400, 3, 16, 16), np.uint8)
    counts, expected = PixelCounts(3, (16, 16)), PixelCounts(3, (16, 16))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(counts.add, images))
    expected.add_all(torch.from_numpy(images))
    assert counts.images == 400
    assert counts.mean_and_std() == expected.mean_and_std()


def test_what_others_have_counted_is_taken_over():
    counts = PixelCounts(1, (2, 2))
    counts.add(np.full((1, 4, 4), 255, np.uint8))
    others = counts.empty()
    assert others.images == 0
    others.add(np.zeros((1, 4, 4), np.uint8))
    counts.take(others)
    assert (counts.images, counts.mean_and_std()) == (2, ((0.5,), (0.5,)))


def stored(tmp_path, random, count=5):
    """Images in a file, as the decode-once cache has them."""
    folder = tmp_path / "images"
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (12, 11 + number, 3), np.uint8)).save(path)
    data = open_source(folder, val_fraction=0)
    return decode_once(data, resize=None, memory_bytes=0, cache="disk").train


@pytest.fixture
def counted(monkeypatch):
    """How often images were read to count."""
    calls, count = [], batching._count
    monkeypatch.setattr(batching, "_count", lambda *given: calls.append(given[0]) or count(*given))
    return calls


def test_what_was_counted_is_kept_for_images_in_a_file(tmp_path, monkeypatch, counted):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    part = stored(tmp_path, np.random.default_rng(0))
    first = measure_preprocessing(part, (8, 8))
    assert len(counted) == 1
    assert measure_preprocessing(part, (8, 8)) == first
    assert len(counted) == 1
    # Another size, other images, and another order of them are something else.
    for other, size in (
        (part, (8, 9)),
        (part.subset(np.arange(4)), (8, 8)),
        (part.subset(np.arange(5)[::-1]), (8, 8)),
    ):
        measure_preprocessing(other, size)
    assert len(counted) == 4
    (folder,) = tmp_path.glob("cache/visus/counts")
    assert len(list(folder.iterdir())) == 4
    remove_caches("all")
    assert not folder.exists()


def test_counts_of_a_damaged_file_are_not_taken(tmp_path):
    counts = PixelCounts(1, (2, 2))
    counts.add(np.arange(4, dtype=np.uint8).reshape(1, 2, 2))
    counts.save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    again = PixelCounts(1, (2, 2))
    again.load(tmp_path / "whole", 1)
    assert (again.mean_and_std(), again.images) == (counts.mean_and_std(), 1)
    damaged = [
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(0, len(whole), 7)
    ]
    for content in (b"", b"PK", whole[:-1], whole[8:], whole + b"\0", *damaged):
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(ValueError):  # noqa: PT011
            PixelCounts(1, (2, 2)).load(tmp_path / "damaged", 1)
    with pytest.raises(ValueError):  # noqa: PT011
        PixelCounts(3, (2, 2)).load(tmp_path / "whole", 1)


def test_a_place_that_cannot_be_written_to_only_costs_time(tmp_path, monkeypatch, counted):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    part = stored(tmp_path, np.random.default_rng(1))
    (tmp_path / "cache" / "visus" / "counts").write_text("no folder")
    assert measure_preprocessing(part, (8, 8)) == measure_preprocessing(part, (8, 8))
    assert len(counted) == 2
