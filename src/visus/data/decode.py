"""From a file, or its bytes, to pixels, or one reason why not. `read_image` needs Pillow and numpy only.

Pixels are uint8 `[C, H, W]`, 0 to 255, with the orientation applied and transparency composed on white. In memory they lie as they
come, `[H, W, C]`.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from visus.data.shrinking import shrink, shrunk_size
from visus.errors import one_line

Pixels = npt.NDArray[np.uint8]
Source = str | bytes
"""A file's path, or all its bytes."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

WAY = 4
"""Of decoding; another number where the same file gives other pixels, so that no cache mixes them."""
_REDUCED_TO = 2
"""Of the short side that is wanted, what a JPEG must have left when it is decoded at a fraction of its size."""

HANDED_OVER = 2**22
"""Pixels of an image, at most, that is shrunk where it is asked for, and not where it is decoded."""

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

_PNG_BEGINS = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
"""EXIF's tag; from 5 on, height and width change places."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "AVIF", "BMP", "DIB", "PPM")
"""Pillow would take others for images whatever their suffix says, and run Ghostscript on PostScript."""


@dataclass(frozen=True)
class DecodeSettings:
    """What `decode_image` is told; the same for all files of a set."""

    channels: int = 3
    resize: int | None = None
    interpolation: str = "bilinear"
    max_pixels: int = 100_000_000


class UndecodableError(Exception):
    """Why a file is no image that can be used.

    `lasting` where that is for its content; what cannot be read now, or not for want of memory, may be fine the next time.
    """

    def __init__(self, reason: str, *, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting


def decode_image(
    source: str | os.PathLike[str] | bytes,
    *,
    channels: int = 3,
    resize: int | None = None,
    interpolation: str = "bilinear",
    max_pixels: int = 100_000_000,
) -> Pixels:
    """The image in a file, given by its path or by all its bytes: `[channels, H, W]`, grey (1) or RGB (3).

    With `resize` it is shrunk, antialiased, so that its shorter side is that long; it is never enlarged. A JPEG that is large for
    that is decoded at a half, a quarter or an eighth of its size, by its width and height alone. Of an animation the first frame is
    taken. Raises `UndecodableError` for anything that is not a whole image of at most `max_pixels`; beyond 178 million
    Pillow's own limit holds.
    """
    image = read_image(
        source, channels=channels, resize=resize, interpolation=interpolation, max_pixels=max_pixels
    )
    return end_decoding(image, resize)


def end_decoding(image: Pixels, resize: int | None) -> Pixels:
    """`[channels, H, W]` of what `read_image` has left; `UndecodableError` where there is no memory for it."""
    try:
        return shrink(image, resize)
    # Torch has no kind of its own for that.
    except (MemoryError, RuntimeError) as error:
        raise UndecodableError(one_line(error), lasting=False) from None


def read_image(
    source: str | os.PathLike[str] | bytes,
    *,
    channels: int,
    resize: int | None,
    interpolation: str,
    max_pixels: int,
) -> Pixels:
    """As `decode_image`, but `[H, W, channels]`, and of its own size where `end_decoding` is to shrink it: with the bilinear
    filter, and where it is not so large that it had better not be handed from one process to another.
    """
    file = _openable(source)
    try:
        with warnings.catch_warnings():
            # Pillow's advice about odd files is no news to somebody whose image came out, and an error says enough.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise UndecodableError(
                        f"too many pixels: {width} x {height}, the limit is {max_pixels:,}"
                    )
                if image.format == "PNG":
                    _check_sums(source)
                scale = _reduce(image, resize, interpolation)
                plain = _in_mode(_upright(image), "L" if channels == 1 else "RGB")
                box: Box = (0, 0, *plain.size)
                if scale > 1:
                    box = _covered(plain, width / scale, height / scale, _orientation(image))
                return _as_array(_shrink(plain, resize, interpolation, box, scale))
    except UndecodableError:
        raise
    except Image.DecompressionBombError as error:
        raise UndecodableError(f"too many pixels: {error}") from None
    # Damaged files raise OSError, ValueError, SyntaxError, EOFError, struct.error, NotImplementedError, ... by their format.
    except Exception as error:
        raise _undecodable(error, file) from None


def read_size(source: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    """Height and width of an image by its header, its orientation applied; raises `UndecodableError`."""
    file = _openable(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                # Of a TIFF Pillow gives the size as it will be, and turns the pixels itself.
                turned = image.format != "TIFF" and _orientation(image) >= 5
    # As in `decode_image`.
    except Exception as error:
        raise _undecodable(error, file) from None
    return (width, height) if turned else (height, width)


def image_to_pixels(image: Image.Image) -> Pixels:
    """An image that is open already, as `[C, H, W]`: grey where its mode is, else RGB. What its EXIF says is left alone."""
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith(_DEEP_MODES)
    return shrink(_as_array(_in_mode(image, "L" if grey else "RGB")), None)


def pixels_to_image(pixels: Pixels) -> Image.Image:
    """An image `[C, H, W]`, grey or RGB, for Pillow."""
    plain = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(plain))


def flat(pixels: Pixels) -> Pixels:
    """An image `[C, H, W]` as one row of bytes, in the order in which those that were decoded lie in memory."""
    return pixels.transpose(1, 2, 0).reshape(-1)


def adapt_image(pixels: Pixels, channels: int, resize: int | None, interpolation: str) -> Pixels:
    """An image `[C, H, W]` with `channels` channels, shrunk as `decode_image` does."""
    image = pixels_to_image(pixels).convert("L" if channels == 1 else "RGB")
    return shrink(_as_array(_shrink(image, resize, interpolation, (0, 0, *image.size))), resize)


def _openable(source: str | os.PathLike[str] | bytes) -> str | os.PathLike[str] | io.BytesIO:
    """What Pillow can open. Opening a pipe would wait for ever."""
    if isinstance(source, bytes):
        if not source:
            raise UndecodableError(_EMPTY)
        return io.BytesIO(source)
    try:
        status = Path(source).stat()
    except OSError as error:
        raise UndecodableError(error.strerror or "cannot be read", lasting=False) from None
    except ValueError as error:
        raise UndecodableError(str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise UndecodableError("not a file")
    if not status.st_size:
        raise UndecodableError(_EMPTY)
    return source


def _check_sums(source: str | os.PathLike[str] | bytes) -> None:
    """Raise `UndecodableError` where the checksum of pixels of a PNG is wrong: Pillow does not look at it, and gives wrong pixels.

    Pieces of a file are a length, a name of four letters, the content, and a checksum of name and content (PNG Specification, 5.3).
    """
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        file.seek(len(_PNG_BEGINS))
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if name == b"IEND":
                return
            if name != b"IDAT":
                file.seek(length + 4, os.SEEK_CUR)
                continue
            expected = zlib.crc32(file.read(length), zlib.crc32(name))
            # What is cut off there is Pillow's to say.
            if len(found := file.read(4)) == 4 and found != expected.to_bytes(4, "big"):
                raise UndecodableError("damaged (the checksum of its pixels is wrong)")


def _undecodable(error: Exception, file: str | os.PathLike[str] | io.BytesIO) -> UndecodableError:
    """What Pillow raised, as one line that does not depend on where the file lies."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return UndecodableError(error.strerror, lasting=False)
    reason = one_line(error)
    for name in (
        (repr(os.fspath(file)), os.fspath(file)) if not isinstance(file, io.BytesIO) else (str(file),)
    ):
        reason = reason.replace(f"image file {name}", "image file").replace(name, "the file")
    if reason.lstrip("-").isdigit():
        reason = f"damaged (error {reason} of its decoder)"
    return UndecodableError(reason, lasting=not isinstance(error, MemoryError))


