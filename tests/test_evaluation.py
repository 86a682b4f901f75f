"""Scores against scikit-learn and torch, on random and degenerate outputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score
from torch import nn

from visus.errors import DataError
from visus.evaluation import evaluate, predict_labels
from visus.inference import eval_mode
from visus.ops.intervals import wilson


def scores_of(logits, labels, batch_size=7):
    batches = list(zip(logits.split(batch_size), labels.split(batch_size), strict=True))
    return evaluate(nn.Identity(), batches)


def random_outputs(seed, n, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator)
    return logits, torch.randint(classes, (n,), generator=generator)


@settings(max_examples=12)
@given(st.integers(0, 999), st.integers(1, 60), st.integers(6, 9), st.integers(1, 60))
def test_scores_equal_those_of_scikit_learn(seed, n, classes, batch_size):
    logits, labels = random_outputs(seed, n, classes)
    scores = scores_of(logits, labels, batch_size)
    names = np.arange(classes)
    true, predicted = labels.numpy(), logits.argmax(1).numpy()
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(true, predicted, labels=names))
    assert scores.accuracy == (true == predicted).mean()
    assert scores.loss == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-12)
    assert scores.top5 == pytest.approx(top_k_accuracy_score(true, logits, k=5, labels=names))
    columns = precision_recall_fscore_support(true, predicted, labels=names, zero_division=0)
    for index, each in enumerate(scores.per_class):
        ours = [each["precision"] or 0, each["recall"] or 0, each["f1"] or 0, each["n"]]
        assert ours == pytest.approx([column[index] for column in columns])


def test_what_has_nothing_to_divide_by_is_none():
    scores = scores_of(torch.eye(3)[[0, 0]], torch.tensor([0, 0]))
    absent = scores.per_class[2]
    assert (absent["n"], absent["accuracy"], absent["ci95"], absent["precision"], absent["f1"]) == (
        0,
        *[None] * 4,
    )
    assert scores.top5 == 1.0


def test_an_image_whose_outputs_are_nan_is_wrong():
    logits = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    scores = scores_of(logits, torch.tensor([0, 0]))
    assert scores.accuracy == 0.5
    assert scores.per_class[0]["n"] == 2
    assert np.isnan(scores.loss)


def test_one_hot_targets_count_as_their_class():
    logits, labels = random_outputs(0, 20, 4)
    assert scores_of(logits, F.one_hot(labels, 4).float()).accuracy == scores_of(logits, labels).accuracy
    true, predicted = predict_labels(nn.Identity(), [(logits, F.one_hot(labels, 4))])
    assert (true.tolist(), predicted.tolist()) == (labels.tolist(), logits.argmax(1).tolist())


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (94, 100, 0.8752, 0.9722)]
)
def test_wilson_gives_the_published_values(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=1e-4)


def test_no_images_and_unknown_labels_are_errors():
    with pytest.raises(DataError, match="found none"):
        evaluate(nn.Identity(), [])
    with pytest.raises(DataError, match="labels from 0 to 1"):
        evaluate(nn.Flatten(), [(torch.zeros(2, 2), torch.tensor([0, 2]))])


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    model[1].eval()

    def fail():
        with eval_mode(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == [True, True, False]


def test_evaluation_moves_no_statistics_and_drops_nothing():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.9))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits, labels = random_outputs(0, 20, 4)
    assert evaluate(model, [(logits, labels)]).accuracy == scores_of(logits, labels).accuracy
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
