"""Losses as a sum and its normaliser, so that batches of unequal size or weight add up rightly.

`N` images, `K` classes. Targets are class indices `[N]` (int64) or distributions over the classes `[N, K]` (one-hot, mixed, soft).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cross_entropy_sum(
    logits: Tensor, targets: Tensor, *, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of `logits [N, K]` in nats, summed over the images, and what to divide it by for the mean.

    The quotient is torch's `cross_entropy`: with class weights `[K]`, hard targets are divided by the sum of their weights and soft
    ones by N. Computed in float32 at least. `label_smoothing` is in [0, 1)
    (Szegedy et al., Rethinking the Inception Architecture, 2016).
    """
    logits = _precise(logits)
    if targets.is_floating_point():
        targets = targets.to(logits.dtype)
    total = F.cross_entropy(
        logits, targets, weight=class_weights, reduction="sum", label_smoothing=label_smoothing
    )
    if class_weights is None or targets.is_floating_point():
        return total, total.new_full((), len(logits))
    return total, class_weights[targets].sum()


def binary_cross_entropy_sum(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """A yes or no for each class of `logits [N, K]`: binary cross-entropy in nats, summed over classes and images, and N.

    The quotient is that of timm's `BinaryCrossEntropy` with `sum_classes`; smoothed, targets are 1 - E + E / K for the class of an
    image and E / K for others, with E `label_smoothing`, and in proportion where they are soft `[N, K]`, as timm's mixup smooths.
    Wightman et al., ResNet Strikes Back, 2021.
    """
    logits = _precise(logits)
    classes = logits.shape[1]
    soft = targets if targets.is_floating_point() else F.one_hot(targets, classes)
    smoothed = soft.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / classes
    total = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="sum")
    return total, total.new_full((), len(logits))


def focal_sum(
    logits: Tensor, targets: Tensor, *, gamma: float = 2.0, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Focal loss in its softmax form, summed over the images: -(1 - p)^gamma log p, with p that of the class `targets [N]`.

    With `gamma` 0 this and its normaliser are those of cross-entropy; `class_weights [K]` are the paper's alpha. For two classes it
    is torchvision's `sigmoid_focal_loss` of the difference of the logits. Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    log_p = _precise(logits).log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
    losses = -((-torch.expm1(log_p)) ** gamma) * log_p
    if class_weights is None:
        return losses.sum(), losses.new_full((), len(losses))
    weights = class_weights[targets]
    return (weights * losses).sum(), weights.sum()


def distillation_sum(
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 4.0,
    weight: float = 0.9,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """What a student's `logits [N, K]` lack of their teacher's and of the targets, summed over the images, and N.

    (1 - `weight`) of the cross-entropy, smoothed, and `weight` T^2 of the Kullback-Leibler divergence between both softened by T,
    the `temperature`; T^2 makes up for the smaller gradients. Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
    """
    total, normaliser = cross_entropy_sum(logits, targets, label_smoothing=label_smoothing)
    ours, theirs = ((_precise(each) / temperature).log_softmax(dim=1) for each in (logits, teacher_logits))
    divergence = F.kl_div(ours, theirs, reduction="sum", log_target=True)
    return (1 - weight) * total + weight * temperature**2 * divergence, normaliser


class SoftTargetCrossEntropy(nn.Module):
    """Mean cross-entropy for soft, one-hot or hard targets; equal to torch's, value and gradient."""

    class_weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of `logits [N, K]` for `targets [N]` or `[N, K]`, a scalar in nats."""
        total, normaliser = cross_entropy_sum(
            logits, targets, class_weights=self.class_weights, label_smoothing=self.label_smoothing
        )
        return total / normaliser


def balanced_class_weights(counts: Tensor) -> Tensor:
    """Weights `[K]` that make every class weigh the same: n / (K * count); 0 for a class without images.

    Their mean over the n images is 1 where every class has some.

    King and Zeng, Logistic Regression in Rare Events Data, 2001; scikit-learn's "balanced".
    """
    counts = counts.double()
    weights = counts.sum() / (len(counts) * counts)
    return torch.where(counts > 0, weights, 0.0).float()


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
