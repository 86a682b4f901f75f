"""What an operation takes for itself and gives back, which no tensor tells of.

As oneDNN does it on processors with AVX-512, measured with torch 2.15 on 1 to 64 threads (`benchmarks/work_space.py`): the two
cases that weigh more than what they work on. Other processors are not measured, and nothing is said of them.
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
_NARROW = 24
"""Side up to which, in half precision, such a kernel takes two copies, and little more for each thread."""
_MOST = 2**30
"""Bytes beyond which a convolution is made in another way, by one thread."""


def work_space(operation: Any, arguments: tuple[Any, ...]) -> int:
    """Bytes that an operation on the CPU takes besides its tensors: for the gradient of some weights of convolutions, else 0."""
    if operation is not torch.ops.aten.convolution_backward.default or not _has_avx512():
        return 0
    images, weights, groups, wanted = arguments[1], arguments[2], arguments[9], arguments[10]
    if images.device.type != "cpu" or not wanted[1] or weights.dim() != 4:
        return 0
    if groups == weights.shape[0] == images.shape[1]:
        return _of_depthwise(images, weights)
    return _of_large(weights, torch.get_num_threads()) if weights.shape[3] > _UNROLLED else 0


def _has_avx512() -> bool:
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def _of_large(weights: Tensor, threads: int) -> int:
    """Copies of the gradient in single precision."""
    single = weights.numel() * torch.float32.itemsize
    if weights.itemsize == torch.float32.itemsize:
        copies = 4.0 * threads
    else:
        copies = 2 + threads / 8 if weights.shape[3] <= _NARROW else 2.0 * (threads + 1)
    return round(single * (copies if single * copies <= _MOST else 4))


def _of_depthwise(images: Tensor, weights: Tensor) -> int:
    """In channels-last layout only; in half precision a block of floats is there as well."""
    if weights.shape[3] <= _OWN_KERNEL or images.is_contiguous():
        return 0
    blocks = weights.numel() * _BLOCK**2
    return blocks * (weights.itemsize if weights.itemsize == torch.float32.itemsize else 6)
