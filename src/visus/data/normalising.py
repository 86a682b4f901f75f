"""From pixels to the floats that a model takes, by the record's mean and standard deviation.

`N` images, `C` channels, `H` height, `W` width. Pixels are uint8, 0 to 255.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visus.preprocessing import Preprocessing

_AT_ONCE = 2**17
"""Values that stay in the processor's cache while they are reckoned with."""
Scales = tuple[Tensor, Tensor]
"""What is taken from a pixel, and what the rest is multiplied by; `[C, 1, 1]` each."""
RowScales = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""The same for a row of an image, `[W * C]` each."""


def _scales(preprocessing: Preprocessing, device: torch.device | str = "cpu") -> Scales:
    mean = torch.tensor(preprocessing.mean, device=device).mul_(255)[:, None, None]
    scale = torch.tensor(preprocessing.std, device=device).mul_(255).reciprocal_()[:, None, None]
    return mean, scale


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 `[N, C, H, W]` as float32 with the record's mean and standard deviation taken out, in channels-last layout."""
    mean, scale = _scales(preprocessing, pixels.device)
    images = _empty_images(pixels)
    at_once = max(1, _AT_ONCE // max(1, pixels[:1].numel()))
    for begin in range(0, len(pixels), at_once):
        block = slice(begin, begin + at_once)
        # Rearranged last, and while in the cache: arithmetic on three values in a row at a time takes three times as long.
        images[block].copy_(pixels[block].float().sub_(mean).mul_(scale))
    return images


def normalise_image_into(image: npt.NDArray[Any], pixels: npt.NDArray[np.uint8], scales: RowScales) -> None:
    """Write `pixels [H, W, C]`, normalised, to `image`, float32, of the same shape; by numpy, which uses no threads of its own."""
    mean, scale = scales
    rows = image.reshape(len(image), -1)
    rows[:] = pixels.reshape(len(pixels), -1)
    rows -= mean
    rows *= scale


def row_scales(preprocessing: Preprocessing) -> RowScales:
    """What `normalise_image_into` takes for images of a record, as large as it says."""
    mean, scale = (each.flatten().numpy() for each in _scales(preprocessing))
    width = preprocessing.size[1]
    return np.tile(mean, width), np.tile(scale, width)


def _empty_images(pixels: Tensor) -> Tensor:
    """Room for floats of the shape of `pixels`, in channels-last layout."""
    n, channels, height, width = pixels.shape
    shape = (n, height, width, channels)
    if pixels.device.type == "cpu":
        # Numpy asks Linux for large pages: to write 60 MB for the first time takes a fourth of the time then.
        return torch.from_numpy(np.empty(shape, np.float32)).permute(0, 3, 1, 2)
    return torch.empty(shape, device=pixels.device).permute(0, 3, 1, 2)
