"""Loss and accuracy of a model after each epoch: nothing is loaded for it that only intervals need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from visus.display import Display
from visus.inference import predict_logits
from visus.outcomes import follow, how_many


class Validation(NamedTuple):
    """What the loop needs of an epoch."""

    n: int
    loss: float
    accuracy: float


def validate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    device: torch.device | str = "cpu",
    amp: str = "off",
    display: Display | None = None,
) -> Validation:
    """Loss and accuracy alone, those of `evaluate` digit for digit, at no cost but the model's."""
    outputs = predict_logits(model, batches, device=device, amp=amp)
    found = [
        (each.labels, each.predictions, each.losses)
        for each in follow(outputs, display=display, iterations=how_many(batches))
    ]
    labels, predictions, losses = (torch.cat(column).cpu().numpy() for column in zip(*found, strict=True))
    return Validation(len(labels), float(losses.mean()), float((labels == predictions).mean()))
