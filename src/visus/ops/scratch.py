"""Arrays that are larger than memory should hold: they lie in a file that has no name, and goes with them."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visus.errors import UsageError

_IN_MEMORY_BYTES = 2**26
_ON_DISK = Path("/var/tmp")
"""Where `/tmp` may be memory, large files belong (Filesystem Hierarchy Standard 3.0, 5.15)."""
_NAMES = ("TMPDIR", "TEMP", "TMP")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = "set TMPDIR to a folder on another disk"


def scratch_array(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros of that shape; beyond 64 MiB in a file, from which the system reads what is wanted.

    `UsageError` where there is no room for it, or no folder that can be written.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if nbytes <= _IN_MEMORY_BYTES:
        return np.zeros(shape, dtype)
    folder = _folder()
    try:
        with tempfile.TemporaryFile(prefix="visus-", dir=folder) as file:
            # Of a file with holes, a full disk would be told by a signal that ends the process.
            _reserve(file.fileno(), nbytes)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room(folder, nbytes, error.strerror) from None
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); {_ELSEWHERE}") from None


def expect_room(*arrays_bytes: int) -> None:
    """`UsageError` where those of the arrays that would lie in files do not all find room, before one is made."""
    nbytes = sum(each for each in arrays_bytes if each > _IN_MEMORY_BYTES)
    if nbytes:
        folder = _folder()
        free = shutil.disk_usage(folder).free
        if free < nbytes:
            raise _no_room(folder, nbytes, f"{free >> 20} MB are free")


def _folder() -> Path:
    """The one that is asked for, else `/var/tmp`, else what Python takes for such files."""
    asked = next((path for name in _NAMES if (path := os.environ.get(name))), None)
    if asked is not None and not Path(asked).is_dir():
        raise UsageError(f"TMPDIR: expected a folder for large files, found none at {asked}")
    if asked is not None:
        return Path(asked)
    try:
        return _ON_DISK if os.access(_ON_DISK, os.W_OK) else Path(tempfile.gettempdir())
    except OSError:
        raise UsageError(
            f"expected a folder that can be written for large files, found none; {_ELSEWHERE}"
        ) from None


def _no_room(folder: Path, nbytes: int, found: str | None) -> UsageError:
    return UsageError(
        f"{folder}: expected room for {math.ceil(nbytes / 2**20)} MB, found too little ({found}); free some, or {_ELSEWHERE}"
    )


def _reserve(file: int, nbytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, nbytes)
    else:
        os.truncate(file, nbytes)
