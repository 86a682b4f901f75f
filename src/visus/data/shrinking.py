"""The end of decoding: what a whole image is shrunk with, and its crops are brought to their size.

Torch's bilinear filter takes a third of the time of Pillow's and differs from it by one or two of 255, in few pixels; it reckons
with whole numbers, so that its bits are the same on processors with and without vector instructions. Its bicubic one may differ
by 20, and others it does not have.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def shrink(image: npt.NDArray[np.uint8], resize: int | None) -> npt.NDArray[np.uint8]:
    """An image `[H, W, C]`, shrunk so that its shorter side is `resize` long, as `[C, H, W]`, a view of memory `[H, W, C]`.

    One that is small enough already keeps its pixels. Bilinear and antialiased.
    """
    height, width = image.shape[:2]
    if resize is None or min(height, width) <= resize:
        return np.array(image, order="C").transpose(2, 0, 1)
    width, height = shrunk_size(width, height, resize)
    # Torch warns of memory that cannot be written.
    whole = np.require(image, requirements=["C", "W"])
    return resample(whole, (height, width)).transpose(2, 0, 1)


def resample(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """An image `[h, w, C]` as `[H, W, C]`, `size` being height and width: bilinear and antialiased."""
    # The child processes that decode do without it.
    import torch

    found = np.empty((*size, image.shape[2]), dtype=np.uint8)
    source, target = (torch.from_numpy(each[None]).permute(0, 3, 1, 2) for each in (image, found))
    # What `torch.nn.functional.interpolate` calls, to the same bits; but that gives `[C, H, W]` in memory, and to bring pixels into
    # that order takes as long again.
    torch.ops.aten._upsample_bilinear2d_aa.out(source, size, False, None, None, out=target)
    return found


def shrunk_size(width: int, height: int, resize: int) -> tuple[int, int]:
    """Width and height with the shorter side `resize` long, the other in proportion, rounded down as torchvision does."""
    if width <= height:
        return resize, max(1, int(resize * height / width))
    return max(1, int(resize * width / height)), resize
