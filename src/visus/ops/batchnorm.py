"""Batch norm over the images of all processes, whatever module asks for it.

torch has `SyncBatchNorm` for CUDA alone, as a module to be put in the place of others. Here the function is replaced while a model
runs, so that modules, their names and classes of their own (timm's, with an activation inside) stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode


class GlobalBatchNorm(TorchFunctionMode):
    """While it is open, `torch.nn.functional.batch_norm` in training normalises by the statistics of all processes together.

    Every process must run the same model at the same time, one without an image on an empty batch `[0, C, H, W]`.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # While this runs the mode is off, so that the function itself can be called.
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.batch_norm`, for `images [N, C, ...]` of which each process has a share."""
    if not training:
        return F.batch_norm(images, running_mean, running_var, weight, bias, False, momentum, eps)
    if images.is_cuda:
        function: Any = SyncBatchNorm
        group, size = dist.group.WORLD, dist.get_world_size()
        result: Tensor = function.apply(
            images, weight, bias, running_mean, running_var, eps, momentum, group, size
        )
        return result
    # torch's own function for the CPU keeps its sums in float32 at least.
    values = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    others = [axis for axis in range(values.dim()) if axis != 1]
    shape = [1, -1] + [1] * (values.dim() - 2)
    channels = values.shape[1]
    count = values.new_full((1,), values.numel() // channels)
    sums = _sum_over_processes(torch.cat((values.sum(others), count)))
    total = sums[channels:].detach()
    mean = sums[:channels] / total
    centred = values - mean.view(shape)
    var = _sum_over_processes(centred.square().sum(others)) / total
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = var * (total / (total - 1).clamp(min=1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    normalised = centred * scale.view(shape)
    return (normalised if bias is None else normalised + bias.view(shape)).to(images.dtype)


def _sum_over_processes(values: Tensor) -> Tensor:
    result: Tensor = _Sum.apply(values)
    return result


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient, as each process has a share of the loss."""

    @staticmethod
    def forward(_: FunctionCtx, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total
