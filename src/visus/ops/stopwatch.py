"""Durations as people read them."""

from __future__ import annotations

import math

from visus.errors import UsageError


def split_seconds(seconds: float) -> tuple[int, int, float]:
    """Hours, minutes and the seconds that are left, below 60; `UsageError` where `seconds` is negative or not finite."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UsageError(f"expected a duration of 0 seconds or more, found {seconds}")
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return hours, minutes, rest


def format_duration(seconds: float) -> str:
    """`1h 2m 3.46s`; rounded to hundredths before it is split, so that it never says 60.00s."""
    hours, minutes, rest = split_seconds(seconds)
    hundredths = round(rest * 100)
    carried, hundredths = divmod(hundredths, 6000)
    hours, minutes = hours + (minutes + carried) // 60, (minutes + carried) % 60
    return f"{hours}h {minutes}m {hundredths / 100:.2f}s"
