"""Running a model to see what it says: the one place that puts a model into eval mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from visus.amp import autocast
from visus.data.batching import EvaluationBatches
from visus.devices import copy_to, exact_device
from visus.freed_memory import kept_freed_memory


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
    model: nn.Module,
    batches: Iterable[Any],
    *,
    device: torch.device | str = "cpu",
    amp: str = "off",
    tta: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each `(images [N, C, H, W], targets)` of `batches`: logits `[N, K]` in float32 and the targets, both on `device`, or
    on the CPU where that is one of Apple's GPUs.

    `amp` is `off`, `bf16` or `fp16`. Targets are passed on as they are, so that positions may take their place. Where `batches` are
    dealt to several processes, each gets the outputs of all, in their order. With `tta`, augmentation when testing, the logits are
    the logarithms of the mean probabilities of an image and its mirror image.
    """
    device = torch.device(device)
    with kept_freed_memory(), eval_mode(model), torch.inference_mode():
        own = _predict(model, batches, device, autocast(amp, device), tta)
        if isinstance(batches, EvaluationBatches) and batches.world_size > 1:
            yield from _of_all(own, len(batches), batches.world_size, exact_device(device))
        else:
            yield from own


def _predict(
    model: nn.Module,
    batches: Iterable[Any],
    device: torch.device,
    precision: AbstractContextManager[Any],
    tta: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    exact = exact_device(device)
    for images, targets in batches:
        images = copy_to(images, device)
        with precision:
            logits = model(images)
            mirrored = model(images.flip(-1)) if tta else None
        logits = logits.float() if mirrored is None else _mean_of_two(logits.float(), mirrored.float())
        yield logits.to(exact), copy_to(targets, exact)


def _mean_of_two(logits: Tensor, others: Tensor) -> Tensor:
    """The logarithms of the means of the probabilities that two `[N, K]` stand for."""
    return torch.logaddexp(logits.log_softmax(dim=1), others.log_softmax(dim=1)) - math.log(2)


def _of_all(
    own: Iterator[tuple[Tensor, Tensor]], blocks: int, world_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The outputs of all processes, block by block: so every sum over them is the same whatever the number of processes."""
    for _ in range(0, blocks, world_size):
        mine = next(own, None)
        found: list[Any] = [None] * world_size
        dist.all_gather_object(found, None if mine is None else [each.cpu() for each in mine])
        for logits, targets in filter(None, found):
            yield logits.to(device), targets.to(device)
