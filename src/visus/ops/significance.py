"""Tests of several claims at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def holm(p_values: npt.ArrayLike) -> Floats:
    """Adjusted p-values `[T]` of T tests: any of them at or below a level is wrong by chance at most that often, for all together.

    Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979; whatever the tests have to do with each other.
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    stepped = given[order] * np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted
