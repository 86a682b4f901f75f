"""Pictures of what spoke for the class that a model says: for each file what the model saw, and its map laid over it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from visus.checkpoint import Checkpoint, rebuild_model
from visus.data.files import decode_all
from visus.devices import computing, select_device
from visus.errors import UsageError
from visus.explaining import explain
from visus.files import replacing
from visus.prediction import batches_of, images_of
from visus.preprocessing import Preprocessing

_BATCH_SIZE = 16
_SMALLEST_SIDE = 160
"""Of a picture, in pixels; those of smaller images are enlarged."""
_COLOURS = colormaps["inferno"]
_SHARE = 0.6
"""Of the colours of the map where it is 1, over the image."""


def write_overlays(
    checkpoint: Checkpoint,
    files: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "auto",
) -> list[Path]:
    """Pictures in `folder` of what spoke for the class that the model of `checkpoint` says of each of `files`, and their paths.

    Each is named by its place among `files` and the name of its file, and shows the image as the model takes it, then `explain`'s
    map over it in grey. Files that cannot be decoded have none. `folder` is made; `UsageError` where it cannot be.
    """
    folder = _make(Path(folder))
    device = select_device(device)
    model = rebuild_model(checkpoint).to(device)
    written = []
    with closing(decode_all(images_of(files, checkpoint.preprocessing))) as images:
        for first in range(0, len(files), _BATCH_SIZE):
            decoded = list(itertools.islice(images, _BATCH_SIZE))
            for batch, places in batches_of(decoded, checkpoint.preprocessing):
                with computing(threads=checkpoint.config.get("threads")):
                    maps = explain(model, batch)
                for image, one, place in zip(batch, maps, places.tolist(), strict=True):
                    written.append(folder / f"{first + place + 1:04d}-{Path(files[first + place]).stem}.png")
                    _save(overlay(image, one, checkpoint.preprocessing), written[-1])
    return written


def overlay(image: Tensor, heat: Tensor, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """The normalised `image` `[C, H, W]` as it was, and beside it in grey under the colours of `heat` `[H, W]`: `[h, w, 3]`.

    Small images are enlarged by a whole number.
    """
    mean, std = (
        torch.tensor(each)[:, None, None].to(image) for each in (preprocessing.mean, preprocessing.std)
    )
    pixels = (image * std + mean).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    shown = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    share = _SHARE * heat.cpu().numpy()[:, :, None]
    covered = (1 - share) * shown.mean(axis=2, keepdims=True) + share * _COLOURS(share[:, :, 0] / _SHARE)[
        :, :, :3
    ]
    times = -(-_SMALLEST_SIDE // min(pixels.shape[:2]))
    both = np.concatenate([shown, covered], axis=1).repeat(times, axis=0).repeat(times, axis=1)
    picture: npt.NDArray[np.uint8] = np.rint(255 * both).astype(np.uint8)
    return picture


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: expected a folder to write pictures to: {error.strerror}") from None
    return folder


def _save(picture: npt.NDArray[np.uint8], path: Path) -> None:
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
