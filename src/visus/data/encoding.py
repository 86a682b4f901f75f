"""Images as files again, for somebody to store: as they were, or shrunk and compressed anew.

`N` images.
"""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from visus.data.arrays import adapt_pixels
from visus.data.decode import FORMATS, Pixels, UndecodableError, pixels_to_image
from visus.data.files import FileImages, decode_all
from visus.data.folders import is_image
from visus.data.images import ArrayImages, Split

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "DIB": "bmp"}


@dataclass(frozen=True)
class Recoding:
    """What becomes of images that are compressed anew."""

    resize: int
    """Short side in pixels; a smaller image stays as large as it is."""
    quality: int
    """Of the JPEG, 1 to 100."""


@dataclass(frozen=True)
class EncodedImage:
    """The file of an image: its position in its part, the suffix of its name, and its content."""

    position: int
    suffix: str
    content: bytes


Encoded = Generator[EncodedImage | UndecodableError, None, None]


def encode_images(
    part: Split, positions: npt.NDArray[np.int64], recoding: Recoding | None, workers: int | None = None
) -> Encoded:
    """The files of the images at `positions [N]`, in that order, or why there is none.

    Without a `recoding` files are as they are, and arrays become PNGs, which lose nothing.
    """
    images = part.images
    if isinstance(images, ArrayImages):
        return _of_arrays(images, positions, recoding)
    assert isinstance(images, FileImages)
    if recoding is None:
        return _originals(images, positions)
    return _recoded(images, positions, recoding, workers)


def _of_arrays(images: ArrayImages, positions: npt.NDArray[np.int64], recoding: Recoding | None) -> Encoded:
    for position in positions.tolist():
        pixels = images.pixels[position : position + 1]
        if recoding is None:
            yield EncodedImage(position, "png", _compress(pixels[0].numpy(), "PNG"))
        else:
            shrunk = adapt_pixels(pixels, images.channels, recoding.resize)[0].numpy()
            yield EncodedImage(position, "jpg", _compress(shrunk, "JPEG", quality=recoding.quality))


def _originals(images: FileImages, positions: npt.NDArray[np.int64]) -> Encoded:
    for position in positions.tolist():
        try:
            source = images.source(position)
            content = source if isinstance(source, bytes) else Path(source).read_bytes()
            name = images.paths[position]
            suffix = name.rpartition(".")[2].lower() if is_image(name) else _suffix_of(content)
            yield EncodedImage(position, suffix, content)
        except OSError as error:
            yield UndecodableError(error.strerror or str(error), lasting=False)
        except UndecodableError as error:
            yield error


def _recoded(
    images: FileImages, positions: npt.NDArray[np.int64], recoding: Recoding, workers: int | None
) -> Encoded:
    shrunk = replace(images, resize=recoding.resize).subset(positions)
    with closing(decode_all(shrunk, workers)) as results:
        for position, result in zip(positions.tolist(), results, strict=True):
            if isinstance(result, UndecodableError):
                yield result
            else:
                content = _compress(result, "JPEG", quality=recoding.quality)
                yield EncodedImage(position, "jpg", content)


def _compress(pixels: Pixels, kind: str, **options: int) -> bytes:
    """`pixels [C, H, W]` as the content of a file."""
    buffer = io.BytesIO()
    pixels_to_image(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _suffix_of(content: bytes) -> str:
    """What the name of a file with this content should end in, by its header."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            kind = str(image.format)
    # Whatever a damaged header may raise.
    except Exception:
        raise UndecodableError("cannot identify image file") from None
    return _SUFFIXES.get(kind, kind.lower())
