"""Small pictures for the page, taken from the data that a run was trained on, where it still is.

`C` channels, `H` height, `W` width; pixels are uint8, 0 to 255.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from visus.data.decode import pixels_to_image
from visus.reporting.reading import PARTS, clean

if TYPE_CHECKING:
    from visus.data.images import Data

Key = tuple[str, str]
"""The part of an image, and its path there."""
Draw = Callable[[Iterable[Key]], dict[Key, str]]
"""The pictures of images, as `data:` addresses; those that cannot be had are left out."""

_SIDE = 96
_QUALITY = 80
# A small image is kept as it is, and the browser enlarges it without blurring.
_LARGEST_KEPT = 40


def open_pictures(config: Mapping[str, Any]) -> Draw:
    """A function that draws images of the data that `config` names; `VisusError` or `OSError` where it cannot be opened."""
    from visus.data.sources import open_named  # loads torch

    return drawing(open_named(config))


def drawing(data: Data) -> Draw:
    """A function that draws images of `data`."""
    parts = {name: part for name in PARTS if (part := getattr(data, name)) is not None}
    places = {
        name: {clean(path): place for place, path in enumerate(part.paths)} for name, part in parts.items()
    }

    def draw(keys: Iterable[Key]) -> dict[Key, str]:
        by_part: dict[str, dict[str, int]] = {}
        for part, path in keys:
            if path in places.get(part, {}):
                by_part.setdefault(part, {})[path] = places[part][path]
        return {
            (part, path): encode(pixels)
            for part, wanted in by_part.items()
            for path, pixels in zip(wanted, _read(parts[part].images, list(wanted.values())), strict=True)
            if pixels is not None
        }

    return draw


def _read(images: Any, places: list[int]) -> Iterable[npt.NDArray[np.uint8] | None]:
    """The images at `places`, `[C, H, W]`; `None` for what is no image any more."""
    from dataclasses import replace

    from visus.data.files import FileImages, decode_all

    subset = images.subset(np.array(places, dtype=np.int64))
    if not isinstance(subset, FileImages):
        yield from subset.pixels.numpy()
        return
    # In a child process, as everywhere: a file may be another one by now.
    for each in decode_all(replace(subset, resize=_SIDE, decoded=None), workers=1):
        yield None if isinstance(each, Exception) else each


def encode(pixels: npt.NDArray[np.uint8], side: int = _SIDE) -> str:
    """A picture of `pixels` `[C, H, W]`, at most `side` pixels wide and high, as a `data:` address."""
    image = pixels_to_image(pixels)
    kind = "png" if max(image.size) <= _LARGEST_KEPT else "webp"
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, kind, quality=_QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
