"""Value and gradient against torch, and against the formula written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from visus.ops.losses import SoftTargetCrossEntropy, balanced_class_weights, cross_entropy_sum


def logits_and_targets(kind, n=7, k=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator)
    hard = torch.randint(k, (n,), generator=generator)
    soft = torch.rand(n, k, generator=generator).softmax(dim=1)
    return logits, {"hard": hard, "one-hot": F.one_hot(hard, k).float(), "soft": soft}[kind]


@given(
    st.sampled_from(["hard", "one-hot", "soft"]),
    st.floats(0, 0.9),
    st.booleans(),
    st.integers(0, 1000),
    st.integers(1, 9),
)
def test_it_equals_torch(kind, smoothing, weighted, seed, n):
    logits, targets = logits_and_targets(kind, n=n, seed=seed)
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1]) if weighted else None
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = SoftTargetCrossEntropy(smoothing, weights)(ours, targets)
    expected = F.cross_entropy(theirs, targets, weight=weights, label_smoothing=smoothing)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_one_hot_targets_give_the_formula_of_the_notes():
    logits, targets = logits_and_targets("one-hot")
    by_hand = -(torch.log(torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)) * targets).sum(1).mean()
    torch.testing.assert_close(SoftTargetCrossEntropy()(logits, targets), by_hand)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_parts_of_a_batch_add_up(kind):
    logits, targets = logits_and_targets(kind, n=11)
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1])
    parts = [
        cross_entropy_sum(logits[part], targets[part], class_weights=weights)
        for part in (slice(0, 4), slice(4, 11))
    ]
    whole = SoftTargetCrossEntropy(class_weights=weights)(logits, targets)
    torch.testing.assert_close(sum(p[0] for p in parts) / sum(p[1] for p in parts), whole)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_low_precision_is_raised_to_float32(kind):
    logits, targets = logits_and_targets(kind)
    low = logits.bfloat16()
    total, normaliser = cross_entropy_sum(low, targets)
    assert total.dtype == normaliser.dtype == torch.float32
    torch.testing.assert_close(total, cross_entropy_sum(low.float(), targets)[0])


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_class_weights(torch.tensor([50, 30, 20])), expected, rtol=1e-6)
    assert balanced_class_weights(torch.tensor([3, 0]))[1] == 0
