"""Whether a model takes images of a size: tried before anybody waits for what it would be trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from visus.errors import UsageError, VisusError
from visus.inference import eval_mode
from visus.models.build import build_model
from visus.models.sizes import Size, takes_size, working_sizes
from visus.summaries.tracing import InputError, first_line, trace

_OF_LIBRARIES = (RuntimeError, ValueError, AssertionError)
"""How libraries, each in its own way, say that an image is none that a model can take."""


@contextmanager
def refusing_size(name: str, size: Size, channels: int) -> Iterator[None]:
    """`UsageError`, naming sizes that work, where the model `name` cannot be built for such images here, or tried on one."""
    try:
        yield
    except InputError as error:
        raise _refused_size(name, size, channels, error.place) from None
    except (VisusError, torch.OutOfMemoryError):
        raise
    except _OF_LIBRARIES as error:
        raise _refused_size(name, size, channels, first_line(error)) from None


def try_on(model: nn.Module, image: Tensor) -> None:
    """`InputError`, naming the layer, where `model` cannot take `image [1, C, H, W]`."""
    with eval_mode(model), torch.inference_mode():
        try:
            model(image)
        except torch.OutOfMemoryError:
            raise
        except _OF_LIBRARIES:
            # Once more, to see where.
            trace(model, ([image], {}))
            raise


def check_size(
    name: str, size: Size, channels: int, *, img_size: int | None, stem: Literal["small"] | None
) -> None:
    """As `refusing_size`, by an outline of the model, in some tenths of a second.

    One that is refused is built, and its word counts. Random numbers are left as they are.
    """
    with torch.random.fork_rng(devices=[]), refusing_size(name, size, channels):
        if takes_size(name, size, channels, img_size):
            return
        model = build_model(name, in_channels=channels, img_size=img_size, stem=stem)
        try_on(model, torch.zeros(1, channels, *size))


def _refused_size(name: str, size: Size, channels: int, reason: str) -> UsageError:
    height, width = size
    # --img-size makes squares.
    side = max(size)
    found = " and ".join(str(each) for each, _ in working_sizes(name, (side, side), in_channels=channels))
    return UsageError(
        f"{name} cannot take images of {height}x{width} ({reason.rstrip('.')}); choose another --img-size"
        + (f", such as {found}" if found else "")
    )
