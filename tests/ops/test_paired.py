import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from visus.ops.paired import (
    cohens_kappa,
    detectable_difference,
    fewest_speaking,
    grouped_mcnemar,
    mcnemar,
    paired_interval,
    worth,
)
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
    found = mcnemar(first, second)
    assert found.exact == pytest.approx(expected)
    assert found.mid <= found.exact


def test_alarms_are_as_frequent_as_they_should_be():
    random = np.random.default_rng(0)
    drawn = random.multinomial(1000, [0.1, 0.1, 0.8], size=2000).tolist()
    interval, test = map(functools.cache, (paired_interval, mcnemar))
    outside = [not low <= 0 <= high for low, high in (interval(1000, a, b) for a, b, _ in drawn)]
    assert 0.04 <= np.mean(outside) <= 0.06
    assert 0.035 <= np.mean([test(a, b).exact <= 0.05 for a, b, _ in drawn]) <= 0.06
    assert 0.04 <= np.mean([test(a, b).mid <= 0.05 for a, b, _ in drawn]) <= 0.06


@pytest.mark.parametrize("sums", [[3, 1, -1, 0, 2, 2, 1, -2, 5], [4, 4, 4, 4, 4, 4], [1, -1, 2, -2], [7, 0]])
def test_mcnemar_over_groups_is_a_test_by_permutation(sums):
    zeros = np.zeros(len(sums))
    # Exchanging what both say of a group turns its sign round.
    expected = stats.permutation_test(
        (np.array(sums), zeros),
        lambda one, other: (one - other).sum(),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    found = grouped_mcnemar(np.array(sums))
    assert found.exact == pytest.approx(expected.pvalue)
    seen = np.abs(expected.null_distribution)
    more, same = (seen > abs(sum(sums))).mean(), (seen == abs(sum(sums))).mean()
    half = more + same / 2 if sum(sums) else 1.0
    assert found.mid == pytest.approx(half)


@given(st.integers(0, 40), st.integers(0, 40))
def test_over_groups_of_one_image_it_is_mcnemars(first, second):
    sums = np.repeat([-1, 1, 0], [first, second, 5])
    assert grouped_mcnemar(sums) == pytest.approx(mcnemar(first, second))
    # As often as groups of three that say the same.
    assert grouped_mcnemar(3 * sums) == pytest.approx(mcnemar(first, second))


def test_the_interval_over_many_groups_is_the_usual_one():
    random = np.random.default_rng(0)
    sizes = random.integers(1, 12, 400)
    units = np.repeat(np.arange(400), sizes)
    leaning = random.normal(0, 0.8, 400)[units] + random.normal(0, 1, len(units))
    differences = (leaning > 1.2).astype(int) - (leaning < -1.4)
    mean = sum(differences) / len(units)
    squares = sum((differences[units == each] - mean).sum() ** 2 for each in range(400))
    # Student's t for 400 groups, and the factor for a mean that was measured on them, too.
    half = stats.t.ppf(0.975, 399) * np.sqrt(squares * 400 / 399) / len(units)
    n = worth(differences, units)
    assert n < 0.6 * len(units)
    shares = [(differences == each).mean() for each in (-1, 1)]
    found = paired_interval(n, *(n * each for each in shares))
    assert found == pytest.approx((mean - half, mean + half), abs=0.02 * half)


@pytest.mark.parametrize(
    ("differences", "units", "expected"),
    [
        ([0] * 8, [0, 0, 1, 1, 2, 2, 3, 3], 4),
        ([1] * 8, [0, 0, 1, 1, 2, 2, 3, 3], 4),
        # Both signs in each group: the sums say nothing, and are no reason to be surer.
        ([1, -1] * 4, [0, 0, 1, 1, 2, 2, 3, 3], 4),
        ([1, 0, 0, -1], [0, 0, 0, 0], 1),
        ([1, -1] * 20 + [1, 0], np.arange(42) // 2, 42),
    ],
)
def test_where_the_spread_of_groups_says_nothing_they_count_and_never_more_than_their_images(
    differences, units, expected
):
    assert worth(np.array(differences), np.array(units)) == expected


def test_alarms_over_groups_are_as_frequent_as_they_should_be():
    random = np.random.default_rng(0)
    units = np.arange(40).repeat(10)
    outside, exact, mid, alone = np.zeros(4)
    for _ in range(1000):
        hard = random.normal(size=len(units))
        a, b = (hard + random.normal(0, 0.6, 40)[units] + random.normal(0, 0.5, 400) < 1 for _ in range(2))
        differences = b.astype(int) - a
        sums = np.bincount(units, differences).astype(int)
        n = worth(differences, units)
        low, high = paired_interval(n, n * (a & ~b).mean(), n * (b & ~a).mean())
        outside += not low <= 0 <= high
        together = grouped_mcnemar(sums)
        exact += together.exact <= 0.05
        mid += together.mid <= 0.05
        alone += mcnemar((a & ~b).sum(), (b & ~a).sum()).exact <= 0.05
    assert 30 <= outside <= 65
    assert 30 <= exact <= mid <= 65
    # What counting images comes to.
    assert alone > 150


def test_a_difference_that_is_detectable_is_detected_in_four_of_five_cases():
    n, differing = 2000, 0.1
    difference = detectable_difference(n, differing, fewest_speaking() / n)
    parts = [(differing - difference) / 2, (differing + difference) / 2, 1 - differing]
    drawn = np.random.default_rng(0).multinomial(n, parts, size=1000).tolist()
    assert np.mean([mcnemar(a, b).exact <= 0.05 for a, b, _ in drawn]) == pytest.approx(0.8, abs=0.05)
    assert detectable_difference(100, 0, fewest_speaking() / 100) == 0.06
    # Five coins on one side are no surprise, six are.
    assert mcnemar(0, fewest_speaking() - 1).exact > 0.05 >= mcnemar(0, fewest_speaking()).exact
    assert mcnemar(0, 6).exact <= 0.05 < mcnemar(0, 5).exact


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
