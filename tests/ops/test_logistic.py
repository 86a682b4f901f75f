import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from visus.ops.logistic import fit_logistic, out_of_sample, predict_logistic, stratified_folds


@pytest.mark.parametrize("penalty", [1e-1, 1e-2])
def test_it_is_scikit_learns_regression(penalty):
    features, labels = load_iris(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    # Theirs weighs the sum of the losses by C, ours the mean by 1.
    theirs = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-8, max_iter=1000).fit(features, labels)
    weights = fit_logistic(features, labels, 3, penalty=penalty)
    np.testing.assert_allclose(predict_logistic(weights, features), theirs.predict_proba(features), atol=2e-3)


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
