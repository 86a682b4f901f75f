"""What benchmarks/coverage.py simulates, where it is known without."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from visus.ops.intervals import wilson


@pytest.fixture(scope="module")
def simulations():
    # By its path: coverage is also the name of a package.
    path = Path(__file__).parents[1] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("simulations", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wilsons_interval_holds_as_often_as_the_binomial_distribution_says(simulations, monkeypatch):
    monkeypatch.setattr(simulations, "SIZES", (20, 50))
    found = simulations.shares(4000, np.random.default_rng(0))
    for n in (20, 50):
        counts = np.arange(n + 1)
        low, high = np.array([wilson(k, n) for k in counts.tolist()]).T
        for p, share in zip(simulations.SHARES, found[str(n)], strict=True):
            expected = stats.binom.pmf(counts[(low <= p) & (p <= high)], n, p).sum()
            assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 4000))


@pytest.mark.parametrize("name", ["honest", "too sure", "not sure enough"])
def test_the_accuracy_from_a_threshold_on_is_known(simulations, name):
    confidences, correct, truth = simulations.MODELS[name](np.random.default_rng(0), 400_000, 0.9)
    for threshold in (0.0, 0.7, 0.95):
        answered = correct[confidences >= threshold]
        assert answered.mean() == pytest.approx(truth(threshold), abs=2 / np.sqrt(len(answered)))


def test_pools_are_as_good_as_they_are_said_to_be(simulations):
    random = np.random.default_rng(0)
    runs = [simulations._pool_runs(random, (2, 5), 1000, 0.5, 0.5, 0.02) for _ in range(200)]
    for place, truth in ((0, 0.9), (1, 0.92)):
        means = [np.mean([run.accuracy for run in pools[place]]) for pools in runs]
        assert np.mean(means) == pytest.approx(truth, abs=4 * np.std(means) / np.sqrt(200))
