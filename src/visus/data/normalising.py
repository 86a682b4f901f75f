"""From pixels to the floats that a model takes, by the record's mean and standard deviation.

`N` images, `C` channels, `H` height, `W` width. Pixels are uint8, 0 to 255.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from visus.preprocessing import Preprocessing

_BATCH_AT_ONCE = 2**17
"""Values that stay in the processor's cache while they are reckoned with."""
IMAGE_AT_ONCE = 2**15 - 1
"""So few torch does not share among threads of its own. Several threads that all had such would hold each other up."""

Scales = tuple[Tensor, Tensor]
"""What is taken from a pixel, and what the rest is multiplied by; `[C, 1, 1]` each."""


def scales_of(preprocessing: Preprocessing, device: torch.device | str = "cpu") -> Scales:
    """What normalises to the mean and standard deviation of a record."""
    mean = torch.tensor(preprocessing.mean, device=device).mul_(255)[:, None, None]
    scale = torch.tensor(preprocessing.std, device=device).mul_(255).reciprocal_()[:, None, None]
    return mean, scale


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 `[N, C, H, W]` as float32 with the record's mean and standard deviation taken out, in channels-last layout."""
    scales = scales_of(preprocessing, pixels.device)
    images = _empty_images(pixels)
    at_once = max(1, _BATCH_AT_ONCE // max(1, pixels[:1].numel()))
    for begin in range(0, len(pixels), at_once):
        block = slice(begin, begin + at_once)
        _normalise_into(images[block], pixels[block], scales)
    return images


def normalise_image_into(image: Tensor, pixels: Tensor, scales: Scales, *, mirrored: bool) -> None:
    """Write `pixels [C, H, W]`, normalised and perhaps mirrored, to `image [H, W, C]`; in the calling thread alone."""
    channels, height, width = pixels.shape
    rows, at_once = image.permute(2, 0, 1), max(1, IMAGE_AT_ONCE // (channels * width))
    for top in range(0, height, at_once):
        part = pixels[:, top : top + at_once]
        _normalise_into(rows[:, top : top + at_once], part.flip(2) if mirrored else part, scales)


def _normalise_into(images: Tensor, pixels: Tensor, scales: Scales) -> None:
    mean, scale = scales
    # Rearranged last: arithmetic on three values in a row at a time takes three times as long.
    images.copy_(pixels.float().sub_(mean).mul_(scale))


def _empty_images(pixels: Tensor) -> Tensor:
    """Room for floats of the shape of `pixels`, in channels-last layout."""
    n, channels, height, width = pixels.shape
    shape = (n, height, width, channels)
    if pixels.device.type == "cpu":
        # Numpy asks Linux for large pages: to write 60 MB for the first time takes a fourth of the time then.
        return torch.from_numpy(np.empty(shape, np.float32)).permute(0, 3, 1, 2)
    return torch.empty(shape, device=pixels.device).permute(0, 3, 1, 2)
