import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visus.ops.abstention import THRESHOLDS, coverage_area, coverage_curve, threshold_for


def drawn(seed, n):
    random = np.random.default_rng(seed)
    confidences = random.beta(4, 1, n)
    return confidences, random.random(n) < confidences


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=30))
def test_points_are_what_a_threshold_gives(rows):
    confidences, correct = (np.array(column) for column in zip(*rows, strict=True))
    points = coverage_curve(confidences, correct)
    for point in points:
        answered = confidences >= point.threshold
        assert (point.n, point.coverage) == (answered.sum(), answered.mean())
        assert point.accuracy == pytest.approx(correct[answered].mean())
    assert points[-1].coverage == 1
    assert len(points) == len(set(confidences.tolist()))


def test_the_area_is_the_mean_accuracy_over_all_orders_of_equals():
    random = np.random.default_rng(0)
    confidences = np.array([0.9, 0.9, 0.5, 0.5, 0.5, 0.1])
    correct = np.array([1, 0, 1, 1, 0, 0], dtype=bool)
    means = []
    for _ in range(4000):
        order = np.lexsort((random.random(6), -confidences))
        means.append(np.mean(np.cumsum(correct[order]) / np.arange(1, 7)))
    assert coverage_area(confidences, correct) == pytest.approx(np.mean(means), abs=0.01)


def test_the_curve_has_a_hundred_points_of_many():
    assert len(coverage_curve(*drawn(0, 5000))) == 100


def test_what_is_promised_is_kept():
    broken = 0
    for seed in range(300):
        found = threshold_for(0.9, *drawn(seed, 400))
        if found:
            # The true accuracy from a threshold on, of Beta(4, 1).
            t = found.threshold
            truth = 0.8 * (1 - t**5) / (1 - t**4)
            broken += truth < 0.9
            assert found.at_least >= 0.9
            assert found.threshold in THRESHOLDS
    assert broken <= 300 * 0.05


def test_where_nothing_can_be_promised_nothing_is():
    assert threshold_for(0.99, *drawn(0, 50)) is None
    assert threshold_for(0.5, np.ones(200), np.ones(200, dtype=bool)).coverage == 1
