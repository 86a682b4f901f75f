"""What an operation takes for itself and gives back, which no tensor tells of.

As oneDNN does it on processors with AVX-512, measured with torch 2.15 (`benchmarks/work_space.py`): the two cases that weigh
more than what they work on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BLOCK = 16
"""Channels that a vector holds: the gradient of depthwise weights is made for blocks of 16 x 16, though the diagonal is wanted."""
_OWN_KERNEL = 3
"""Side up to which depthwise convolutions have a kernel of their own that makes no such blocks."""
_UNROLLED = 14
"""Side up to which kernels are unrolled; for larger ones each thread makes the gradient for itself, in four times its space."""
_COPIES = 4


def work_space(operation: Any, arguments: tuple[Any, ...]) -> int:
    """Bytes that an operation on the CPU takes besides its tensors: for the gradient of some weights of convolutions, else 0."""
    if operation is not torch.ops.aten.convolution_backward.default:
        return 0
    images, weights, groups, wanted = arguments[1], arguments[2], arguments[9], arguments[10]
    if images.device.type != "cpu" or not wanted[1] or weights.dim() != 4:
        return 0
    if groups == weights.shape[0] == images.shape[1]:
        return _of_depthwise(images, weights)
    single = weights.numel() * torch.float32.itemsize
    return _COPIES * single * torch.get_num_threads() if weights.shape[3] > _UNROLLED else 0


def _of_depthwise(images: Tensor, weights: Tensor) -> int:
    """In channels-last layout only; in half precision a block of floats is there as well."""
    if weights.shape[3] <= _OWN_KERNEL or images.is_contiguous():
        return 0
    blocks = weights.numel() * _BLOCK**2
    return blocks * (weights.itemsize if weights.itemsize == torch.float32.itemsize else 6)
