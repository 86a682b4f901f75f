"""What can be said of hard predictions. `K` classes; leading axes `...` are samples of the same figures, such as resamples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from visus.errors import DataError

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Shares(NamedTuple):
    """Of each class `[..., K]`; NaN where there is nothing to divide by."""

    precision: Floats
    recall: Floats
    f1: Floats


class Averages(NamedTuple):
    """Over the classes that have images `[...]`; recall's plain mean is the balanced accuracy, its weighted mean the accuracy."""

    macro_precision: Floats
    macro_recall: Floats
    macro_f1: Floats
    weighted_precision: Floats
    weighted_recall: Floats
    weighted_f1: Floats


def confusion_matrix(true: Counts, predicted: Counts, classes: int) -> Counts:
    """Counts `[classes, classes + 1]` by true and predicted class; the last column holds images without a prediction (NaN)."""
    if true.min() < 0 or true.max() >= classes:
        raise DataError(
            f"expected labels from 0 to {classes - 1}, as the model has outputs, found {true.min()} to {true.max()}"
        )
    flat = np.bincount(true * (classes + 1) + predicted, minlength=classes * (classes + 1))
    return flat.reshape(classes, classes + 1)


def class_shares(actual: npt.ArrayLike, predicted: npt.ArrayLike, correct: npt.ArrayLike) -> Shares:
    """Precision, recall and F1 from how many images of each class there are, are predicted and are right `[..., K]`."""
    there, said, right = (np.asarray(each, dtype=np.float64) for each in (actual, predicted, correct))
    return Shares(_ratio(right, said), _ratio(right, there), _ratio(2 * right, there + said))


def averages(actual: npt.ArrayLike, predicted: npt.ArrayLike, correct: npt.ArrayLike) -> Averages:
    """Plain and weighted (by images) means over the classes that have images; a class never predicted has a precision of 0.

    As scikit-learn reckons them with `zero_division=0` and the classes that occur as `labels`. NaN where no class has an image.
    """
    there = np.asarray(actual, dtype=np.float64)
    shares = [np.nan_to_num(each) for each in class_shares(actual, predicted, correct)]
    plain = [_weighted(each, (there > 0).astype(np.float64)) for each in shares]
    return Averages(*plain, *[_weighted(each, there) for each in shares])


def _weighted(values: Floats, weights: Floats) -> Floats:
    return _ratio((values * weights).sum(axis=-1), weights.sum(axis=-1))


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
