"""Decoded images in blocks of memory come out as they went in, and take no more than they may."""

import numpy as np
import pytest

from visus.data.stored import MemoryWriter


def test_memory_is_taken_in_blocks_and_up_to_a_limit(monkeypatch):
    monkeypatch.setattr("visus.data.stored._BLOCK_BYTES", 100)
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (1, height, 9), np.uint8) for height in (1, 5, 6, 20, 2)]
    writer = MemoryWriter(1, sum(each.nbytes for each in pixels))
    for each in pixels:
        writer.add(each)
    with pytest.raises(OverflowError):
        writer.add(np.zeros((1, 1, 1), np.uint8))
    found = writer.finish()
    assert len(found.blocks) > 1
    assert found.nbytes == sum(each.nbytes for each in pixels)
    for one, other in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found.subset(np.array([1, 1])).size == (5, 9)
    assert found.size is None
