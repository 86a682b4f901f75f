"""How far a figure may be from the truth. An interval is (low, high)."""

from __future__ import annotations

from scipy import stats

Interval = tuple[float, float]


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's interval for the proportion `correct` of `n`, `n` at least 1 (Wilson, Probable Inference, 1927)."""
    interval = stats.binomtest(correct, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)
