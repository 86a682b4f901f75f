import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from visus.ops.confident_learning import (
    class_thresholds,
    confident_classes,
    confident_joint,
    estimated_errors,
    label_doubts,
)


def naive_joint(labels, probabilities):
    """The published definition, image by image: cleanlab's `compute_confident_joint` without its calibration."""
    classes = probabilities.shape[1]
    thresholds = [
        np.mean([row[k] for row, label in zip(probabilities, labels, strict=True) if label == k])
        if (labels == k).any()
        else np.inf
        for k in range(classes)
    ]
    joint = np.zeros((classes, classes), dtype=int)
    for row, label in zip(probabilities, labels, strict=True):
        above = [k for k in range(classes) if row[k] >= thresholds[k]]
        if above:
            joint[label, max(above, key=lambda k: row[k])] += 1
    return joint


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 60))
def test_the_joint_is_the_published_one(seed, classes, count):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    probabilities = rng.dirichlet(np.full(classes, 0.5), count)
    assert (confident_joint(labels, probabilities) == naive_joint(labels, probabilities)).all()


def test_a_case_by_hand():
    labels = np.array([0, 0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    np.testing.assert_allclose(class_thresholds(labels, probabilities), [0.6, 0.75])
    assert confident_classes(labels, probabilities).tolist() == [0, 0, 1, 1, -1]
    assert confident_joint(labels, probabilities).tolist() == [[2, 1], [0, 1]]
    # A third of the three images labelled 0, none of the two labelled 1.
    assert abs(estimated_errors(labels, probabilities) - 1) < 1e-12
    np.testing.assert_allclose(label_doubts(labels, probabilities)[2], 0.1 / 0.6)


def test_the_estimate_is_near_the_number_of_labels_that_were_changed():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 5000)
    probabilities = np.full((5000, 5), 0.02)
    probabilities[np.arange(5000), true] = 0.92
    labels = true.copy()
    labels[:400] = (true[:400] + rng.integers(1, 5, 400)) % 5
    assert abs(estimated_errors(labels, probabilities) - 400) < 5
    assert set(np.argsort(label_doubts(labels, probabilities))[:400]) == set(range(400))


def test_a_class_without_images_is_never_confident():
    probabilities = np.array([[0.1, 0.2, 0.7], [0.2, 0.1, 0.7]])
    assert confident_classes(np.array([0, 1]), probabilities).max() < 2
