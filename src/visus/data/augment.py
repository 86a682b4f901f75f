"""Augmentation of a whole batch at once, as pure functions of (seed, epoch, index).

Images are uint8 `[N, C, H, W]`. What happens to an image does not depend on the others in its batch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visus.ops.rng import uniform

Cropping = Literal["none", "flip", "light", "standard"]
Augment = Literal["none", "flip", "light", "standard", "trivial", "rand"]
"""A way of cropping and flipping, or a policy of `visus.data.policies` after the one that suits the size."""
LARGEST_SMALL_SIZE = 64
"""Images of at most so many pixels a side are taken as they are, with light augmentation."""
_FLIPPED = 0.5
"""A third random number below this mirrors an image."""
DRAWS = 48
"""Random numbers that an image has for its augmentation: flip, shift down, shift right, and from the ninth on its crop."""


def cropping(how: Augment, size: tuple[int, int]) -> Cropping:
    """How images of `size` are cropped and flipped; with a policy `light` up to 64 pixels a side, else `standard`."""
    if how == "trivial" or how == "rand":
        return "light" if max(size) <= LARGEST_SMALL_SIZE else "standard"
    return how


def draw(seed: int, epoch: int, indices: npt.NDArray[np.int64], how: Cropping) -> npt.NDArray[np.float64]:
    """The random numbers `[N, 3]`, or with `standard` `[N, 48]`, of the images at `indices [N]`."""
    return uniform(seed, "augment", epoch, indices, DRAWS if how == "standard" else 3)


def is_mirrored(draws: npt.NDArray[np.float64]) -> Any:
    """Whether the image of the draws `[..., 3 or more]` is to be mirrored."""
    return draws[..., 2] < _FLIPPED


def augment(images: Tensor, draws: npt.NDArray[np.float64], how: Cropping) -> Tensor:
    """`images [N, C, H, W]`, changed as `how` says by the `draws [N, 3 or more]` of each.

    `flip` mirrors every other one; `light` also pads each side by an eighth with black and crops back at random. `none` leaves
    them, and so does `standard`: those were cropped and mirrored one by one when they were read.
    """
    if how in ("none", "standard") or not len(images):
        return images
    flip = is_mirrored(draws)
    if how == "flip":
        mirrored = torch.from_numpy(flip).to(images.device)[:, None, None, None]
        return torch.where(mirrored, images.flip(3), images)
    height, width = images.shape[2:]
    top = np.floor(draws[:, 0] * (2 * (height // 8) + 1)).astype(np.int64) - height // 8
    left = np.floor(draws[:, 1] * (2 * (width // 8) + 1)).astype(np.int64) - width // 8
    return shift_and_flip(images, top, left, flip)


def shift_and_flip(
    images: Tensor, top: npt.NDArray[np.int64], left: npt.NDArray[np.int64], flip: npt.NDArray[np.bool_]
) -> Tensor:
    """Crops of the padded images whose corners lie `top [N]` and `left [N]` pixels inside the originals, mirrored where `flip [N]`.

    What lies outside an original is black. One gather for the whole batch.
    """
    n, channels, height, width = images.shape
    rows = top[:, None] + np.arange(height)
    columns = np.where(flip[:, None], np.arange(width)[::-1], np.arange(width)) + left[:, None]
    inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
    places = np.clip(rows, 0, height - 1)[:, :, None] * width + np.clip(columns, 0, width - 1)[:, None, :]
    flat = images.reshape(n, channels, height * width)
    index = torch.from_numpy(places.reshape(n, 1, -1)).to(images.device).expand(-1, channels, -1)
    moved = flat.gather(2, index).view(n, channels, height, width)
    return moved.mul_(torch.from_numpy(inside).to(images.device)[:, None])


def _inside(places: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.bool_]:
    return (places >= 0) & (places < length)
