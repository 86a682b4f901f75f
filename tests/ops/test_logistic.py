import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from visus.ops import logistic, scratch
from visus.ops.logistic import _thinned, fit_logistic, out_of_sample, predict_logistic, stratified_folds


@pytest.mark.parametrize("penalty", [1e-1, 1e-2])
def test_it_is_scikit_learns_regression(penalty):
    features, labels = load_iris(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    # Theirs weighs the sum of the losses by C, ours the mean by 1.
    theirs = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-8, max_iter=1000).fit(features, labels)
    weights = fit_logistic(features, labels, 3, penalty=penalty)
    np.testing.assert_allclose(predict_logistic(weights, features), theirs.predict_proba(features), atol=2e-3)


def test_classes_count_as_they_are_told_to():
    features, labels = load_iris(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    counted = np.array([1.0, 4.0, 0.5])
    whole = counted[labels].sum()
    theirs = LogisticRegression(
        C=1 / (0.01 * whole), class_weight=dict(enumerate(counted)), tol=1e-8, max_iter=1000
    ).fit(features, labels)
    weights = fit_logistic(features, labels, 3, penalty=0.01, class_weights=counted)
    np.testing.assert_allclose(predict_logistic(weights, features), theirs.predict_proba(features), atol=2e-3)


def test_many_images_are_fitted_and_predicted_in_pieces_with_the_same_result(monkeypatch):
    features, labels = load_iris(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    whole = out_of_sample(features, labels, 3, penalty=1e-2)
    monkeypatch.setattr(logistic, "_AT_ONCE", 16)
    monkeypatch.setattr(scratch, "_IN_MEMORY_BYTES", 0)
    pieces = out_of_sample(features, labels, 3, penalty=1e-2)
    assert isinstance(pieces, np.memmap)
    np.testing.assert_allclose(pieces, whole, atol=1e-3)


def test_of_many_images_a_part_stands_for_all_that_keeps_small_classes_whole(monkeypatch):
    monkeypatch.setattr(logistic, "_FITTED", 900)
    labels = np.repeat([0, 1, 2], [10_000, 1_000, 7])
    kept, weights = _thinned(np.arange(0, len(labels)), labels, 3)
    counts = np.bincount(labels[kept])
    assert counts[2] == 7
    assert counts.max() <= 300
    np.testing.assert_allclose(counts * weights, [10_000, 1_000, 7])
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(labels), 4)) + 2 * np.eye(3, 4)[labels]
    with_part = out_of_sample(features, labels, 3, penalty=1e-3)
    monkeypatch.setattr(logistic, "_FITTED", 10**6)
    with_all = out_of_sample(features, labels, 3, penalty=1e-3)
    # Weighted by what they stand for: the share of the large class does not move.
    assert np.abs(with_part - with_all).mean() < 0.02


def test_folds_have_their_share_of_every_class():
    labels = np.repeat([0, 1, 2], [50, 25, 7])
    fold = stratified_folds(labels, 5)
    counts = np.array([np.bincount(labels[fold == number], minlength=3) for number in range(5)])
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_no_image_is_predicted_by_a_model_that_has_seen_it():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(400, 50)), rng.integers(0, 2, 400)
    accuracy = (out_of_sample(features, labels, 2, penalty=1e-4).argmax(1) == labels).mean()
    seen = predict_logistic(fit_logistic(features, labels, 2, penalty=1e-4), features)
    assert (seen.argmax(1) == labels).mean() > 0.6
    assert 0.4 < accuracy < 0.6
