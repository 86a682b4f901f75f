"""The loss that the settings ask for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visus.config import make_config
from visus.data.arrays import array_split
from visus.data.batching import Batch, measure_preprocessing
from visus.objective import make_loss
from visus.ops.losses import binary_cross_entropy_sum, focal_sum

LABELS = np.array([0] * 6 + [1] * 3 + [2])
PART = array_split("train", np.zeros((10, 8, 8), np.uint8), LABELS, ["a", "b", "c"], "x")
RECORD = measure_preprocessing(PART)
# As scikit-learn's "balanced".
WEIGHTS = torch.tensor([10 / 18, 10 / 9, 10 / 3])
LOGITS = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
HARD = torch.from_numpy(LABELS)
SOFT = F.one_hot(HARD, 3) * 0.7 + 0.1


def mean_loss(targets, **settings):
    loss = make_loss(make_config(data="x", **settings), PART, RECORD, torch.device("cpu"))
    total, normaliser = loss(LOGITS, Batch(torch.zeros(10, 1, 8, 8), targets, torch.arange(10)))
    return total / normaliser


@pytest.mark.parametrize("targets", [HARD, SOFT])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_that_of_torch(targets, smoothing, weighted):
    found = mean_loss(targets, label_smoothing=smoothing, class_weights=weighted)
    weights = WEIGHTS if weighted else None
    torch.testing.assert_close(
        found, F.cross_entropy(LOGITS, targets, weight=weights, label_smoothing=smoothing)
    )


def test_class_weights_are_1_in_the_mean_of_the_training_images():
    assert WEIGHTS[HARD].mean() == pytest.approx(1)


def test_the_others_are_those_of_their_name():
    total, n = binary_cross_entropy_sum(LOGITS, HARD, label_smoothing=0.1)
    torch.testing.assert_close(mean_loss(HARD, loss="bce", label_smoothing=0.1), total / n)
    total, n = focal_sum(LOGITS, HARD, class_weights=WEIGHTS)
    torch.testing.assert_close(mean_loss(HARD, loss="focal", class_weights=True), total / n)
    assert mean_loss(HARD, loss="focal") < mean_loss(HARD)
