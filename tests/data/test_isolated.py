"""All of a set, in order, from child processes."""

import os
from contextlib import closing

import numpy as np
import pytest
from misbehaving_children import misbehaving
from PIL import Image

from visus.data.decode import DecodeSettings, UndecodableError, decode_image
from visus.data.decoder import Decoder, _start
from visus.data.isolated import decode_in_order


@pytest.fixture
def child(tmp_path, monkeypatch):
    return misbehaving(tmp_path, monkeypatch)


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order_for_any_number_of_processes(child, processes):
    paths = [child(f"{'deadly' if number % 40 == 3 else ''}{number}") for number in range(110)]
    results = decode_in_order(len(paths), paths.__getitem__, DecodeSettings(resize=10), processes)
    died = [place for place, result in enumerate(results) if isinstance(result, UndecodableError)]
    assert died == [3, 43, 83]


def test_a_source_that_cannot_be_read_is_a_reason():
    def read(position):
        raise UndecodableError(f"damaged {position}")

    assert [str(each) for each in decode_in_order(3, read, DecodeSettings())] == [
        f"damaged {position}" for position in range(3)
    ]


def test_stopping_early_leaves_no_process(child, monkeypatch):
    started = []
    start = _start
    monkeypatch.setattr(
        "visus.data.decoder._start", lambda *given: started.append(start(*given)) or started[-1]
    )
    path = child("a")
    with closing(decode_in_order(500, lambda _: path, DecodeSettings(), 2)) as results:
        next(results)
    assert started
    assert all(process.poll() is not None for process in started)


def test_as_many_are_asked_for_together_as_find_room(tmp_path, monkeypatch):
    sides = [100, 150, 100, 900, 1500, 100, 900, 100]
    paths = []
    for number, side in enumerate(sides):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.bmp")
        paths.append(str(tmp_path / f"{number}.bmp"))
    together = []
    decode_all = Decoder.decode_all
    monkeypatch.setattr(
        Decoder, "decode_all", lambda self, some: together.append(len(some)) or decode_all(self, some)
    )
    monkeypatch.setattr("visus.data.decoder._SHARED_BYTES", 3 * 10**6)
    settings = DecodeSettings(resize=10)
    found = list(decode_in_order(60, lambda position: paths[position % 8], settings, 1))
    for position, result in enumerate(found):
        np.testing.assert_array_equal(result, decode_image(paths[position % 8], resize=10))
    if hasattr(os, "memfd_create"):
        assert together[0] == 1
        assert max(together) == 8
    assert together[-1] == 1
