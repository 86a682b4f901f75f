import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from visus.ops.ranking import ranking


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


def test_the_variance_is_that_of_delong():
    scores, positive = drawn(3, 50, 1000)
    ahead = scores[positive][:, None] > scores[~positive]
    expected = (
        ahead.mean(axis=1).var(ddof=1) / positive.sum() + ahead.mean(axis=0).var(ddof=1) / (~positive).sum()
    )
    assert (ranking(scores, positive).auroc_influence ** 2).sum() == pytest.approx(expected)
    statistic = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert ranking(scores, positive).auroc == pytest.approx(statistic / ahead.size)
