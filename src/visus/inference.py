"""Running a model to see what it says: the one place that puts a model into eval mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from visus.amp import autocast


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode; every module gets its own mode back, also when something fails."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def predict_logits(
    model: nn.Module, batches: Iterable[Any], *, device: torch.device | str = "cpu", amp: str = "off"
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each `(images [N, C, H, W], targets)` of `batches`: logits `[N, K]` in float32 and the targets, both on `device`.

    `amp` is `off`, `bf16` or `fp16`. Targets are passed on as they are, so that positions may take their place.
    """
    precision = autocast(amp, torch.device(device))
    with eval_mode(model), torch.inference_mode():
        for images, targets in batches:
            layout = torch.channels_last if images.dim() == 4 else torch.preserve_format
            with precision:
                logits = model(images.to(device, non_blocking=True, memory_format=layout))
            yield logits.float(), targets.to(device, non_blocking=True)
