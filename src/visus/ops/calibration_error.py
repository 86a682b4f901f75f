"""How far a classifier's confidence is from its accuracy.

`N` images; `confidences [N]` are the probabilities of the predicted classes, `correct [N]` says whether these are right.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BINS = 15


def debiased_calibration_error(confidences: Floats, correct: Bools) -> float:
    """Root mean square gap between confidence and accuracy over 15 bins of equally many images, less what chance alone adds.

    The plain form finds error in perfectly calibrated models, the more so the fewer images there are. In each bin the variance of
    the accuracy, a(1 - a) / (n - 1), is taken off the squared gap (Kumar et al., Verified Uncertainty Calibration, 2019; compared
    with others in Roelofs et al., Mitigating Bias in Calibration Error Estimation, 2022). 0 where that leaves less than nothing.
    """
    order = np.argsort(confidences, kind="stable")
    total = 0.0
    for members in np.array_split(order, min(BINS, max(1, len(order) // 2))):
        accuracy = correct[members].mean()
        gap = confidences[members].mean() - accuracy
        chance = accuracy * (1 - accuracy) / max(1, len(members) - 1)
        total += len(members) / len(order) * (gap**2 - chance)
    return math.sqrt(max(0.0, total))


def plain_calibration_error(confidences: Floats, correct: Bools) -> float:
    """Mean absolute gap over 15 bins of equal width (Naeini et al., 2015; Guo et al., 2017), biased upwards."""
    bins = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
    sums = np.bincount(bins, confidences - correct, minlength=BINS)
    return float(np.abs(sums).sum() / len(confidences))
