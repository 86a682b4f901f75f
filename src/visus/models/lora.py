"""Low-rank adaptation: a frozen matrix W is used as W + UD, of which only the thin U and D are trained.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021. The weights are parametrised rather than the layers wrapped,
so that code that reads a layer's weight itself, as torchvision's Swin and torch's own attention do, gets the adapted one as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from visus.errors import UsageError
from visus.models.heads import head_layers

_MARK = ".parametrizations."


class LowRank(nn.Module):
    """Adds `up @ down`, of a given rank, to a matrix `[out, in]`; nothing at first."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, in_features))
        self.up = nn.Parameter(weight.new_zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + self.up @ self.down


def add_lora(model: nn.Module, rank: int) -> None:
    """Adapt every linear layer of `model` but its head, and freeze all but the adaptations and the head.

    `UsageError` where there is no such layer that is larger than `rank`. Draws from torch's global generator.
    """
    head = head_layers(model)
    found = [
        (module, attribute)
        for name, module in model.named_modules()
        if name not in head
        for attribute in _matrices(module)
        if min(getattr(module, attribute).shape) > rank
    ]
    if not found:
        raise UsageError(
            f"--lora {rank}: expected a model with linear layers of more than {rank} inputs and outputs before its head, as "
            "transformers have, found none; leave --lora out, or freeze stages with --freeze"
        )
    model.requires_grad_(False)
    for module, attribute in found:
        parametrize.register_parametrization(
            module, attribute, LowRank(getattr(module, attribute).detach(), rank)
        )
    for name in head:
        model.get_submodule(name).requires_grad_()


def merge_lora(model: nn.Module) -> None:
    """Make of every adapted weight of `model` a plain one, as it is used."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for attribute in list(module.parametrizations):  # type: ignore[arg-type]  # a ModuleDict
                if isinstance(module.parametrizations[attribute][0], LowRank):  # type: ignore[index]
                    parametrize.remove_parametrizations(module, attribute)


@torch.no_grad()
def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it would be of the model with merged weights: `W + UD` under the name of `W`; others as they are."""
    result = {}
    for name, tensor in tensors.items():
        module, mark, rest = name.partition(_MARK)
        attribute, _, part = rest.partition(".")
        adaptation = f"{module}{_MARK}{attribute}.0"
        if not mark or f"{adaptation}.up" not in tensors:
            result[name] = tensor
        elif part == "original":
            added = tensors[f"{adaptation}.up"] @ tensors[f"{adaptation}.down"]
            result[f"{module}.{attribute}"] = tensor + added
    return result


def _matrices(module: nn.Module) -> list[str]:
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        return ["in_proj_weight"]
    return ["weight"] if isinstance(module, nn.Linear) else []
