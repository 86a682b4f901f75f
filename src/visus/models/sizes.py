"""Which sizes of images a model can take."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch

from visus.models.hollow import build_outline, fake_mode, hollow_copy

_STEPS = (32, 28, 16)
"""Sizes that are multiples of these are what models are made for."""


Size = tuple[int, int]
"""Height and width."""


def working_sizes(name: str, near: Size, *, in_channels: int = 3) -> list[Size]:
    """The largest size below `near` and the smallest above that were found to work, tried without computing anything.

    Only multiples of 32, 28 and 16 are tried, and the size that the model is made for; where none works, none is returned. Beside
    an image that is not square squares are tried as well, as some models take nothing else.
    """

    def takes(size: Size) -> bool:
        height, width = size
        return takes_size(name, size, in_channels, height if height == width else None)

    return nearest_sizes(takes, near, _made_for(name))


def nearest_sizes(takes: Callable[[Size], bool], near: Size, made_for: int) -> list[Size]:
    """The same for whatever `takes` says of a size."""
    tried = {(made_for, made_for)}
    for step in _STEPS:
        counts = [[side // step + more for more in (-1, 0, 1)] for side in near]
        tried |= {(step * high, step * wide) for high, wide in zip(*counts, strict=True)}
        tried |= {(step * count, step * count) for each in counts for count in each}
    tried.discard(near)
    below = [size for size in tried if min(size) > 0 and size[0] <= near[0] and size[1] <= near[1]]
    above = [size for size in tried if size[0] >= near[0] and size[1] >= near[1]]
    ordered = sorted(below, key=math.prod, reverse=True), sorted(above, key=math.prod)
    found = (next((size for size in side if takes(size)), None) for side in ordered)
    return [size for size in found if size]


def _made_for(name: str) -> int:
    configuration = getattr(build_outline(name), "pretrained_cfg", None)
    return int(configuration["input_size"][1]) if configuration else 224


def takes_size(name: str, size: Size, in_channels: int, img_size: int | None) -> bool:
    """Whether the model, built for `img_size` where it is given, takes images of `size`; nothing is computed.

    False also of a model that cannot be tried without computing.
    """
    try:
        model = build_outline(name, in_channels=in_channels, img_size=img_size)
        with warnings.catch_warnings(), fake_mode():
            warnings.simplefilter("ignore")
            hollow_copy(model).eval()(torch.zeros(1, in_channels, *size))
    # Whatever a library raises here, this size is not one to name.
    except Exception:
        return False
    return True
