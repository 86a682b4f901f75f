"""Confident learning: which given labels are wrong, by the probabilities of a model that has not seen them.

Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, 2021. `N` images, `K` classes.
Probabilities may lie in a file: no copy of all of them is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[Any]

_AT_ONCE = 2**14


def class_thresholds(labels: Labels, probabilities: Floats) -> Floats:
    """`[K]`: the mean probability of class k over the images labelled k; infinite for a class without any."""
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=own, minlength=classes)
    thresholds: Floats = np.divide(sums, counts, out=np.full(classes, np.inf), where=counts > 0)
    return thresholds


def confident_classes(labels: Labels, probabilities: Floats) -> Labels:
    """`[N]`: the likeliest of the classes whose probability reaches their threshold; -1 where none does."""
    thresholds = class_thresholds(labels, probabilities)
    classes = np.full(len(labels), -1)
    for begin in range(0, len(labels), _AT_ONCE):
        rows = probabilities[begin : begin + _AT_ONCE]
        reached = rows >= thresholds
        likeliest = np.where(reached, rows, -1.0).argmax(axis=1)
        classes[begin : begin + len(rows)] = np.where(reached.any(axis=1), likeliest, -1)
    return classes


def confident_joint(labels: Labels, probabilities: Floats) -> Labels:
    """`[K, K]`: how many images labelled i are confidently of class j (equation 1 of the paper, ties by the likeliest)."""
    classes = probabilities.shape[1]
    confident = confident_classes(labels, probabilities)
    counted = confident >= 0
    flat = labels[counted] * classes + confident[counted]
    joint: Labels = np.bincount(flat, minlength=classes**2).reshape(classes, classes)
    return joint


def estimated_errors(labels: Labels, probabilities: Floats) -> float:
    """How many of the labels are wrong: the mass off the diagonal of the joint, its rows brought to the counts of the labels."""
    joint = confident_joint(labels, probabilities).astype(np.float64)
    counts = np.bincount(labels, minlength=len(joint))
    rows = joint.sum(axis=1)
    # A class none of whose images is confidently anything is taken as right.
    wrong = np.divide(rows - joint.diagonal(), rows, out=np.zeros(len(joint)), where=rows > 0)
    return float((wrong * counts).sum())


def label_doubts(labels: Labels, probabilities: Floats) -> Floats:
    """`[N]`: the probability of the given label over what images of that class usually get; near 0 for a wrong one."""
    own = probabilities[np.arange(len(labels)), labels]
    doubts: Floats = own / np.maximum(class_thresholds(labels, probabilities)[labels], 1e-12)
    return doubts
