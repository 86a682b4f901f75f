"""Mixing the images of a batch in pairs: mixup and CutMix, as pure functions of (seed, epoch, batch).

Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018; Yun et al., CutMix: Regularization Strategy to Train Strong
Classifiers with Localizable Features, 2019. As in torchvision, a batch has one share, and the partner of an image is the one
before it in the order of the epoch, which is random; the first has the last.

`N` images, `C` channels, `H` height, `W` width, `K` classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from visus.ops.rng import uniform

_VALUES_AT_ONCE = 2**17
"""Of an image and its partner; so many fit in a cache."""


@dataclass(frozen=True, slots=True)
class Mixing:
    """How the images of a batch are mixed with their partners."""

    share: float
    """Of an image itself in the result and in its target, 0 to 1; the rest is its partner's."""
    box: tuple[int, int, int, int] | None = None
    """Top, left, bottom and right of what comes from the partner; `None`: all is blended."""


def draw_mixing(
    seed: int, epoch: int, batch: int, size: tuple[int, int], *, mixup: float, cutmix: float
) -> Mixing:
    """The mixing of one batch of images of `size`: by `mixup` or by `cutmix`, each the A of Beta(A, A), 0 for never.

    Where both are given each has an equal chance.
    """
    from scipy.special import betaincinv

    choice, quantile, down, right = uniform(seed, "mixing", epoch, batch, 4)[0]
    cut = cutmix > 0 and (mixup == 0 or choice < 0.5)
    concentration = cutmix if cut else mixup
    share = float(betaincinv(concentration, concentration, quantile))
    return cut_box(share, down, right, size) if cut else Mixing(share)


def cut_box(share: float, down: float, right: float, size: tuple[int, int]) -> Mixing:
    """A box of the share that is left, its centre anywhere, cut off at the border; the share is then that of the pixels."""
    height, width = size
    side = math.sqrt(1 - share)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    y, x = int(down * height), int(right * width)
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    left, right_end = max(x - half_width, 0), min(x + half_width, width)
    return Mixing(1 - (bottom - top) * (right_end - left) / (height * width), (top, left, bottom, right_end))


def with_partner(whole: npt.NDArray[np.int64], rank: int, world_size: int) -> npt.NDArray[np.int64]:
    """What a process needs of a batch: its slice, and before it the partner of the first; nothing for an empty slice."""
    places = np.array_split(np.arange(len(whole)), world_size)[rank]
    return whole[np.concatenate((places[:1] - 1, places))]


def mix_images_(images: Tensor, mixing: Mixing) -> Tensor:
    """The last N of `images [N + 1, C, H, W]` (float), each mixed with the one before it; in place."""
    own, partners = images[1:], images[:-1]
    if mixing.box is not None:
        top, left, bottom, right = mixing.box
        own[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right].clone()
        return own
    at_once = max(1, _VALUES_AT_ONCE // max(1, images[:1].numel()))
    # From the end, so that each is a partner before it is changed. Products are rounded before they are added: bits then do not
    # depend on where a slice ends.
    for begin in reversed(range(0, len(own), at_once)):
        block = slice(begin, begin + at_once)
        other = partners[block] * (1 - mixing.share)
        own[block].mul_(mixing.share).add_(other)
    return own


def mix_labels(labels: Tensor, classes: int, mixing: Mixing) -> Tensor:
    """Targets `[N, K]` (float32) of the last N of `labels [N + 1]`: a share for its own class, the rest for its partner's."""
    targets = F.one_hot(labels, classes).float()
    return (targets[1:] * mixing.share).add_(targets[:-1] * (1 - mixing.share))
