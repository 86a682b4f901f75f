"""Training the head alone on features that were computed once: the backbone is frozen and the images do not change.

`N` images, `D` features, `K` classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from visus.config import TrainConfig
from visus.data.batching import Batch, EvaluationBatches, TrainingBatches
from visus.devices import available_memory_bytes
from visus.features import embed
from visus.models.adapt import parse_freeze, train_mode
from visus.models.heads import head_layers

_TRIED = 4
_TOLERANCE = 1e-3
"""Of logits, relative and absolute: another order of additions makes less of a difference, dropout or a second head more."""


@dataclass(frozen=True)
class FeatureBatches:
    """The batches of `batches`, with features `[N, D]` in the place of their images."""

    batches: TrainingBatches
    features: Tensor

    def __len__(self) -> int:
        return len(self.batches)

    def __call__(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Those of `epoch` (from 0), from batch `start` on."""
        for whole in self.batches.positions(epoch, start):
            own = torch.from_numpy(np.array_split(whole, self.batches.world_size)[self.batches.rank])
            labels = torch.from_numpy(self.batches.split.labels)
            yield Batch(self.features[own], labels[own], own)


def trains_head_alone(config: TrainConfig) -> bool:
    """Whether `--freeze backbone` is asked for."""
    freezing = parse_freeze(config.freeze)
    return not config.lora and freezing.stages is None and freezing.every is None


def compute_features(
    model: nn.Module,
    config: TrainConfig,
    train: TrainingBatches,
    val: EvaluationBatches,
    *,
    device: torch.device,
    say: Callable[[str], object],
) -> tuple[FeatureBatches, list[Batch]] | None:
    """Batches of features to train and to validate on, for a model within `fed_with_features`.

    `None`, after a sentence to `say`, where training would not be the same with them: images that change from epoch to epoch, a
    head that is more than a layer at the end, more features than half of the memory holds.
    """
    watched = "its teacher looks at the images" if config.distill else None
    reason = watched or _changing(train) or _unsuited(model, train, val, device)
    if reason:
        say(f"the frozen backbone runs in every epoch, since {reason}")
        return None
    began = time.perf_counter()
    whole = EvaluationBatches(train.split, val.preprocessing, val.batch_size, val.rank, val.world_size)
    features, val_features = (
        torch.from_numpy(embed(model, batches, device=device, amp=config.amp)) for batches in (whole, val)
    )
    seconds = time.perf_counter() - began
    count = len(features) + len(val_features)
    say(
        f"the frozen backbone ran once, on {count} images ({seconds:.1f}s); each epoch trains the head on what it said"
    )
    return FeatureBatches(train, features), _in_blocks(val, val_features)


@contextmanager
def fed_with_features(*models: nn.Module) -> Iterator[None]:
    """`models` take the input of their head `[N, D]` in the place of images, and are otherwise what they are."""
    for model in models:
        model.__dict__["forward"] = _head_of(model).forward
    try:
        yield
    finally:
        for model in models:
            model.__dict__.pop("forward", None)


def _head_of(model: nn.Module) -> nn.Module:
    return model.get_submodule(head_layers(model)[0])


def _changing(train: TrainingBatches) -> str | None:
    if train.transform:
        return "a transform changes the images"
    if train.augment != "none" or train.mixup or train.cutmix or train.erasing:
        return "augmentation changes the images; with --augment none, and no mixing or erasing, it would run once"
    return None


def _unsuited(
    model: nn.Module, train: TrainingBatches, val: EvaluationBatches, device: torch.device
) -> str | None:
    """Why the head cannot be trained by itself, tried on a few images in training mode."""
    head = _head_of(model)
    # A hook may do anything with what the model says.
    if len(head_layers(model)) > 1 or model._forward_hooks or not isinstance(head, nn.Linear):
        return "its head is not one linear layer"
    few = next(iter(EvaluationBatches(val.split, val.preprocessing, _TRIED)))
    features = torch.from_numpy(embed(model, [few], device=device)).to(device)
    if 4 * features.shape[1] * (len(train.split) + len(val.split)) > available_memory_bytes() // 2:
        return "its features would not fit into memory"
    if features.shape[1] != head.in_features:
        return "its head is not the last of its layers"
    train_mode(model)
    with torch.no_grad():
        expected, found = model(few.images.to(device)), head(features)
    same = found.shape == expected.shape and torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
    return None if same else "something comes after its head, or is drawn at random before it"


def _in_blocks(val: EvaluationBatches, features: Tensor) -> list[Batch]:
    labels, places = torch.from_numpy(val.split.labels), torch.arange(len(features))
    parts = (torch.split(each, val.batch_size) for each in (features, labels, places))
    return [Batch(*part) for part in zip(*parts, strict=True)]
