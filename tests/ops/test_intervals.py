import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from visus.ops.intervals import (
    bounded_interval,
    interval_over,
    mean_share_interval,
    of_few,
    share_at_least,
    share_interval,
    wilson,
)


@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.8, 0.95, 0.99]))
def test_a_proportion_with_its_own_variance_gets_wilsons_interval(correct, n, level):
    share = min(correct, n) / n
    ours = bounded_interval(share, share * (1 - share) / n, n, level)
    assert ours == pytest.approx(wilson(min(correct, n), n, level), abs=1e-12)


def test_more_variance_is_a_longer_interval_within_0_and_1():
    intervals = [bounded_interval(0.9, variance, 10) for variance in (1e-4, 1e-2, 1.0)]
    lengths = [high - low for low, high in intervals]
    assert lengths == sorted(lengths)
    assert all(0 <= low <= 0.9 <= high <= 1 for low, high in intervals)


@pytest.mark.parametrize(("units", "level"), [(2, 0.95), (10, 0.9), (300, 0.99)])
def test_a_mean_of_few_has_students_interval(units, level):
    values = np.random.default_rng(0).normal(size=units)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(level)
    z = stats.norm.ppf((1 + level) / 2)
    assert z * np.sqrt(of_few(units, level) * values.var() / units) == pytest.approx((high - low) / 2)
    assert np.isnan(of_few(1))


@given(st.integers(0, 10_000), st.integers(1, 10_000), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilsons_interval_is_scipys(correct, n, level):
    expected = stats.binomtest(min(correct, n), n).proportion_ci(level, method="wilson")
    assert wilson(min(correct, n), n, level) == pytest.approx(tuple(expected), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (3, 10), (10, 10)])
def test_the_bound_is_clopper_and_pearsons(correct, n):
    expected = stats.binomtest(correct, n, alternative="greater").proportion_ci(0.95, method="exact").low
    assert share_at_least(correct, n) == pytest.approx(expected)
    assert share_interval(correct, n, 0.9, "exact")[0] == pytest.approx(share_at_least(correct, n))


def test_the_mean_of_shares_keeps_its_level_where_classes_are_small_and_nearly_all_right():
    random = np.random.default_rng(0)
    sizes, truth = [5, 20, 80], [0.9, 0.95, 0.99]
    drawn = random.binomial(sizes, truth, size=(1000, 3)).tolist()
    intervals = [mean_share_interval(each, sizes) for each in drawn]
    assert 0.93 <= np.mean([low <= np.mean(truth) <= high for low, high in intervals]) <= 0.99
    low, high = mean_share_interval([2, 2], [2, 2])
    assert low < 0.8
    assert high == 1
    assert mean_share_interval([500], [1000]) == pytest.approx(wilson(500, 1000), abs=1e-3)


def test_intervals_of_shares_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    held = []
    for n in (20, 100, 1000):
        for p in (0.5, 0.9, 0.99):
            counts, times = np.unique(random.binomial(n, p, 500), return_counts=True)
            inside = [low <= p <= high for low, high in (wilson(int(each), n) for each in counts)]
            held.append(times @ inside / 500)
    assert 0.94 <= np.mean(held) <= 0.97


@pytest.mark.parametrize("groups", [10, 40])
def test_a_share_over_groups_is_in_its_interval_about_as_often_as_that_says(groups):
    random, held = np.random.default_rng(0), []
    units = np.arange(groups).repeat(10)
    for _ in range(1000):
        correct = random.random(len(units)) < random.beta(4, 1, groups).repeat(10)
        low, high = interval_over(correct, units)
        held.append(low <= 0.8 <= high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_a_share_over_groups_that_are_all_alike_says_as_much_as_so_many_images():
    units = np.arange(20).repeat(5)
    assert interval_over(np.ones(100, bool), units) == pytest.approx(wilson(20, 20))
    assert interval_over(np.ones(5, bool), np.zeros(5, np.int64)) == pytest.approx(wilson(1, 1))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_bounded_interval_ends_at_a_figure_that_is_0_or_1(share):
    for n in range(1, 2000):
        low, high = bounded_interval(share, 0.0, n)
        assert low <= share <= high, n
