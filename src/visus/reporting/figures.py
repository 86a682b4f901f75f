"""The numbers behind the curves of the page; what is no finite number is `None`, which a chart leaves out."""

from __future__ import annotations

import math
from typing import Any

from visus.reporting.reading import RunResults

_PHASES = ("train", "val")


def curves(results: RunResults) -> dict[str, Any]:
    """Loss, accuracy, rate, speed and seconds, a value for each epoch."""
    found: dict[str, Any] = {"epochs": [record["epoch"] for record in results.phase("train")]}
    for phase in _PHASES:
        records = results.phase(phase)
        found[phase] = {
            name: [_finite(record.get(name)) for record in records]
            for name in ("loss", "accuracy", "lr", "images_per_second", "seconds")
        }
    return found


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
