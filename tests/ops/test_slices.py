import numpy as np
import pytest
from scipy import stats

from visus.ops.slices import LeftOut, as_attributes, as_slices, quarters, slice_scores, small_values


def test_p_values_are_those_of_fishers_exact_test():
    random = np.random.default_rng(0)
    values, correct = random.choice(list("abc"), 90), random.random(90) < 0.7
    for each in slice_scores({"kind": values}, correct):
        inside = values == each.value
        table = [
            [correct[inside].sum(), (~correct[inside]).sum()],
            [correct[~inside].sum(), (~correct[~inside]).sum()],
        ]
        assert each.p == pytest.approx(stats.fisher_exact(table, alternative="less").pvalue)
        assert (each.n, each.accuracy) == (inside.sum(), correct[inside].mean())
        assert each.rest_accuracy == pytest.approx(correct[~inside].mean())


def test_p_values_are_exact_to_twelve_digits_however_many_images():
    random = np.random.default_rng(3)
    for n in [12, 300, 10_000, 10_000, 100_000]:
        inside, correct = random.random(n) < random.random(), random.random(n) < random.random()
        for each in slice_scores({"kind": inside}, correct):
            expected = stats.hypergeom.cdf(each.correct, n, correct.sum(), each.n)
            assert each.p == pytest.approx(expected, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize(("inside", "outside"), [(0, 1), (1, 0), (1, 1), (0, 0)])
def test_p_values_where_all_are_right_or_wrong(inside, outside):
    correct = np.repeat([inside, outside], [6, 8]) > 0
    found = slice_scores({"kind": ["a"] * 6 + ["b"] * 8}, correct)
    expected = [stats.hypergeom.cdf(each.correct, 14, correct.sum(), each.n) for each in found]
    assert [each.p for each in found] == pytest.approx(expected, rel=1e-12)


def test_the_bad_slice_is_found_and_no_other():
    random = np.random.default_rng(1)
    values = random.choice(list("abcdefgh"), 2000)
    correct = random.random(2000) < np.where(values == "c", 0.75, 0.92)
    assert [each.value for each in slice_scores({"camera": values}, correct) if each.beyond_chance] == ["c"]


@pytest.mark.parametrize("together", [1, 10])
def test_chance_alone_names_one_seldom(together):
    """With `together` images to a group that are right or wrong as one."""
    random = np.random.default_rng(2)
    alarms = 0
    for _ in range(200):
        units = np.arange(40).repeat(together)
        values = random.choice(list("abcde"), 40).repeat(together)
        correct = (random.random(40) < 0.6).repeat(together)
        found = slice_scores({"x": values}, correct, units=None if together == 1 else units)
        alarms += any(each.beyond_chance for each in found)
    assert alarms <= 10


def test_a_slice_of_one_group_is_never_beyond_chance_and_its_interval_is_wide():
    units, values = np.arange(10).repeat(20), np.array(["a"] * 20 + ["b"] * 180)
    (alone, rest) = slice_scores({"x": values}, values == "b", units=units)
    assert (alone.value, alone.p, alone.beyond_chance) == ("a", 1.0, False)
    assert alone.ci95[1] > 0.7
    assert rest.ci95[0] < 0.75


def test_intervals_of_slices_count_groups():
    random = np.random.default_rng(0)
    units, values = np.arange(20).repeat(50), random.choice(["a", "b"], 1000)
    correct = random.random(1000) < random.beta(4, 1, 20).repeat(50)
    lengths = [
        [high - low for low, high in (each.ci95 for each in slice_scores({"x": values}, correct, units=how))]
        for how in (None, units)
    ]
    assert min(np.divide(lengths[1], lengths[0])) > 2


def test_empty_tiny_and_whole_slices_are_passed_over():
    correct = np.array([True] * 6 + [False])
    assert slice_scores({"one": ["a"] * 7, "tiny": list("abbcccd")}, correct) == []
    assert slice_scores({}, correct) == []


def test_what_is_passed_over_is_said_with_the_reason():
    columns = {"one": ["a"] * 60, "site": list("abbcccc") + ["d"] * 53, "name": [f"n{i}" for i in range(60)]}
    attributes, left_out = as_attributes(columns | {"age": range(60)})
    assert list(attributes) == ["site", "age"]
    assert left_out == [LeftOut("name", (), "60 values, more than 50")]
    assert small_values(attributes) == [LeftOut("site", ("a", "b", "c"), "fewer than 5 images")]
    looked_at = {each.value for each in slice_scores(attributes, np.arange(60) > 5) if each.column == "site"}
    assert looked_at == {"d"}


def test_columns_become_slices_where_they_can():
    assert as_slices(["a", "a"]) is None
    assert as_slices([1, 2, 1]) == ["1", "2", "1"]
    assert as_slices([f"name {i}" for i in range(60)]) is None
    assert len(set(as_slices([float(i) for i in range(60)]))) == 4
    assert quarters([1.0, float("nan"), 3.0, 2.0]) == ["1 to 1", "unknown", "3 to 3", "2 to 2"]
    assert quarters([float("nan")] * 2) == ["unknown"] * 2


def test_few_groups_that_agree_among_themselves_prove_no_more_than_their_number_can():
    units, values = np.arange(4).repeat(5), np.array(["a"] * 10 + ["b"] * 10)
    (alone, rest) = slice_scores({"x": values}, values == "b", units=units)
    # Two of four groups are these two in one of six ways.
    assert alone.p == pytest.approx(1 / 6)
    assert rest.p == 1
