import os
from pathlib import Path

import numpy as np
import pytest

from visus.errors import UsageError
from visus.ops import scratch
from visus.ops.scratch import expect_room, scratch_array


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


@pytest.mark.parametrize(("number", "said"), [(28, "found too little"), (30, "cannot be written")])
def test_only_a_full_disk_is_called_full(monkeypatch, number, said):
    def failing(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(scratch, "_IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", failing)
    with pytest.raises(UsageError, match=said):
        scratch_array((1000,), np.uint8)


def test_a_folder_that_cannot_be_written_is_passed_over_unless_it_is_asked_for(monkeypatch, tmp_path):
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(scratch, "_IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(scratch, "_ON_DISK", tmp_path / "none")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert isinstance(scratch_array((1000,), np.uint8), np.memmap)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", list)
    with pytest.raises(UsageError, match="expected a folder that can be written"):
        scratch_array((1000,), np.uint8)
    monkeypatch.setenv("TEMP", str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=r"found none at .*gone"):
        scratch_array((1000,), np.uint8)


def test_room_for_all_is_looked_for_before_one_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    free = scratch.shutil.disk_usage(tmp_path).free
    expect_room(2**26, 2**26)
    expect_room(free // 4, free // 4)
    with pytest.raises(UsageError, match="MB are free"):
        expect_room(free // 2, free // 2, free // 2)
