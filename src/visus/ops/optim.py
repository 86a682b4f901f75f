"""Optimizers by name: SGD with Nesterov momentum, AdamW, and all of timm's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim import Optimizer

from visus.errors import UsageError, unknown_name

_FUSED_ON = {"cpu", "cuda", "mps"}
_KRON = "draws random numbers of its own, so that a run could not go on to the same bits"
_UNSUITED = {
    "adahessian": "needs second derivatives, which training here does not take",
    **dict.fromkeys(("kron", "kronc", "kronw"), _KRON),
}
"""Of timm's; why they are refused."""
_DEFAULTS = {"sgd": (0.1, 5e-4), "adamw": (1e-3, 1e-2)}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class OptimizerSettings:
    """What follows the gradient."""

    optimizer: str = "sgd"
    """`sgd` (with Nesterov momentum), `adamw`, or a name of timm's."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] | None = None
    """Learning rate before the schedule; 0.1 for sgd, 1e-3 for adamw, the optimizer's own for others; `auto`: found by `train`."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd, and of those of timm's that have one."""
    weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """5e-4 for sgd, 1e-2 for adamw, 0 for others."""
    weight_decay_on: Literal["all", "weights"] = "all"
    """`weights` spares norms, biases, and what the model itself wants to be spared, such as position embeddings."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Factor on the learning rate from each layer to the one before it, so that those near the input learn the slowest."""
    backbone_factor: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate of all but the head."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient of all parameters together; larger ones are scaled down."""


def resolve_optimizer(settings: OptimizerSettings) -> OptimizerSettings:
    """With the defaults that depend on the optimizer filled in; timm's own rate stays `None`."""
    lr, weight_decay = _DEFAULTS.get(settings.optimizer, (None, 0.0))
    return dataclasses.replace(
        settings,
        lr=lr if settings.lr is None else settings.lr,
        weight_decay=weight_decay if settings.weight_decay is None else settings.weight_decay,
    )


def is_optimizer(name: str) -> bool:
    """Whether there is one of that name."""
    if name in _DEFAULTS:
        return True
    from timm.optim import list_optimizers

    return name in list_optimizers()


def takes_momentum(name: str) -> bool:
    """Whether the optimizer of that name has a momentum to be set; so has a name that there is not, for others to refuse."""
    if name in _DEFAULTS:
        return name == "sgd"
    from timm.optim import get_optimizer_info

    return not is_optimizer(name) or bool(get_optimizer_info(name).has_momentum)


def make_optimizer(
    model: nn.Module, settings: OptimizerSettings, factors: Mapping[str, float] | None = None
) -> Optimizer:
    """The optimizer over those parameters of `model` that are trained, fused where torch can.

    `factors` on the learning rate, by the names of the parameters, and the weight decay make groups, that of the head first.
    `UsageError` for an unknown name (with the nearest) or a model in which nothing is trained.
    """
    settings = resolve_optimizer(settings)
    if settings.lr == "auto":
        raise UsageError(
            "expected a learning rate, found auto; find one with range_test, or train with visus.train"
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError("expected parameters to train, found all of them frozen; unfreeze some")
    weight_decay = settings.weight_decay or 0.0
    groups = _groups(model, weight_decay, settings.weight_decay_on, factors or {})
    fused = all(p.device.type in _FUSED_ON and p.is_floating_point() for p in parameters)
    if settings.optimizer == "sgd":
        momentum, lr = settings.momentum, settings.lr or 0.0
        nesterov = momentum > 0
        optimizer: Optimizer = torch.optim.SGD(
            groups, lr, momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused
        )
    elif settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, settings.lr or 0.0, weight_decay=weight_decay, fused=fused)
    else:
        optimizer = _make_timm_optimizer(groups, settings, weight_decay)
    # Only now is the rate known of those that have one of their own.
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("factor")
    return optimizer


def match_layout(optimizer: Optimizer) -> None:
    """Give each buffer of a parameter's shape the parameter's device and memory layout.

    torch's fused optimizers compute garbage, without an error, where a buffer is NCHW and its parameter NHWC.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def complete_buffers(optimizer: Optimizer) -> None:
    """Give a trained parameter without momentum one of zero where others of its group have one, as when it was thawed later.

    That changes no update, but torch's fused SGD fails on such a mixture.
    """
    for group in optimizer.param_groups:
        states = [(parameter, optimizer.state.get(parameter, {})) for parameter in group["params"]]
        if any(state.get("momentum_buffer") is not None for _, state in states):
            for parameter, state in states:
                if parameter.requires_grad and state.get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _groups(
    model: nn.Module, weight_decay: float, weight_decay_on: str, factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The trained parameters by their factor and weight decay; the first group is one whose rate is that of the settings."""
    state_spared: Any = getattr(model, "no_weight_decay", tuple)
    spared = state_spared()
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = weight_decay_on == "all" or (parameter.dim() > 1 and name not in spared)
            key = factors.get(name, 1.0), weight_decay if decays else 0.0
            found.setdefault(key, []).append(parameter)
    return [
        {"params": found[key], "factor": key[0], "weight_decay": key[1]}
        for key in sorted(found, reverse=True)
    ]


def _make_timm_optimizer(
    groups: list[dict[str, Any]], settings: OptimizerSettings, weight_decay: float
) -> Optimizer:
    from timm.optim import create_optimizer_v2, list_optimizers

    known = list_optimizers()
    if settings.optimizer not in known:
        raise unknown_name("optimizer", settings.optimizer, ["sgd", "adamw", *known])
    if reason := _UNSUITED.get(settings.optimizer):
        raise UsageError(f"--optimizer {settings.optimizer} {reason}; take another, such as adamw or muon")
    try:
        optimizer: Optimizer = create_optimizer_v2(
            groups,
            opt=settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=weight_decay,
        )
    # An optimizer that has no rate of its own, refuses a value or wants another library says so in its own way.
    except (AssertionError, ImportError, TypeError, ValueError) as error:
        if "required optimization parameter lr" in str(error):
            raise _without_rate(settings) from None
        raise UsageError(
            f"--optimizer {settings.optimizer}: {error}; give another --lr, --momentum or --weight-decay, or take another one"
        ) from None
    # Adafactor would go by a schedule of its own.
    if any(group["lr"] is None for group in optimizer.param_groups):
        raise _without_rate(settings)
    return optimizer


def _without_rate(settings: OptimizerSettings) -> UsageError:
    return UsageError(f"--optimizer {settings.optimizer}: has no learning rate of its own; give --lr")
