"""How much of the machine this process may use; loads no torch, since children that decode ask too."""

from __future__ import annotations

import os


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_processors() -> int:
    """Of those, the share of this process where torchrun has started several on this machine; at least 1."""
    return max(1, processors() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
