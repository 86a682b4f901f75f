import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from visus.ops.paired import cohens_kappa, detectable_difference, mcnemar, paired_interval
from visus.ops.significance import holm


def test_the_interval_is_the_published_one():
    # Tango, 1998, his example of 44 patients: 43 and 0 agree, 0 and 1 do not.
    low, high = paired_interval(44, 0, 1)
    assert (low, high) == pytest.approx((-0.0600, 0.1184), abs=1e-3)


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 200))
def test_it_holds_the_estimate_and_turns_round_with_the_classifiers(n, first, second):
    n = max(n, first + second)
    low, high = paired_interval(n, first, second)
    assert -1 <= low <= (second - first) / n + 1e-9
    assert (second - first) / n - 1e-9 <= high <= 1
    assert paired_interval(n, second, first) == pytest.approx((-high, -low), abs=1e-8)


def test_with_many_images_it_is_the_usual_one():
    n, first, second = 100_000, 900, 1100
    difference = (second - first) / n
    half = 1.959964 * np.sqrt((first + second) / n - difference**2) / np.sqrt(n)
    assert paired_interval(n, first, second) == pytest.approx(
        (difference - half, difference + half), abs=5e-6
    )


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 6), (3, 3), (10, 25), (59, 86)])
def test_mcnemar_is_a_binomial_test(first, second):
    both = first + second
    expected = stats.binomtest(first, both).pvalue if both else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(first, second, mid=True) <= mcnemar(first, second)


def test_alarms_are_as_frequent_as_they_should_be():
    random = np.random.default_rng(0)
    drawn = random.multinomial(1000, [0.1, 0.1, 0.8], size=2000).tolist()
    interval, exact, mid = map(
        functools.cache, (paired_interval, mcnemar, functools.partial(mcnemar, mid=True))
    )
    outside = [not low <= 0 <= high for low, high in (interval(1000, a, b) for a, b, _ in drawn)]
    assert 0.04 <= np.mean(outside) <= 0.06
    assert 0.035 <= np.mean([exact(a, b) <= 0.05 for a, b, _ in drawn]) <= 0.06
    assert 0.04 <= np.mean([mid(a, b) <= 0.05 for a, b, _ in drawn]) <= 0.06


def test_a_difference_that_is_detectable_is_detected_in_four_of_five_cases():
    n, differing = 2000, 0.1
    difference = detectable_difference(n, differing)
    parts = [(differing - difference) / 2, (differing + difference) / 2, 1 - differing]
    drawn = np.random.default_rng(0).multinomial(n, parts, size=1000).tolist()
    assert np.mean([mcnemar(a, b) <= 0.05 for a, b, _ in drawn]) == pytest.approx(0.8, abs=0.05)
    assert detectable_difference(100, 0) == 0.06
    assert mcnemar(0, 6) <= 0.05 < mcnemar(0, 5)


def test_agreement_beyond_chance_is_that_of_scikit_learn():
    one, other = np.random.default_rng(0).choice(list("abc"), (2, 50))
    assert cohens_kappa(list(one), list(other)) == pytest.approx(cohen_kappa_score(one, other))
    assert cohens_kappa(["a"], ["a"]) is None


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holms_values_are_those_of_its_definition(p_values):
    adjusted = holm(p_values)
    ranked = sorted(range(len(p_values)), key=lambda place: p_values[place])
    highest = 0.0
    for rank, place in enumerate(ranked):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        assert adjusted[place] == pytest.approx(highest)
