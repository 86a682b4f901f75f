"""A teacher: the model of a checkpoint, whose outputs another model learns besides the labels.

`N` images, `C` channels, `H` height, `W` width, `K` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visus.amp import autocast
from visus.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, model_digest, rebuild_model
from visus.errors import CheckpointError, UsageError, first_of
from visus.preprocessing import Preprocessing


@dataclass(frozen=True)
class Teacher:
    """A model in eval mode, and how to give it the images of its student."""

    model: nn.Module
    preprocessing: Preprocessing
    """Its own."""
    student: Preprocessing
    amp: str = "off"

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """What it says, `[N, K]` in float32, of `images [N, C, H, W]` that are normalised for the student."""
        with autocast(self.amp, images.device):
            logits: Tensor = self.model(normalised_again(images, self.student, self.preprocessing))
        return logits.float()


def find_teacher(path: str, digest: str | None) -> tuple[str, str]:
    """The absolute path of the checkpoint that `path` names, and the digest of its weights.

    `CheckpointError` where that is not `digest`, if there is one.
    """
    checkpoint = load_checkpoint(find_checkpoint(path))
    return str(checkpoint.path.resolve()), _checked_digest(checkpoint, digest)


def load_teacher(
    path: str,
    digest: str | None,
    classes: Sequence[str],
    student: Preprocessing,
    device: torch.device,
    amp: str = "off",
) -> Teacher:
    """The teacher in the checkpoint or run at `path`, for a student of these `classes` and images.

    `UsageError` where its classes or channels are others, `CheckpointError` where its weights do not have this `digest`.
    """
    checkpoint = load_checkpoint(find_checkpoint(path))
    _checked_digest(checkpoint, digest)
    if checkpoint.classes != tuple(classes):
        raise UsageError(
            f"--distill {path}: expected a teacher of the classes {first_of(list(classes))}, "
            f"found {first_of(list(checkpoint.classes))}; train one on this data"
        )
    own = checkpoint.preprocessing
    if own.channels != student.channels and student.channels != 1:
        raise UsageError(
            f"--distill {path}: expected a teacher for images of {student.channels} channels, found {own.channels}; "
            "train one on this data"
        )
    model = rebuild_model(checkpoint).to(device).to(memory_format=torch.channels_last)
    return Teacher(model.requires_grad_(False).eval(), own, student, amp)


def normalised_again(images: Tensor, before: Preprocessing, after: Preprocessing) -> Tensor:
    """`images [N, C, H, W]`, normalised as `before` says, as `after` would have them: normalised, resized, grey repeated."""
    changed = images
    if before.size != after.size and len(images):
        changed = F.interpolate(changed, after.size, mode="bilinear", antialias=True)
    if (before.mean, before.std, before.channels) == (after.mean, after.std, after.channels):
        return changed
    mean, std, new_mean, new_std = (
        torch.tensor(values, device=images.device)[:, None, None]
        for values in (before.mean, before.std, after.mean, after.std)
    )
    # In this order a grey image meets the three statistics of a teacher for colours, and becomes three channels.
    return (changed * std + mean).sub(new_mean).div(new_std).contiguous(memory_format=torch.channels_last)


def _checked_digest(checkpoint: Checkpoint, digest: str | None) -> str:
    found = model_digest(checkpoint.model_tensors)
    if digest not in (None, found):
        raise CheckpointError(
            f"{checkpoint.path}: expected the teacher that the run began with (digest {digest}), found another ({found}); "
            "put the old one back, or start a new run"
        )
    return found
