"""Small convolutional nets of our own, for CPUs and tutorials."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn


def _block(in_channels: int, out_channels: int, *, pool: bool = False) -> nn.Sequential:
    """3 x 3 convolution, batch norm and ReLU; with max-pooling before these two, which then have a quarter of the work.

    That order is Page's (How to Train Your ResNet, 2019).
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        *[nn.MaxPool2d(2)] * pool,
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """A block of 3 x 3 convolution, batch norm and ReLU, added to what goes into it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = _block(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """`[N, channels, H, W]` to the same shape."""
        added: Tensor = features + self.block(features)
        return added


class _AveragedNet(nn.Module):
    """Features, their average over the image, and one linear layer."""

    def __init__(self, features: nn.Sequential, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]`."""
        features: Tensor = self.pool(self.features(images))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


class SmallNet(_AveragedNet):
    """Five 3 x 3 convolutions, two of them residual, two max-poolings, global average pooling, one linear layer.

    Takes images `[N, in_channels, H, W]` of 4 x 4 pixels or more; 0.28 million parameters for ten classes.
    """

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        features = nn.Sequential(
            _block(in_channels, 32),
            nn.MaxPool2d(2),
            _block(32, 64),
            Residual(64),
            nn.MaxPool2d(2),
            _block(64, 128),
            Residual(128),
        )
        super().__init__(features, 128, num_classes)


class QuickNet(_AveragedNet):
    """The convolutions of `SmallNet`, with three max-poolings, each before its batch norm: half the multiply-adds.

    Takes images `[N, in_channels, H, W]` of 8 x 8 pixels or more. The first stage has `width` channels, the second twice and the
    third four times as many; 0.28 million parameters for ten classes, of width 64 1.1 million.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: int = 32) -> None:
        features = nn.Sequential(
            _block(in_channels, width, pool=True),
            _block(width, 2 * width, pool=True),
            Residual(2 * width),
            _block(2 * width, 4 * width, pool=True),
            Residual(4 * width),
        )
        super().__init__(features, 4 * width, num_classes)


SMALL_NETS: dict[str, Callable[[int, int], nn.Module]] = {
    "small": SmallNet,
    "quick": QuickNet,
    "quick_wide": partial(QuickNet, width=64),
}
"""By name, what builds each, of the number of classes and that of the input's channels."""