def _upright(image: Image.Image) -> Image.Image:
    """The image as it is meant to be seen."""
    # Before its EXIF, which some formats keep behind the pixels: what is damaged must fail here, where nothing is passed over.
    image.load()
    method = _UPRIGHT.get(_orientation(image))
    if method is None:
        return image
    turned = image.transpose(method)
    # Pillow leaves these behind, and a palette needs them.
    turned.info = dict(image.info)
    return turned


def _orientation(image: Image.Image) -> int:
    """What its EXIF says, 1 to 8; 1 where that cannot be read: pixels that are whole are worth more than it."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith(_DEEP_MODES):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image.load()
    return image if image.mode == mode else image.convert(mode)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Integers as 0 to 65535 where none is larger, else as 0 to 2**31 - 1; floats as 0 to 1 where none is larger, else to 255."""
    values: npt.NDArray[Any] = np.asarray(image).astype(np.float64)
    tops = (65535.0, 2.0**31 - 1) if image.mode.startswith("I") else (1.0, 255.0)
    top = tops[0] if values[np.isfinite(values)].max(initial=0) <= tops[0] else tops[1]
    scaled = np.nan_to_num(np.clip(values * (255 / top), 0, 255))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _reduce(image: Image.Image, resize: int | None, interpolation: str) -> int:
    """Have a JPEG decoded at a fraction of its size that leaves at least twice `resize`; returns by how much it is reduced.

    What the filter then does hides the difference: 0.2 to 0.5 of 255 on average. `nearest` would show it.
    """
    if image.format != "JPEG" or resize is None or interpolation == "nearest":
        return 1
    before = min(image.size)
    least = _REDUCED_TO * resize
    image.draft(image.mode, (least, least))
    return round(before / min(image.size))


def _covered(image: Image.Image, width: float, height: float, orientation: int) -> Box:
    """What of an upright image, decoded at a fraction, is picture: its last row and column may stand for fewer pixels than others.

    `width` and `height` are those of the picture at that scale, before it was turned and its last row came to be the first.
    """
    if orientation >= 5:
        width, height = height, width
    left = image.width - width if orientation in (2, 3, 6, 7) else 0.0
    top = image.height - height if orientation in (3, 4, 7, 8) else 0.0
    return left, top, left + width, top + height


def _shrink(
    image: Image.Image, resize: int | None, interpolation: str, box: Box, scale: int = 1
) -> Image.Image:
    """`box` of an image that was decoded at 1 / `scale` of its size, with its shorter side `resize` long.

    The whole image where that is for `shrink` to do.
    """
    width, height = round((box[2] - box[0]) * scale), round((box[3] - box[1]) * scale)
    if scale == 1 and interpolation == "bilinear" and width * height <= HANDED_OVER:
        return image
    if resize is None or min(width, height) <= resize:
        return image
    return image.resize(shrunk_size(width, height, resize), _FILTERS[interpolation], box)


def _as_array(image: Image.Image) -> Pixels:
    """`[H, W, C]`."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
