"""Which layers of a model are its head: those that give a score for each class."""

from __future__ import annotations

from torch import nn

_DISTILLED = ("head_dist", "head_dist.linear")
"""Second heads, of which timm does not state those of all models that have one."""


def head_layers(model: nn.Module) -> tuple[str, ...]:
    """Their names: as timm states them, some of its models have several; of other models the last layer with a weight."""
    stated = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    named = (stated,) if isinstance(stated, str) else tuple(stated or ())
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "weight")}
    found = tuple(name for name in dict.fromkeys((*named, *_DISTILLED)) if name in layers)
    if named and found:
        return found
    weights = [name for name, _ in model.named_parameters() if name.endswith(".weight")]
    return (weights[-1].rpartition(".")[0],) if weights else ()
