"""What happens to an image before the model sees it: one record, stored in the checkpoint and used by every command.

First stage, the same in cache, stream, evaluate and predict: decode, apply the orientation, shrink to short side `resize`
(antialiased, never enlarged). Second stage: crop to `size` (at random in training, centred otherwise; enlarged only where the image
is smaller than the crop), then normalise. Pixels are uint8, 0 to 255, `[C, H, W]`, until they are normalised.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from visus.errors import CheckpointError

RESIZE_RATIO = 256 / 224
"""Of the short side that images are shrunk to, to the crop that the model takes: as ImageNet's models are evaluated."""

Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"]


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to what the model takes."""

    size: tuple[int, int]
    """Height and width that the model takes, in pixels."""
    channels: int
    """1 (grey) or 3 (RGB)."""
    mean: tuple[float, ...]
    """Mean of each channel, pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel, pixels scaled to [0, 1]."""
    resize: int | None = None
    """Short side after the first stage, in pixels; `None` keeps images as they are."""
    interpolation: Interpolation = "bilinear"
    """How the first stage resamples."""

    def for_channels(self, channels: int) -> Preprocessing:
        """The record for images of other channels: the statistics of grey are the averages of those of red, green and blue."""
        if channels == self.channels:
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, channels=channels, mean=(mean,) * channels, std=(std,) * channels)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocessing:
        """The record that `to_json` wrote; `CheckpointError` where it cannot be one."""
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            record = cls(**fields)
        except TypeError as error:
            raise CheckpointError(f"the preprocessing record is not one that visus wrote: {error}") from None
        if len(record.size) != 2 or not len(record.mean) == len(record.std) == record.channels:
            raise CheckpointError(f"the preprocessing record does not fit together: {values}")
        if record.interpolation not in get_args(Interpolation):
            raise CheckpointError(
                f"unknown interpolation {record.interpolation!r} in the preprocessing record"
            )
        return record
