"""What files tell of images besides their pixels: what to look at slices of."""

from __future__ import annotations

import io
from pathlib import PurePosixPath

from PIL import Image

from visus.data.files import FileImages
from visus.data.images import Images

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_NEARLY_SQUARE = 1.1


def file_attributes(images: Images) -> dict[str, list[object]]:
    """Of images in files, in order: `file_type`, `pixels` (of the original, in megapixels) and `aspect`; of others nothing.

    Only the head of each file is read. What it does not tell is NaN, or `unknown`.
    """
    if not isinstance(images, FileImages):
        return {}
    sizes = [_size(images, position) for position in range(len(images))]
    return {
        "file_type": [PurePosixPath(path).suffix.lower().removeprefix(".") for path in images.paths],
        "megapixels": [height * width / 1e6 if height else float("nan") for height, width in sizes],
        "aspect": [_aspect(*size) for size in sizes],
    }


def _size(images: FileImages, position: int) -> tuple[int, int]:
    """Height and width as people see the image; 0 where they cannot be read."""
    try:
        source = images.source(position)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    # Pillow raises almost anything at a damaged file; that it was decoded before shows that it is a matter of its metadata.
    except Exception:
        return 0, 0
    return (width, height) if sideways else (height, width)


def _aspect(height: int, width: int) -> str:
    if not height:
        return "unknown"
    if max(height, width) <= _NEARLY_SQUARE * min(height, width):
        return "square"
    return "portrait" if height > width else "landscape"
