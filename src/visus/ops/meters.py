"""A running mean."""

from __future__ import annotations

import math


class AverageMeter:
    """The mean of values that are themselves means over `n` items, weighted by n, and the latest of them.

    The sum is compensated (Neumaier, 1974), so that many small values beside a large one are not lost.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.val = 0.0
        self.count = 0
        self._sum = 0.0
        self._lost = 0.0

    def update(self, val: float, n: int = 1) -> None:
        """Add the mean `val` of `n` items; with n = 0 it is only remembered as the latest."""
        self.val = float(val)
        if n == 0:
            return
        self.count += n
        term = self.val * n
        total = self._sum + term
        if math.isfinite(total):
            large, small = (self._sum, term) if abs(self._sum) >= abs(term) else (term, self._sum)
            self._lost += (large - total) + small
        self._sum = total

    @property
    def sum(self) -> float:
        """The sum over all items."""
        return self._sum + self._lost

    @property
    def avg(self) -> float:
        """The mean over all items; 0.0 before the first."""
        return self.sum / self.count if self.count else 0.0
