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
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if targets.is_floating_point():
        targets = targets.to(logits.dtype)
    total = F.cross_entropy(
        logits, targets, weight=class_weights, reduction="sum", label_smoothing=label_smoothing
    )
    if class_weights is None or targets.is_floating_point():
        return total, total.new_full((), len(logits))
    return total, class_weights[targets].sum()


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

    King and Zeng, Logistic Regression in Rare Events Data, 2001; scikit-learn's "balanced".
    """
    counts = counts.double()
    weights = counts.sum() / (len(counts) * counts)
    return torch.where(counts > 0, weights, 0.0).float()
