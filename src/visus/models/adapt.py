"""What of a model is trained, and how fast: freezing by stages, thawed by and by, and learning rates by depth."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from torch import nn

from visus.errors import UsageError
from visus.models.heads import head_layers

_CONTAINERS = {
    *("features", "layers", "blocks", "stages", "transformers", "trunk_output", "encoder", "encoder.layers")
}
"""Modules whose children are stages, where a model does not say itself what its stages are."""
_EXPECTED = "expected none, backbone, a number of stages or gradual:EPOCHS, with or without ,batchnorm"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AdaptSettings:
    """What of a model is trained."""

    freeze: str = "none"
    """`backbone` (all but the head), a number of stages from the input, `gradual:E` (the backbone, one stage less
    every E epochs), `none`; with `,batchnorm`, or that alone, batch norm as well, wherever it is."""
    lora: int | None = Field(default=None, ge=1)
    """Rank of the changes that linear layers learn while they are frozen; the head is trained as a whole."""

    @field_validator("freeze")
    @classmethod
    def _is_understood(cls, text: str) -> str:
        parse_freeze(text)
        return text

    @field_validator("lora")
    @classmethod
    def _freezes_by_itself(cls, rank: int | None, others: ValidationInfo) -> int | None:
        if rank and others.data.get("freeze", "none") != "none":
            raise ValueError("freezes all but the head by itself; leave --freeze out")
        return rank


@dataclass(frozen=True)
class Freezing:
    """What is frozen, understood."""

    stages: int | None = 0
    """From the input; `None` for all but the head."""
    every: int | None = None
    """Epochs after which one stage more is trained."""
    batchnorm: bool = False


def parse_freeze(text: str) -> Freezing:
    """`backbone`, `2`, `gradual:3`, `none`, `batchnorm` or `2,batchnorm`; `ValueError` for anything else."""
    match = re.fullmatch(r"(?:(none|backbone|\d+|gradual:[1-9]\d*)(,batchnorm)?|(batchnorm))", text)
    if not match:
        raise ValueError(_EXPECTED)
    what, batchnorm = match[1] or "none", bool(match[2] or match[3])
    if what.startswith("gradual:"):
        return Freezing(None, int(what.removeprefix("gradual:")), batchnorm)
    counts: dict[str, int | None] = {"none": 0, "backbone": None}
    return Freezing(counts[what] if what in counts else int(what), None, batchnorm)


def depths(model: nn.Module, *, fine: bool = False) -> dict[str, int]:
    """For each parameter how deep it lies, from 0 at the input on.

    timm's models say it themselves, with `fine` block by block. Of others each child is a stage, each child of a container such as
    `features` or `encoder.layers` too; what holds vectors only (a norm) belongs to the stage before it, the head lies deepest.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher:
        from timm.models import group_parameters

        try:
            groups = matcher(coarse=not fine)
        except AssertionError:
            # RDNets have fine groups only.
            groups = matcher(coarse=False)
        found: dict[str, int] = group_parameters(model, groups, reverse=True)
        return {name: found[name] for name, _ in model.named_parameters()}
    head = _prefixes(head_layers(model))
    body = [name for name, _ in model.named_parameters() if not name.startswith(head)]
    order = {stage: depth for depth, stage in enumerate(_stage_names(model, body))}
    result = {}
    depth = 0
    for name in body:
        depth = order.get(_stage_name(name), depth)
        result[name] = depth
    return {name: result.get(name, len(order)) for name, _ in model.named_parameters()}


def stages(model: nn.Module) -> list[list[str]]:
    """The names of the parameters of each stage, from the input to the output, without those of the head."""
    head = _prefixes(head_layers(model))
    found: dict[int, list[str]] = {}
    for name, depth in depths(model).items():
        if not name.startswith(head):
            found.setdefault(depth, []).append(name)
    return [found[depth] for depth in sorted(found)]


def frozen_names(model: nn.Module, freezing: Freezing, epoch: int) -> set[str]:
    """The parameters that are not trained in `epoch` (from 0).

    `UsageError` where the model has fewer stages than are to be frozen, or no batch norm.
    """
    if freezing == Freezing():
        return set()
    found = stages(model)
    count = len(found) if freezing.stages is None else freezing.stages
    if count > len(found):
        raise UsageError(
            f"--freeze {count}: expected at most the {len(found)} stages that the model has before its head; "
            "freeze fewer, or backbone for all of them"
        )
    if freezing.every:
        count = max(0, count - epoch // freezing.every)
    names = {name for stage in found[:count] for name in stage}
    norms = _batchnorm_names(model) if freezing.batchnorm else set()
    if freezing.batchnorm and not norms:
        raise UsageError(
            "--freeze batchnorm: expected a model with batch norm, found none; leave batchnorm out"
        )
    return names | norms


def freezer(model: nn.Module, setting: str, say: Callable[[str], object] = str) -> Callable[[int], None]:
    """A function that freezes and thaws the parameters of `model` as is right for an epoch (from 0), and says what has changed."""
    freezing = parse_freeze(setting)
    counted: list[int] = []

    def prepare(epoch: int) -> None:
        frozen = frozen_names(model, freezing, epoch)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if frozen and counted != [trained]:
            say(
                f"epoch {epoch + 1} trains {trained:,} of {sum(p.numel() for p in model.parameters()):,} parameters"
            )
        counted[:] = [trained]

    return prepare


def train_mode(model: nn.Module) -> None:
    """Put `model` into training mode, but what is frozen into evaluation mode: batch norm then keeps its statistics.

    That is every module whose parameters are all frozen, and whatever comes before the first layer that is trained (dropout, say).
    """
    model.train()
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    begun = False
    for module in model.modules():
        begun = begun or any(p.requires_grad for p in module.parameters(recurse=False))
        own = [p.requires_grad for p in module.parameters()]
        if not any(own) and (own or not begun):
            module.eval()


def learning_rate_factors(
    model: nn.Module, *, layer_decay: float | None, backbone_factor: float = 1.0
) -> dict[str, float]:
    """For each parameter the factor on its learning rate, 1 for the head.

    `layer_decay` to the power of its distance from the deepest layer, as in Clark et al., ELECTRA, 2020, and `backbone_factor` for
    all but the head.
    """
    head = _prefixes(head_layers(model))
    depth = depths(model, fine=True) if layer_decay else {}
    deepest = max(depth.values(), default=0)
    return {
        name: (layer_decay or 1.0) ** (deepest - depth.get(name, deepest))
        * (1.0 if name.startswith(head) else backbone_factor)
        for name, _ in model.named_parameters()
    }


def _prefixes(modules: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{each}." for each in modules)


def _stage_name(parameter: str) -> str:
    """The module that is a stage; the parameter's own name where a container holds it itself."""
    parts = parameter.split(".")
    count = 1
    while count < len(parts) and ".".join(parts[:count]) in _CONTAINERS:
        count += 1
    return ".".join(parts[:count])


def _stage_names(model: nn.Module, body: Iterable[str]) -> list[str]:
    """The stages in order: those modules that hold a matrix."""
    parameters = dict(model.named_parameters())
    holding: Any = {
        _stage_name(name): None for name in body if parameters[name].dim() > 1 and _stage_name(name) != name
    }
    return list(holding)


def _batchnorm_names(model: nn.Module) -> set[str]:
    return {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for own, _ in module.named_parameters(recurse=False)
    }
