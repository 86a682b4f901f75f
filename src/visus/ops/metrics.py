"""Top-k accuracy. `N` images, `K` classes. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def correct_counts(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """For each k, how many images have their class among the k highest of `output [N, K]`: int64 scalars on its device.

    `target` holds class indices `[N]`, or one-hot or soft targets `[N, K]`, of which the highest counts. Of equal outputs, the
    class with the lower index ranks higher. An image whose outputs are `no_prediction` is wrong for every k below K. With k of K
    or more, all images count.
    """
    if target.dim() == 2:
        target = target.argmax(dim=1)
    rank = ranks(output, target)
    classes = output.shape[1]
    return [torch.sum(rank < k) if k < classes else torch.sum(rank >= 0) for k in topk]


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """As `correct_counts`, as fractions of the N images: float32 scalars; NaN where N is 0."""
    return [count / len(output) for count in correct_counts(output, target, topk)]


def ranks(output: Tensor, target: Tensor) -> Tensor:
    """How many classes come before the target's `[N]`, as `correct_counts` orders them; K where there is `no_prediction`."""
    own = output.gather(1, target[:, None])
    index = torch.arange(output.shape[1], device=output.device)
    before = (output > own) | ((output == own) & (index < target[:, None]))
    return torch.where(no_prediction(output), output.shape[1], before.sum(dim=1))


def no_prediction(output: Tensor) -> Tensor:
    """Whether no probabilities can be made of an image's outputs `[N]`: one is NaN or infinite, or all are minus infinity."""
    # The highest is NaN where one is.
    return ~output.amax(dim=1).isfinite()
