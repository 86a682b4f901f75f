"""The end of decoding: what a whole image is shrunk with.

Torch's bilinear filter takes a third of the time of Pillow's and differs from it by one or two of 255, in few pixels; it reckons
with whole numbers, so that its bits are the same on processors with and without vector instructions. Its bicubic one may differ
by 20, and others it does not have.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def shrink(image: npt.NDArray[np.uint8], resize: int | None) -> npt.NDArray[np.uint8]:
    """An image `[H, W, C]` as `[C, H, W]`, shrunk so that its shorter side is `resize` long, bilinear and antialiased.

    One that is small enough already keeps its pixels.
    """
    height, width = image.shape[:2]
    if resize is None or min(height, width) <= resize:
        return np.array(image.transpose(2, 0, 1), order="C")
    # The child processes that decode do without it.
    import torch

    # Torch warns of memory that cannot be written.
    whole = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
    width, height = shrunk_size(width, height, resize)
    small = torch.nn.functional.interpolate(whole, size=(height, width), mode="bilinear", antialias=True)
    return small[0].contiguous().numpy()


def shrunk_size(width: int, height: int, resize: int) -> tuple[int, int]:
    """Width and height with the shorter side `resize` long, the other in proportion, rounded down as torchvision does."""
    if width <= height:
        return resize, max(1, int(resize * height / width))
    return max(1, int(resize * width / height)), resize
