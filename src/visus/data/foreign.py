"""Transforms that others wrote: any callable on an image, such as a pipeline of `torchvision.transforms.v2`.

They draw from the global generators of torch, Python and numpy. These are seeded for each image, so that what happens to it is a
function of (seed, epoch, position), whatever else was drawn before; afterwards they are as they were.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from visus.errors import UsageError
from visus.ops.rng import derive_seed

Transform = Callable[[Tensor], Tensor]
"""From an image, uint8 `[C, h, w]`, to uint8 `[C, H, W]`, still to be normalised, or floats, taken as they are."""


def transform_images(
    transform: Transform, images: Sequence[Tensor], seed: int, epoch: int, positions: Sequence[int]
) -> Tensor:
    """`images`, whose positions in their part are `positions [N]`, each transformed: `[N, C, H, W]`.

    One after the other in the calling thread, since the generators are the process's own. `UsageError` where the results cannot be
    one batch.
    """
    found = []
    with generators_kept():
        for image, position in zip(images, positions, strict=True):
            _seed_generators(derive_seed(seed, "transform", epoch, int(position)))
            # It may work in place, and this is the image that the next epoch begins with; and it may count on the usual layout.
            found.append(transform(image.clone(memory_format=torch.contiguous_format)))
    wrong = [each for each in found if not isinstance(each, Tensor) or each.dim() != 3]
    shapes = {tuple(each.shape) for each in found} if not wrong else set()
    if wrong or len(shapes) > 1:
        what = (
            type(wrong[0]).__name__ if wrong else " and ".join(str(list(each)) for each in sorted(shapes)[:2])
        )
        raise UsageError(
            f"expected a transform to tensors [C, H, W] of one shape, found {what}; end it with a crop"
        )
    return torch.stack(found)


@contextmanager
def generators_kept() -> Iterator[None]:
    """The global generators get their states back at the end."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _seed_generators(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
