"""From a file, or its bytes, to pixels, or one reason why not. Pillow and numpy only: nothing here loads torch.

Pixels are uint8 `[C, H, W]`, 0 to 255, with the orientation applied and transparency composed on white.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_EMPTY = "expected an image, found 0 bytes"
_DEEP_MODES = ("I", "F")
"""How the modes of grey images with more than eight bits begin."""


_ORIENTATION = 0x0112
"""EXIF's tag; from 5 on, height and width change places."""


class UndecodableError(Exception):
    """Why a file is no image that can be used."""


def decode_image(
    source: str | os.PathLike[str] | bytes,
    *,
    channels: int = 3,
    resize: int | None = None,
    interpolation: str = "bilinear",
    max_pixels: int = 100_000_000,
) -> Pixels:
    """The image in a file, given by its path or by all its bytes: `[channels, H, W]`, grey (1) or RGB (3).

    With `resize` it is shrunk, antialiased, so that its shorter side is that long; it is never enlarged. Of an animation the first
    frame is taken. Raises `UndecodableError` for anything that is not a whole image of at most `max_pixels`; beyond 178 million
    Pillow's own limit holds.
    """
    file = _openable(source)
    try:
        with warnings.catch_warnings():
            # Pillow's advice about odd files is no news to somebody whose image came out, and an error says enough.
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise UndecodableError(
                        f"too many pixels: {width} x {height}, the limit is {max_pixels:,}"
                    )
                flat = _in_mode(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
        return _as_array(_shrink(flat, resize, interpolation))
    except UndecodableError:
        raise
    except Image.DecompressionBombError as error:
        raise UndecodableError(f"too many pixels: {error}") from None
    # Damaged files raise OSError, ValueError, SyntaxError, EOFError, struct.error, NotImplementedError, ... by their format.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UndecodableError(reason.replace(str(file), "the file")) from None


def read_size(source: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    """Height and width of an image by its header, its orientation applied; raises `UndecodableError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(_openable(source)) as image:
                width, height = image.size
                turned = image.getexif().get(_ORIENTATION, 1) >= 5
    # As in `decode_image`.
    except Exception as error:
        raise UndecodableError(str(error)) from None
    return (width, height) if turned else (height, width)


def image_to_pixels(image: Image.Image) -> Pixels:
    """An image that is open already, as `[C, H, W]`: grey where its mode is, else RGB. What its EXIF says is left alone."""
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith(_DEEP_MODES)
    return _as_array(_in_mode(image, "L" if grey else "RGB"))


def adapt_image(pixels: Pixels, channels: int, resize: int | None, interpolation: str) -> Pixels:
    """An image `[C, H, W]` with `channels` channels, shrunk as `decode_image` does."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    return _as_array(_shrink(image.convert("L" if channels == 1 else "RGB"), resize, interpolation))


def shrunk_size(width: int, height: int, resize: int) -> tuple[int, int]:
    """Width and height with the shorter side `resize` long, the other in proportion, rounded down as torchvision does."""
    if width <= height:
        return resize, max(1, int(resize * height / width))
    return max(1, int(resize * width / height)), resize


def _openable(source: str | os.PathLike[str] | bytes) -> str | os.PathLike[str] | io.BytesIO:
    """What Pillow can open. Opening a pipe would wait for ever."""
    if isinstance(source, bytes):
        if not source:
            raise UndecodableError(_EMPTY)
        return io.BytesIO(source)
    try:
        status = Path(source).stat()
    except OSError as error:
        raise UndecodableError(error.strerror or "cannot be read") from None
    except ValueError as error:
        raise UndecodableError(str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise UndecodableError("not a file")
    if not status.st_size:
        raise UndecodableError(_EMPTY)
    return source


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith(_DEEP_MODES):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image.load()
    return image.convert(mode)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 0 to 65535; floats as 0 to 1 where none is larger, else as 0 to 255."""
    values: npt.NDArray[Any] = np.asarray(image).astype(np.float64)
    top = 65535.0 if image.mode.startswith("I") else 1.0 if values.max(initial=0) <= 1 else 255.0
    scaled = np.nan_to_num(np.clip(values * (255 / top), 0, 255))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _shrink(image: Image.Image, resize: int | None, interpolation: str) -> Image.Image:
    if resize is None or min(image.size) <= resize:
        return image
    return image.resize(shrunk_size(*image.size, resize), _FILTERS[interpolation])


def _as_array(image: Image.Image) -> Pixels:
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    # Pillow's own memory is read-only, and torch warns of that.
    return np.require(array, requirements=["C", "W"])
