"""From images of any size to the size that a model takes. Pixels are uint8 `[C, h, w]`."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from visus.data.shrinking import resample

_TRIES = 10


def centre_crop(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle `size` of an image `[C, h, w]`; one that is smaller is enlarged first, in proportion, until it covers that."""
    height, width = pixels.shape[1:]
    factor = max(size[0] / height, size[1] / width)
    if factor > 1:
        larger = [max(size[0], round(height * factor)), max(size[1], round(width * factor))]
        pixels = functional.resize(pixels, larger, antialias=True)
    cropped: Tensor = functional.center_crop(pixels, list(size))
    return cropped


def random_resized_crop(pixels: Tensor, size: tuple[int, int], draws: npt.NDArray[np.float64]) -> Tensor:
    """A part of an image `[C, h, w]`, 8 to 100 % of its area and 3:4 to 4:3 in shape, resized to `size`.

    `draws [40]` are uniform in [0, 1): torchvision's `RandomResizedCrop`, ten tries and then the middle.
    """
    top, left, height, width = _crop_box(pixels.shape[1], pixels.shape[2], draws)
    whole = pixels.numpy().transpose(1, 2, 0)
    # Copied by numpy: torch copies with threads of its own, and each of several that did so side by side would hold up the others.
    part = np.array(whole[top : top + height, left : left + width], order="C")
    found = part if (height, width) == size else resample(part, size)
    return torch.from_numpy(found).permute(2, 0, 1)


def mirror(pixels: Tensor) -> Tensor:
    """An image `[C, h, w]`, left and right changed."""
    whole = np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0))
    # A pixel at a time, not a value: that takes half of the time.
    turned = whole.view(f"V{len(pixels)}")[:, ::-1].copy().view(np.uint8)
    return torch.from_numpy(turned).permute(2, 0, 1)


def _crop_box(height: int, width: int, draws: npt.NDArray[np.float64]) -> tuple[int, int, int, int]:
    for area, shape, down, right in draws.reshape(_TRIES, 4):
        target = height * width * (0.08 + 0.92 * area)
        ratio = math.exp(math.log(3 / 4) + shape * (math.log(4 / 3) - math.log(3 / 4)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w
