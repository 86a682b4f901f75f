import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from visus.ops.intervals import bounded_interval, of_few
from visus.ops.ranking import Ranking, pulls, ranking, ranking_variances, shrunk


def drawn(seed, n, values):
    """Scores with ties where there are few values, and some positive images but not only such."""
    random = np.random.default_rng(seed)
    positive = random.random(n) < 0.4
    positive[:2] = True, False
    return random.integers(0, values, n) / values + 0.2 * positive * (values > 5), positive


@given(st.integers(0, 999), st.integers(2, 60), st.sampled_from([1, 3, 1000]))
def test_areas_are_those_of_scikit_learn(seed, n, values):
    scores, positive = drawn(seed, n, values)
    found = ranking(scores, positive)
    assert found.auroc == pytest.approx(roc_auc_score(positive, scores))
    assert found.average_precision == pytest.approx(average_precision_score(positive, scores))


@settings(max_examples=10)
@given(st.integers(0, 999), st.integers(4, 12), st.sampled_from([3, 1000]))
def test_influences_are_derivatives_by_the_weights(seed, n, values):
    scores, positive = drawn(seed, n, values)
    positive[:4] = True, False, True, False
    found = ranking(scores, positive)
    step = 1e-5
    for place in range(n):
        weights = np.ones(n)
        changes = []
        for each in (1 + step, 1 - step):
            weights[place] = each
            changes.append(
                [
                    roc_auc_score(positive, scores, sample_weight=weights),
                    average_precision_score(positive, scores, sample_weight=weights),
                ]
            )
        slope = np.subtract(*changes) / (2 * step)
        # DeLong's variance has n - 1 where a derivative has n.
        own = (positive == positive[place]).sum()
        assert found.auroc_influence[place] == pytest.approx(
            slope[0] * np.sqrt(own / (own - 1)), rel=1e-4, abs=1e-7
        )
        assert found.average_precision_influence[place] == pytest.approx(slope[1], rel=1e-4, abs=1e-7)


@settings(max_examples=20)
@given(st.integers(0, 999), st.integers(4, 40), st.sampled_from([1, 3, 1000]))
def test_without_an_image_the_average_precision_is_that_of_the_others(seed, n, values):
    scores, positive = drawn(seed, n, values)
    positive[:4] = True, False, True, False
    found = ranking(scores, positive).average_precision_without
    others = [np.arange(n) != place for place in range(n)]
    assert found == pytest.approx([average_precision_score(positive[each], scores[each]) for each in others])


def test_without_the_only_positive_image_the_average_precision_stays():
    found = ranking(np.array([0.1, 0.3, 0.2]), np.array([False, False, True]))
    assert found.average_precision_without.tolist() == [0.5, 1.0, 0.5]


def test_the_variance_is_that_of_delong():
    scores, positive = drawn(3, 50, 1000)
    ahead = scores[positive][:, None] > scores[~positive]
    expected = (
        ahead.mean(axis=1).var(ddof=1) / positive.sum() + ahead.mean(axis=0).var(ddof=1) / (~positive).sum()
    )
    assert (ranking(scores, positive).auroc_influence ** 2).sum() == pytest.approx(expected)
    statistic = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert ranking(scores, positive).auroc == pytest.approx(statistic / ahead.size)


def test_the_least_variance_is_the_published_one():
    # Hanley and McNeil, 1982: 51 abnormal and 58 normal images of the brain, an area of 0.893, a standard error of 0.032.
    area = (0.893 * 52 - 0.5) / 51
    certain = Ranking(area, 1.0, *np.zeros((3, 109)))
    assert shrunk(area, 51) == pytest.approx(0.893)
    assert np.sqrt(ranking_variances(certain, np.zeros((2, 109)), np.arange(109) < 51)[0]) == pytest.approx(
        0.032, abs=1e-3
    )


def test_the_variance_over_groups_is_obuchowskis():
    # Nonparametric Analysis of Clustered ROC Curve Data, 1997; each of the 12 groups holds both kinds. He has n where DeLong has
    # n - 1.
    random = np.random.default_rng(0)
    groups, positive = np.repeat(np.arange(12), 40), np.arange(480) % 4 == 0
    scores = random.normal(positive + 2 * random.normal(size=12)[groups])
    ahead = scores[positive][:, None] > scores[~positive]
    area = ahead.mean()
    mine, others = (
        np.bincount(groups[kind], ahead.mean(axis=axis) - area)
        for kind, axis in ((positive, 1), (~positive, 0))
    )
    expected = 12 / 11 * ((mine / positive.sum() + others / (~positive).sum()) ** 2).sum()
    student = (stats.t.ppf(0.975, 11) / stats.norm.ppf(0.975)) ** 2
    found = ranking(scores, positive)
    variance = ranking_variances(found, pulls(found, scores, positive, groups), positive, units=groups)[0]
    assert variance == pytest.approx(student * expected, rel=0.02)


@pytest.mark.parametrize("values", [7, 10**9])
@pytest.mark.parametrize("groups", [12, 250])
def test_the_precision_over_few_groups_varies_as_it_does_without_each(groups, values):
    random = np.random.default_rng(0)
    units, positive = np.arange(groups).repeat(4), np.arange(4 * groups) % 3 == 0
    # One group without a positive image, another with most.
    positive[:4], positive[4:8] = False, True
    scores = random.normal(positive + random.normal(size=groups)[units])
    scores = np.round(scores * values) / values
    found = ranking(scores, positive)
    if groups > 200:
        expected = (np.bincount(units, found.average_precision_influence) ** 2).sum()
    else:
        without = [
            average_precision_score(positive[units != each], scores[units != each]) for each in range(groups)
        ]
        expected = (groups - 1) * np.mean((np.array(without) - found.average_precision) ** 2)
    growth = of_few(groups - 1)
    pulled = pulls(found, scores, positive, units)
    assert ranking_variances(found, pulled, positive, units=units)[1] == pytest.approx(growth * expected)


def test_groups_that_alone_hold_all_positive_images_are_not_left_out():
    scores, positive = np.array([0.9, 0.1, 0.3, 0.2]), np.array([True, False, False, False])
    units = np.array([0, 0, 1, 2])
    found = ranking(scores, positive)
    pulled = pulls(found, scores, positive, units)
    assert np.isfinite(ranking_variances(found, pulled, positive, units=units)).all()


@pytest.mark.parametrize("positives", [2, 10])
def test_intervals_of_the_area_hold_the_truth_about_as_often_as_they_say(positives):
    # Exponential scores: those that the formula of Hanley and McNeil is made of.
    random, held = np.random.default_rng(0), []
    positive = np.arange(5 * positives) < positives
    for area in (0.7, 0.9, 0.98):
        for _ in range(300):
            scores = random.exponential(np.where(positive, area / (1 - area), 1))
            found = ranking(scores, positive)
            variance = ranking_variances(found, pulls(found, scores, positive), positive)[0]
            low, high = bounded_interval(found.auroc, variance, positives, at=shrunk(found.auroc, positives))
            held.append(low <= area <= high)
    assert 0.935 <= np.mean(held) <= 0.975
