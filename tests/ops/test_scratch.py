import os
from pathlib import Path

import numpy as np
import pytest

from visus.errors import UsageError
from visus.ops import scratch
from visus.ops.scratch import scratch_array


def test_small_arrays_are_in_memory():
    array = scratch_array((3, 4), np.float32)
    assert not isinstance(array, np.memmap)
    np.testing.assert_array_equal(array, np.zeros((3, 4)))
    assert array.dtype == np.float32


def test_large_ones_lie_in_a_file_that_nobody_sees(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(scratch, "_IN_MEMORY_BYTES", 100)
    array = scratch_array((1000, 7), np.uint8)
    assert isinstance(array, np.memmap)
    assert not array.any()
    array[999] = 5
    assert array.sum() == 35
    # Nothing is left behind by a process that is killed.
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_the_file_goes_with_the_array(monkeypatch):
    monkeypatch.setattr(scratch, "_IN_MEMORY_BYTES", 100)
    before = len(os.listdir("/proc/self/fd"))
    array = scratch_array((1000,), np.uint8)
    del array
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_full_disk_is_said_and_no_signal(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch, "_IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsageError, match="No space left"):
        scratch_array((1000,), np.uint8)
