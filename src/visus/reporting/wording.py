"""Numbers and names as the page writes them."""

from __future__ import annotations

import math

from visus.ops.stopwatch import split_seconds

_SPACE = "\u00a0"
"""Does not break."""


def percent(share: float, digits: int = 1) -> str:
    """`98.3 %`; what is short of everything is not rounded up to it."""
    return f"{share_of_hundred(share, digits)}{_SPACE}%"


def percent_range(low: float, high: float) -> str:
    """`96.4 to 99.2 %`."""
    return f"{share_of_hundred(low)} to {percent(high)}"


def share_of_hundred(share: float, digits: int = 1) -> str:
    """`98.3`, as in `percent`."""
    largest = 100 - 10.0**-digits if share < 1 else 100
    return f"{min(100 * share, largest):.{digits}f}"


def count(number: float) -> str:
    """`12,345`; the speed of a slow run keeps a digit."""
    return f"{number:,.0f}" if float(number).is_integer() or number >= 10 else f"{number:,.1f}"


def decimal(number: float | None) -> str:
    """Four digits that matter; nothing for what is no number."""
    return "" if number is None or not math.isfinite(number) else f"{number:.4g}"


def duration(seconds: float) -> str:
    """`1 h 54 min`, `2 min 5 s`, `8.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes, rest = split_seconds(round(seconds))
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest:.0f} s"


def isolated(name: str) -> str:
    """A name between signs that keep its direction of writing to itself."""
    return f"\u2068{name}\u2069"


def part_name(part: str) -> str:
    """`validation` for `val`; others are called as they are."""
    return {"val": "validation", "train": "training"}.get(part, part)
