"""Which library builds a model, by its name."""

from __future__ import annotations

from functools import cache
from typing import Literal

import timm
import torchvision

from visus.errors import unknown_name
from visus.models.small import SMALL_NETS

Library = Literal["visus", "torchvision", "timm"]


def resolve_model(name: str) -> tuple[Library, str]:
    """Which library builds `name`, and what it is called there; `UsageError` with the nearest names for an unknown one."""
    library, _, own_name = name.rpartition("/")
    if name in SMALL_NETS:
        return "visus", name
    if library in ("", "torchvision") and own_name in torchvision_names():
        return "torchvision", own_name
    if library in ("", "timm") and own_name in timm_names():
        return "timm", own_name
    raise unknown_name("model", name, model_names())


def model_names() -> list[str]:
    """Every name that `build_model` takes without its library."""
    return sorted({*SMALL_NETS, *torchvision_names(), *timm_names()})


def every_model() -> list[str]:
    """Every model that `build_model` makes, once; timm's with its library where torchvision has the name, too."""
    return [*model_names(), *(f"timm/{name}" for name in sorted(timm_names() & torchvision_names()))]


@cache
def torchvision_names() -> frozenset[str]:
    """torchvision's classification models."""
    return frozenset(torchvision.models.list_models(module=torchvision.models))


@cache
def timm_names() -> frozenset[str]:
    """timm's models."""
    return frozenset(timm.list_models())
