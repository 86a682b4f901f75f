"""Value and gradient against torch, and against the formula written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy
from torchvision.ops import sigmoid_focal_loss

from visus.ops.losses import (
    SoftTargetCrossEntropy,
    balanced_class_weights,
    binary_cross_entropy_sum,
    cross_entropy_sum,
    distillation_sum,
    focal_sum,
)


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


@given(
    st.sampled_from(["hard", "one-hot", "soft"]), st.floats(0, 0.9), st.integers(0, 1000), st.integers(1, 9)
)
def test_binary_cross_entropy_is_that_of_timm(kind, smoothing, seed, n):
    logits, targets = logits_and_targets(kind, n=n, seed=seed)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    total, normaliser = binary_cross_entropy_sum(ours, targets, label_smoothing=smoothing)
    # What timm smooths by itself are classes; soft targets come to it smoothed, by its own mixup.
    given = targets if kind == "hard" else targets * (1 - smoothing) + smoothing / 5
    expected = BinaryCrossEntropy(smoothing, sum_classes=True)(theirs, given)
    (total / normaliser).backward()
    expected.backward()
    torch.testing.assert_close(total / normaliser, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_mixed_targets_are_smoothed_as_by_timm():
    labels, share, smoothing = torch.tensor([0, 3, 2]), 0.3, 0.2
    theirs = mixup_target(labels, 5, share, smoothing)
    mixed = F.one_hot(labels, 5) * share + F.one_hot(labels.flip(0), 5) * (1 - share)
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    total, normaliser = binary_cross_entropy_sum(logits, mixed, label_smoothing=smoothing)
    torch.testing.assert_close(total / normaliser, BinaryCrossEntropy(sum_classes=True)(logits, theirs))


@given(st.floats(0, 5), st.integers(0, 1000))
def test_focal_loss_of_two_classes_is_that_of_torchvision(gamma, seed):
    logits, targets = logits_and_targets("hard", k=2, seed=seed)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    difference = theirs[:, 1] - theirs[:, 0]
    expected = sigmoid_focal_loss(difference, targets.float(), alpha=-1, gamma=gamma, reduction="mean")
    total, normaliser = focal_sum(ours, targets, gamma=gamma)
    (total / normaliser).backward()
    expected.backward()
    torch.testing.assert_close(total / normaliser, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_focal_loss_is_the_formula_and_without_gamma_cross_entropy():
    logits, targets = logits_and_targets("hard")
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1])
    p = logits.softmax(1)[torch.arange(7), targets]
    torch.testing.assert_close(focal_sum(logits, targets)[0], -((1 - p) ** 2 * p.log()).sum())
    total, normaliser = focal_sum(logits, targets, gamma=0, class_weights=weights)
    torch.testing.assert_close(total / normaliser, F.cross_entropy(logits, targets, weights))


def test_a_sure_and_right_model_has_a_focal_loss_and_gradient_of_nothing():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    total, _ = focal_sum(logits, torch.tensor([0]))
    total.backward()
    assert total == 0
    assert torch.equal(logits.grad, torch.zeros(1, 2))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distillation_is_the_formula_of_hinton(kind):
    logits, targets = logits_and_targets(kind)
    teacher = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    total, normaliser = distillation_sum(
        ours, teacher, targets, temperature=3, weight=0.7, label_smoothing=0.1
    )
    soft = F.kl_div((theirs / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="batchmean")
    expected = 0.3 * F.cross_entropy(theirs, targets, label_smoothing=0.1) + 0.7 * 9 * soft
    (total / normaliser).backward()
    expected.backward()
    torch.testing.assert_close(total / normaliser, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_student_that_says_the_same_has_nothing_to_learn_from_its_teacher():
    logits, targets = logits_and_targets("hard")
    total, _ = distillation_sum(logits, logits, targets, weight=1.0)
    torch.testing.assert_close(total, torch.tensor(0.0), atol=1e-6, rtol=0)
