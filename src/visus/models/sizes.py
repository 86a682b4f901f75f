"""Which sizes of images a model can take."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from visus.models.hollow import build_outline, fake_mode, hollow_copy

_STEPS = (32, 28, 16)
"""Sizes that are multiples of these are what models are made for."""


def working_sizes(name: str, near: int, *, in_channels: int = 3) -> list[int]:
    """The largest size below `near` and the smallest above that were found to work, tried without computing anything.

    Only multiples of 32, 28 and 16 are tried, and the size that the model is made for; where none works, none is returned.
    """
    return nearest_sizes(lambda size: _takes(name, size, in_channels), near, _made_for(name))


def nearest_sizes(takes: Callable[[int], bool], near: int, made_for: int) -> list[int]:
    """The same for whatever `takes` says of a size."""
    tried = {step * count for step in _STEPS for count in (near // step - 1, near // step, near // step + 1)}
    below = sorted((size for size in tried | {made_for} if 0 < size < near), reverse=True)
    above = sorted(size for size in tried | {made_for} if size > near)
    found = (next((size for size in side if takes(size)), None) for side in (below, above))
    return [size for size in found if size]


def _made_for(name: str) -> int:
    configuration = getattr(build_outline(name), "pretrained_cfg", None)
    return int(configuration["input_size"][1]) if configuration else 224


def _takes(name: str, size: int, in_channels: int) -> bool:
    try:
        model = build_outline(name, in_channels=in_channels, img_size=size)
        with warnings.catch_warnings(), fake_mode():
            warnings.simplefilter("ignore")
            hollow_copy(model).eval()(torch.zeros(1, in_channels, size, size))
    # Whatever a library raises here, this size is not one to name.
    except Exception:
        return False
    return True
