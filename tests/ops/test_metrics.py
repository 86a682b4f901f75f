import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy

from visus.ops.metrics import accuracy, correct_counts


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(3, 12), st.integers(1, 12))
def test_it_equals_torchmetrics_and_scikit_learn(seed, n, classes, k):
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(n, classes, generator=generator)
    target = torch.randint(classes, (n,), generator=generator)
    k = min(k, classes - 1)
    (count,) = correct_counts(output, target, (k,))
    fraction = multiclass_accuracy(output, target, classes, average="micro", top_k=k)
    torch.testing.assert_close(accuracy(output, target, (k,))[0], fraction)
    labels = np.arange(classes)
    assert count == top_k_accuracy_score(target, output, k=k, labels=labels, normalize=False)


def test_several_k_at_once_as_in_the_notes():
    output = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
    top1, top2, top5 = accuracy(output, torch.tensor([0, 2, 0]), topk=(1, 2, 5))
    assert top1.item() == pytest.approx(1 / 3)
    assert top2.item() == pytest.approx(2 / 3)
    assert top5 == 1


def test_one_hot_targets_count_as_their_class():
    output = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(20) % 4
    assert correct_counts(output, torch.eye(4)[target]) == correct_counts(output, target)


def test_of_equal_outputs_the_first_class_wins():
    output = torch.zeros(3, 3)
    assert [int(count) for count in correct_counts(output, torch.tensor([0, 1, 2]), (1, 2, 3))] == [1, 2, 3]


def test_a_row_with_nan_is_wrong():
    output = torch.tensor([[float("nan"), 1.0, 0.0], [2.0, 1.0, 0.0]])
    assert [int(count) for count in correct_counts(output, torch.tensor([1, 0]), (1, 2, 3))] == [1, 1, 2]
