"""All that a resume needs, and its way into a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from visus.checkpoint import (
    Tensors,
    iterate_parts,
    load_tensors,
    pack_optimizer,
    restore_optimizer,
    with_prefix,
)
from visus.errors import CheckpointError
from visus.ops.averaging import ExponentialAverage, TailAverage


@dataclass
class TrainingState:
    """All that a resume needs. A new field is saved by being here."""

    model: nn.Module
    optimizer: Optimizer
    average: ExponentialAverage | TailAverage | None = None
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    epoch: int = 0
    """Epochs that are finished."""
    step: int = 0
    """Optimizer updates made."""
    epoch_step: int = 0
    """Updates made in the epoch that is not finished."""
    epoch_seconds: float = 0.0
    """Wall time of it."""
    totals: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    """Its sums so far: loss, normaliser of the loss, correct predictions, images."""
    images: int = 0
    """Images trained on in finished epochs."""
    seconds: float = 0.0
    """Wall time of the training phases of finished epochs."""
    skipped_steps: int = 0
    """Updates that were left out, since their loss or gradient was not finite."""
    best_accuracy: float | None = None
    best_epoch: int | None = None
    """From 1."""

    @property
    def weights(self) -> nn.Module:
        """The weights that are validated and kept as the best: the averaged ones where there are any."""
        return self.average.module if self.average else self.model


def pack(state: TrainingState) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a state by their names in the checkpoint, and the rest as plain values."""
    optimizer_tensors, optimizer_plain = pack_optimizer(state.optimizer, state.model)
    parts: dict[str, Tensors] = {"model": state.model.state_dict(), "optimizer": optimizer_tensors}
    if state.average:
        parts["ema"] = state.average.module.state_dict()
    parts["state"] = {f.name: v for f in fields(state) if isinstance(v := getattr(state, f.name), Tensor)}
    plain = {**plain_values(state), "optimizer": optimizer_plain, "scaler": state.scaler.state_dict()}
    return dict(iterate_parts(parts)), plain


def restore(state: TrainingState, tensors: Tensors, plain: dict[str, Any], origin: object) -> None:
    """Bring a freshly made `state` to where `pack` found it; `CheckpointError` naming `origin` where it does not fit."""
    _check(state, tensors, plain, origin)
    load_tensors(state.model, with_prefix(tensors, "model."), origin)
    if state.average:
        load_tensors(state.average.module, with_prefix(tensors, "ema."), origin)
    optimizer = with_prefix(tensors, "optimizer.")
    try:
        restore_optimizer(state.optimizer, state.model, optimizer, plain["optimizer"], origin)
        if plain["scaler"]:
            state.scaler.load_state_dict(plain["scaler"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{origin}: the state of the optimizer is not one that visus wrote: {error}"
        ) from None
    for name, tensor in with_prefix(tensors, "state.").items():
        setattr(state, name, tensor)
    for name in plain_values(state):
        setattr(state, name, plain[name])


def _check(state: TrainingState, tensors: Tensors, plain: dict[str, Any], origin: object) -> None:
    """`CheckpointError` for fields that there are not, or of another kind."""
    for name, tensor in with_prefix(tensors, "state.").items():
        own = getattr(state, name, None)
        if not isinstance(own, Tensor) or own.shape != tensor.shape:
            raise CheckpointError(f"{origin}: the state of the run is not one that visus wrote: {name}")
    scaler = plain.get("scaler")
    if not isinstance(scaler, dict) or not all(isinstance(each, int | float) for each in scaler.values()):
        raise CheckpointError(f"{origin}: the state of the run is not one that visus wrote: scaler")
    for name, own in plain_values(state).items():
        value = plain.get(name)
        missing = value is None and own is not None
        number = isinstance(value, int if isinstance(own, int) else int | float) and value >= 0
        if missing or not (value is None or number):
            raise CheckpointError(f"{origin}: the state of the run is not one that visus wrote: {name}")


def plain_values(state: TrainingState) -> dict[str, Any]:
    """The counts and scores of a state."""
    values = {f.name: getattr(state, f.name) for f in fields(state)}
    return {name: v for name, v in values.items() if v is None or isinstance(v, int | float)}
