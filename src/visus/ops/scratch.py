"""Arrays that are larger than memory should hold: they lie in a file that has no name, and goes with them."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visus.errors import UsageError

_IN_MEMORY_BYTES = 2**26
_ON_DISK = Path("/var/tmp")
"""Where `/tmp` may be memory, large files belong (Filesystem Hierarchy Standard 3.0, 5.15); `TMPDIR` goes before it."""


def scratch_array(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros of that shape; beyond 64 MiB in a file, from which the system reads what is wanted.

    `UsageError` where the disk has no room for it.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if nbytes <= _IN_MEMORY_BYTES:
        return np.zeros(shape, dtype)
    folder = _ON_DISK if not os.environ.get("TMPDIR") and _ON_DISK.is_dir() else Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(prefix="visus-", dir=folder) as file:
            # Of a file with holes, a full disk would be told by a signal that ends the process.
            _reserve(file.fileno(), nbytes)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise UsageError(
            f"{folder}: expected room for {nbytes / 2**20:.0f} MB, found none ({error.strerror}); "
            "free some, or set TMPDIR to a folder on another disk"
        ) from None


def _reserve(file: int, nbytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, nbytes)
    else:
        os.truncate(file, nbytes)
