"""Sources, splits, augmentation and batches."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {"batches": "visus.data.batching", "open_source": "visus.data.sources"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'visus.data' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
