import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from visus.errors import DataError
from visus.ops.confusion import averages, class_shares, confusion_matrix


def drawn(seed, n, classes, used):
    """Labels and predictions of `used` of the classes, so that some are never there or never said."""
    random = np.random.default_rng(seed)
    return random.integers(0, used, n), random.integers(classes - used, classes, n)


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(1, 80), st.integers(2, 7), st.data())
def test_averages_are_those_of_scikit_learn(seed, n, classes, data):
    true, predicted = drawn(seed, n, classes, data.draw(st.integers(1, classes)))
    table = confusion_matrix(true, predicted, classes)[:, :-1]
    sums = table.sum(axis=1), table.sum(axis=0), table.diagonal()
    ours = averages(*sums)
    for kind in ("macro", "weighted"):
        theirs = precision_recall_fscore_support(
            true, predicted, labels=np.unique(true), average=kind, zero_division=0
        )
        mine = [getattr(ours, f"{kind}_{name}") for name in ("precision", "recall", "f1")]
        assert mine == pytest.approx(theirs[:3])
    if set(predicted) <= set(true) and len(set(true)) > 1:
        assert ours.macro_recall == pytest.approx(balanced_accuracy_score(true, predicted))
    theirs = precision_recall_fscore_support(true, predicted, labels=np.arange(classes), zero_division=np.nan)
    for mine, other, whole in zip(
        class_shares(*sums), theirs[:3], (sums[1], sums[0], sums[0] + sums[1]), strict=True
    ):
        np.testing.assert_allclose(mine[whole > 0], other[whole > 0])
        assert np.isnan(mine[whole == 0]).all()


def test_several_samples_at_once_are_each_alone():
    random = np.random.default_rng(0)
    sums = random.integers(1, 9, (3, 4, 5))
    together = averages(*sums)
    for place in range(4):
        assert [each[place] for each in together] == pytest.approx(
            [float(each) for each in averages(*sums[:, place])]
        )


def test_no_images_are_no_average():
    assert np.isnan(averages(np.zeros(3), np.zeros(3), np.zeros(3))).all()


def test_an_unknown_label_is_an_error():
    with pytest.raises(DataError, match="labels from 0 to 1"):
        confusion_matrix(np.array([0, 2]), np.array([0, 0]), 2)


def test_a_million_predictions_are_counted_at_once():
    true, predicted = np.random.default_rng(0).integers(0, 1000, (2, 1_000_000))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        table = confusion_matrix(true, predicted, 1000)
        class_shares(table.sum(axis=1), table[:, :-1].sum(axis=0), table[:, :-1].diagonal())
        seconds.append(time.perf_counter() - began)
    assert table.sum() == 1_000_000
    # 50 ms is the aim; beside other work a machine takes longer.
    assert min(seconds) < 0.5
