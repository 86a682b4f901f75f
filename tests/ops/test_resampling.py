import numpy as np
import pytest
from scipy import sparse, stats

from visus.ops.resampling import accelerated_interval, bootstrap, units_of, variances


def mean_of(drawn):
    return drawn[:, :1] / drawn[:, 1:]


def sums_of(values, units):
    return sparse.csr_array(np.stack([np.bincount(units, values), np.bincount(units)], axis=1).astype(float))


def test_the_samples_are_the_same_everywhere():
    values = np.arange(10.0)
    samples = bootstrap(sums_of(values, units_of(10)), mean_of)
    assert samples.shape == (2000, 1)
    assert samples[:4, 0].tolist() == pytest.approx([5.2, 4.3, 5.2, 4.9])
    assert samples.mean() == pytest.approx(4.5, abs=0.1)


def test_the_variance_is_that_of_the_mean():
    values = np.random.default_rng(0).exponential(size=300)
    samples = bootstrap(sums_of(values, units_of(300)), mean_of)
    assert variances(samples, 300, 0.95)[0] == pytest.approx(values.var(ddof=1) / 300, rel=0.1)


def test_the_interval_is_scipys_bca():
    values = np.random.default_rng(1).exponential(size=60)
    samples = bootstrap(sums_of(values, units_of(60)), mean_of)[:, 0]
    ours = accelerated_interval(values.mean(), samples, values - values.mean())
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.03)


def test_groups_are_resampled_whole():
    groups = np.repeat(list("abcdefghij"), 50)
    values = np.repeat(np.random.default_rng(2).normal(size=10), 50)
    units = units_of(500, groups)
    samples = bootstrap(sums_of(values, units), mean_of)
    assert sums_of(values, units).shape[0] == 10
    expected = values[::50].var(ddof=1) / 10
    # As Student's t makes an interval of ten longer.
    stretch = (stats.t.ppf(0.975, 9) / stats.norm.ppf(0.975)) ** 2
    assert variances(samples, 10, 0.95)[0] == pytest.approx(expected * stretch, rel=0.15)


def test_many_images_are_dealt_into_as_many_units_of_the_same_spread():
    values = np.random.default_rng(3).exponential(size=50_000)
    units = units_of(50_000, most=1000)
    assert np.bincount(units).tolist() == [50] * 1000
    samples = bootstrap(sums_of(values, units), mean_of)
    assert variances(samples, 1000, 0.95)[0] == pytest.approx(values.var() / 50_000, rel=0.15)


def test_figures_that_are_no_numbers_give_no_interval():
    samples = np.array([[1.0, np.nan, np.nan], [2.0, 1.0, np.nan], [3.0, 3.0, np.nan]])
    found = variances(samples, 10_000, 0.95)
    assert found[:2] == pytest.approx([1.0, 2.0], rel=1e-3)
    assert np.isnan(found[2])
    assert np.isnan(variances(samples, 1, 0.95)).all()
    assert np.isnan(accelerated_interval(np.nan, samples[:, 1], samples[:, 1])).all()
    assert np.isnan(accelerated_interval(2.0, np.full(9, 2.0), np.zeros(4))).all()
    assert np.isnan(accelerated_interval(2.0, np.full(9, 2.0), np.full(4, 1e-16))).all()
