"""What training makes small, as the settings say: a loss that is a sum and its normaliser.

`N` images, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from visus.config import TrainConfig
from visus.data.batching import Batch
from visus.data.images import Split
from visus.distillation import Teacher, load_teacher
from visus.ops.losses import (
    balanced_class_weights,
    binary_cross_entropy_sum,
    cross_entropy_sum,
    distillation_sum,
    focal_sum,
)
from visus.preprocessing import Preprocessing


def make_loss(
    config: TrainConfig, part: Split, preprocessing: Preprocessing, device: torch.device
) -> Callable[[Tensor, Batch], tuple[Tensor, Tensor]]:
    """The loss of logits `[N, K]` and a batch on `device`, for a run on the training `part`; a teacher is loaded here."""
    if config.distill:
        teacher = load_teacher(
            config.distill, config.distill_digest, part.classes, preprocessing, device, config.amp
        )
        return partial(_distillation, teacher, config.label_smoothing)
    weights = None
    if config.class_weights:
        counts = torch.bincount(torch.from_numpy(part.labels), minlength=len(part.classes))
        weights = balanced_class_weights(counts).to(device)
    functions: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
        "cross-entropy": partial(
            cross_entropy_sum, class_weights=weights, label_smoothing=config.label_smoothing
        ),
        "bce": partial(binary_cross_entropy_sum, label_smoothing=config.label_smoothing),
        "focal": partial(focal_sum, class_weights=weights),
    }
    function = functions[config.loss]
    return lambda logits, batch: function(logits, batch.targets)


def _distillation(
    teacher: Teacher, label_smoothing: float, logits: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    return distillation_sum(
        logits, teacher.logits(batch.images), batch.targets, label_smoothing=label_smoothing
    )
