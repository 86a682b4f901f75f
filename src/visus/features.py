"""What a model makes of images before it decides: the input of its classifier, for linear probes and for the audit.

`N` images, `D` features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from visus.errors import DataError, UsageError
from visus.inference import predict_logits

Features = npt.NDArray[np.float32]


def embed(
    model: nn.Module, batches: Iterable[Any], *, device: torch.device | str = "cpu", amp: str = "off"
) -> Features:
    """The features `[N, D]` that `model` gives to its classifier, of every image of `batches`, in their order.

    `batches` yields pairs, of which the first is images `[N, C, H, W]`, as for `predict_logits`; of several processes each gets the
    features of all images. Features that still have places or tokens are averaged over them. `model` is left as it was. Raises
    `DataError` where there are no images, `UsageError` for a model without a linear or convolutional layer.
    """
    rows = [
        features.cpu().numpy()
        for features, _ in predict_logits(Embedder(model), batches, device=device, amp=amp)
    ]
    if not rows:
        raise DataError("expected images to embed, found none")
    return np.concatenate(rows)


class Embedder(nn.Module):
    """A model that gives its features `[N, D]` in the place of its logits.

    They are the input of the linear or convolutional layer that runs last, which needs no table of what each architecture calls its
    head; of two heads beside each other it is the second one's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Features `[N, D]` of images `[N, C, H, W]`."""
        latest: list[Tensor] = []

        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            latest[:] = inputs[:1]

        layers = [each for each in self.model.modules() if isinstance(each, nn.Linear | nn.Conv2d)]
        hooks = [layer.register_forward_pre_hook(note) for layer in layers]
        try:
            self.model(images)
        finally:
            for hook in hooks:
                hook.remove()
        if not latest:
            name = type(self.model).__name__
            raise UsageError(f"expected a model that ends in a linear layer, found none in {name}")
        return _flat(latest[0])


def _flat(features: Tensor) -> Tensor:
    """`[N, D, H, W]` or `[N, tokens, D]` averaged to `[N, D]`."""
    if features.dim() == 4:
        return features.mean(dim=(2, 3))
    return features.mean(dim=1) if features.dim() == 3 else features
