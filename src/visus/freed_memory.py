"""Memory that torch frees on the CPU, where the C library is glibc.

By default glibc gives it back to the system whenever enough lies free at the end of the heap. A step frees its activations and the
next one asks for as much, so that the system clears the same pages again and again; whether it comes to that depends on what
happens to lie behind them.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = -1
_LARGEST_MMAP_THRESHOLD = 2**25
"""Up to this size glibc takes memory from its heap, at the most."""
_CHOSEN_BY_HAND = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
_inside = [0]
"""How many are entered and not left."""
_lock = threading.Lock()


@contextmanager
def kept_freed_memory() -> Iterator[None]:
    """What is freed stays with this process until the end, and is given back then; where glibc's variables are set, they decide.

    Blocks of more than 32 MiB come from the system, and go back there, in any case. Of several, one inside the other, the
    outermost counts.
    """
    libc = None if any(name in os.environ for name in _CHOSEN_BY_HAND) else _glibc()
    if libc is None:
        yield
        return
    _enter(libc)
    try:
        yield
    finally:
        _leave(libc)


def _enter(libc: ctypes.CDLL) -> None:
    with _lock:
        if not _inside[0]:
            libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
            libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        _inside[0] += 1


def _leave(libc: ctypes.CDLL) -> None:
    with _lock:
        _inside[0] -= 1
        if not _inside[0]:
            # The most that glibc, left to itself, would come to by now.
            libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
            libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
