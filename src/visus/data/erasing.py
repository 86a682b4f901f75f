"""Random erasing, as a pure function of (seed, epoch, index).

Zhong et al., Random Erasing Data Augmentation, 2020; a rectangle of 2 to 33 % of the area and 0.3 to 3.3 in
shape, as in torchvision.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

from visus.ops.rng import uniform

_TRIES = 10
_AREA, _SHAPE = (0.02, 0.33), (0.3, 3.3)


def erase_(images: Tensor, seed: int, epoch: int, indices: npt.NDArray[np.int64], chance: float) -> Tensor:
    """Blank a rectangle of about `chance` of the `images [N, C, H, W]`, in place.

    They are normalised, and at `indices [N]` in their part. What is erased is 0: the mean of the training images.
    """
    draws = uniform(seed, "erasing", epoch, indices, 1 + 4 * _TRIES)
    for place in np.flatnonzero(draws[:, 0] < chance):
        if box := erased_box(draws[place, 1:], images.shape[2], images.shape[3]):
            top, left, bottom, right = box
            images[place, :, top:bottom, left:right] = 0
    return images


def erased_box(draws: npt.NDArray[np.float64], height: int, width: int) -> tuple[int, int, int, int] | None:
    """Top, left, bottom and right of a rectangle, by uniform `draws [40]`; `None` where none of ten tries is inside the image."""
    for area, shape, down, right in draws.reshape(_TRIES, 4):
        target = height * width * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
        ratio = math.exp(math.log(_SHAPE[0]) + shape * (math.log(_SHAPE[1]) - math.log(_SHAPE[0])))
        h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if h < height and w < width:
            top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
            return top, left, top + h, left + w
    return None
