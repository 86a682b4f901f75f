"""TrivialAugment and RandAugment for whole batches, as pure functions of (seed, epoch, index).

Mueller and Hutter, TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation, 2021 (the wide space); Cubuk et al.,
RandAugment: Practical automated data augmentation with a reduced search space, 2019. Operations, spaces and defaults are those of
torchvision's `TrivialAugmentWide` and `RandAugment`: nearest neighbours, and black where an image has moved away.

Images are uint8 `[N, C, H, W]` with 1 or 3 channels. Arithmetic is such that an image comes out the same in any batch: whole
numbers, or float32 with every product rounded before it is added (`add_` with `alpha` may round once or twice, as a value falls
into a vector or a remainder).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visus.ops.rng import uniform

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Takes (column, row, 1) of a pixel to the column and row where it comes from."""

LEVELS = 31
"""Steps of each magnitude, from nothing to the largest."""
_RAND_LAYERS, _RAND_LEVEL = 2, 9
_VALUES_AT_ONCE = 2**19
"""So many stay in a cache while they are changed: 100 images of 224 x 224 took 35 ms where all at once took 60 to 72."""


class Operation(IntEnum):
    """What may be done to an image, and what its magnitude means."""

    IDENTITY = 0
    SHEAR_X = 1
    """Columns moved for each row down, to the left where positive."""
    SHEAR_Y = 2
    TRANSLATE_X = 3
    """Columns to the right; a fraction is cut off."""
    TRANSLATE_Y = 4
    ROTATE = 5
    """Degrees, counter-clockwise."""
    COLOUR = 6
    """Colour, sharpness, brightness and contrast: 0 leaves the image, -1 takes all of it away."""
    SHARPNESS = 7
    BRIGHTNESS = 8
    CONTRAST = 9
    POSTERIZE = 10
    """Bits that are kept."""
    SOLARIZE = 11
    """Share of 255 from which pixels are inverted."""
    AUTOCONTRAST = 12
    EQUALIZE = 13


_SIGNED = range(Operation.SHEAR_X, Operation.CONTRAST + 1)


@dataclass(frozen=True, slots=True)
class Change:
    """One operation for each image of a batch."""

    operations: Integers
    """`[N]`, of `Operation`."""
    magnitudes: Floats
    """`[N]`."""


def trivial_augment(seed: int, epoch: int, indices: Integers, size: tuple[int, int]) -> list[Change]:
    """One operation for each of the images at `indices [N]`, any as likely as the others, at any of 31 strengths.

    An image is moved by at most 32 pixels, as in the paper, or its own side where that is shorter.
    """
    draws = uniform(seed, "trivial", epoch, indices, 3)
    height, width = size
    largest = _largest(0.99, min(32, width), min(32, height), 135, 0.99, 6)
    return [_change(draws[:, 0], np.floor(draws[:, 1] * LEVELS), draws[:, 2], largest)]


def rand_augment(seed: int, epoch: int, indices: Integers, size: tuple[int, int]) -> list[Change]:
    """Two operations for each of the images at `indices [N]`, one after the other, at strength 9 of 30."""
    draws = uniform(seed, "rand", epoch, indices, 2 * _RAND_LAYERS)
    height, width = size
    largest = _largest(0.3, 150 / 331 * width, 150 / 331 * height, 30, 0.9, 4)
    level = np.full(len(draws), float(_RAND_LEVEL))
    return [_change(draws[:, k], level, draws[:, k + 1], largest) for k in range(0, 2 * _RAND_LAYERS, 2)]


POLICIES: dict[str, Callable[[int, int, Integers, tuple[int, int]], list[Change]]] = {
    "trivial": trivial_augment,
    "rand": rand_augment,
}


def _largest(
    shear: float, columns: float, rows: float, degrees: float, enhancement: float, bits: float
) -> Floats:
    """The largest magnitude of each operation; for the bits of posterize, how many are lost."""
    return np.array([0, shear, shear, columns, rows, degrees, *[enhancement] * 4, bits, 1, 0, 0], np.float64)


def _change(choice: Floats, level: Floats, sign: Floats, largest: Floats) -> Change:
    """What uniform numbers `choice [N]` and `sign [N]` and a `level [N]` from 0 to 30 stand for."""
    operations = np.floor(choice * len(Operation)).astype(np.int64)
    strength = largest[operations] * level / (LEVELS - 1)
    magnitudes = np.where(np.isin(operations, _SIGNED) & (sign < 0.5), -strength, strength)
    magnitudes = np.where(operations == Operation.POSTERIZE, np.rint(8 - strength), magnitudes)
    magnitudes = np.where(operations == Operation.SOLARIZE, 1 - strength, magnitudes)
    return Change(operations, magnitudes)


def apply_change(images: Tensor, change: Change) -> Tensor:
    """`images [N, C, H, W]`, each with its operation of `change` done to it."""
    # Brought in order, images of one kind are a slice: copied whole, where indexed assignment takes them value by value.
    order = np.argsort(change.operations, kind="stable")
    operations, magnitudes = change.operations[order], change.magnitudes[order]
    changed = _pick(images, order)
    at_once = max(1, _VALUES_AT_ONCE // max(1, images[:1].numel()))
    for kind, apply in _KINDS.items():
        first, end = np.searchsorted(operations, (kind.start, kind.stop))
        for begin in range(first, end, at_once):
            block = slice(begin, min(begin + at_once, end))
            changed[block] = apply(changed[block], operations[block], magnitudes[block])
    return _pick(changed, np.argsort(order))


def _pick(images: Tensor, places: Integers) -> Tensor:
    return images.index_select(0, torch.from_numpy(places).to(images.device))


def _move(images: Tensor, operations: Integers, magnitudes: Floats) -> Tensor:
    """Sheared, shifted or turned: for each place the nearest pixel of where it comes from, black outside."""
    n, channels, height, width = images.shape
    moves = zip(operations.tolist(), magnitudes.tolist(), strict=True)
    matrices = np.array([_MOVES[operation](magnitude, height, width) for operation, magnitude in moves])
    across, down = np.arange(width), np.arange(height)

    def coordinate(row: Floats) -> Tensor:
        """`[N, H, W]`, rounded; exact but for one addition."""
        along = _float32(row[:, :1] * across, images)[:, None, :]
        return (along + _float32(row[:, 1:2] * down + row[:, 2:], images)[:, :, None]).round_()

    columns, rows = coordinate(matrices[:, 0]), coordinate(matrices[:, 1])
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    places = rows.clamp_(0, height - 1).long().mul_(width).add_(columns.clamp_(0, width - 1).long())
    index = places.view(n, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view_as(images).mul_(inside[:, None])


def _shear_x(columns: float, _: int, __: int) -> Matrix:
    return (1, columns, columns / 2), (0, 1, 0)


def _shear_y(rows: float, _: int, __: int) -> Matrix:
    return (1, 0, 0), (rows, 1, rows / 2)


def _translate_x(columns: float, _: int, __: int) -> Matrix:
    return (1, 0, -math.trunc(columns)), (0, 1, 0)


def _translate_y(rows: float, _: int, __: int) -> Matrix:
    return (1, 0, 0), (0, 1, -math.trunc(rows))


def _rotate(degrees: float, height: int, width: int) -> Matrix:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (width - 1) / 2, (height - 1) / 2
    return (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y)


def _look_up(images: Tensor, operations: Integers, magnitudes: Floats) -> Tensor:
    """Changed by a table of 256 values for each image and channel."""
    tables = torch.empty((*images.shape[:2], 256), dtype=torch.uint8, device=images.device)
    for operation, make_table in _TABLES.items():
        places = np.flatnonzero(operations == operation)
        if len(places):
            magnitude = torch.from_numpy(magnitudes[places]).to(images.device)
            table = make_table(_pick(images, places), magnitude[:, None, None]).clamp_(0, 255)
            tables[torch.from_numpy(places)] = table.to(torch.uint8)
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def _brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    return _values(images) * (1 + magnitude).float()


def _contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Away from, or towards, the mean of the image as grey."""
    grey = _grey(images) if images.shape[1] == 3 else images[:, 0].float()
    # Whole numbers in float64: the sum is exact, in whatever order it is taken.
    mean = grey.sum((1, 2), dtype=torch.float64) / grey[0].numel()
    return _values(images) * (1 + magnitude).float() + mean.float()[:, None, None] * -magnitude.float()


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    step = (2 ** (8 - bits)).float()
    return (_values(images) / step).floor_() * step


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    values = _values(images)
    return torch.where(values >= (255 * threshold).float(), 255 - values, values)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretched to 0 to 255; a channel of one value stays."""
    values, flat = _values(images), images.flatten(2)
    low, high = flat.amin(2, keepdim=True).float(), flat.amax(2, keepdim=True).float()
    stretched = (values - low) / ((high - low) * (1 / 255))
    return torch.where(high > low, stretched, values)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Grey levels as evenly used as can be, in Pillow's whole numbers; a channel of too few pixels or of one value stays."""
    flat = images.flatten(2).long()
    one = torch.ones((), dtype=torch.int64, device=images.device)
    counts = torch.zeros((*images.shape[:2], 256), dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, flat, one.expand_as(flat))
    highest = flat.amax(2, keepdim=True)
    step = (flat.shape[2] - counts.gather(2, highest)) // 255
    below = counts.cumsum(2) - counts
    levels = (below + step // 2) // step.clamp(min=1)
    return torch.where(step > 0, levels, _values(images).long())


def _recolour(images: Tensor, _: Integers, magnitudes: Floats) -> Tensor:
    """Away from, or towards, grey; what is grey stays."""
    if images.shape[1] == 1:
        return images
    own, other = (_float32(each, images)[:, None, None, None] for each in (1 + magnitudes, -magnitudes))
    blended = (images * own).add_(_grey(images)[:, None].mul_(other))
    return blended.clamp_(0, 255).to(torch.uint8)


def _sharpen(images: Tensor, _: Integers, magnitudes: Floats) -> Tensor:
    """Away from, or towards, a smoothed image (Pillow's 3 x 3 `SMOOTH`); the outermost pixels stay."""
    values = images.float()
    if min(images.shape[2:]) > 2:
        inner = values[:, :, 1:-1, 1:-1]
        rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
        square = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
        smooth = ((square + 4 * inner) / 13).round_()
        inner.sub_((smooth - inner) * _float32(magnitudes, images)[:, None, None, None])
    return values.clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma `[N, H, W]` of RGB, rounded down: 0.2989 R + 0.587 G + 0.114 B (ITU-R BT.601), summed in whole numbers below 2**24."""
    red, green, blue = images.float().unbind(1)
    return ((2989 * red + 5870 * green + 1140 * blue) / 10000).floor_()


def _values(images: Tensor) -> Tensor:
    return torch.arange(256, dtype=torch.float32, device=images.device)


def _float32(values: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like.device)


_MOVES: dict[int, Callable[[float, int, int], Matrix]] = {
    Operation.SHEAR_X: _shear_x,
    Operation.SHEAR_Y: _shear_y,
    Operation.TRANSLATE_X: _translate_x,
    Operation.TRANSLATE_Y: _translate_y,
    Operation.ROTATE: _rotate,
}
"""Of a magnitude, the height and the width."""
_TABLES = {
    Operation.BRIGHTNESS: _brightness,
    Operation.CONTRAST: _contrast,
    Operation.POSTERIZE: _posterize,
    Operation.SOLARIZE: _solarize,
    Operation.AUTOCONTRAST: _autocontrast,
    Operation.EQUALIZE: _equalize,
}
_KINDS: dict[range, Callable[[Tensor, Integers, Floats], Tensor]] = {
    range(Operation.SHEAR_X, Operation.ROTATE + 1): _move,
    range(Operation.COLOUR, Operation.COLOUR + 1): _recolour,
    range(Operation.SHARPNESS, Operation.SHARPNESS + 1): _sharpen,
    range(Operation.BRIGHTNESS, Operation.EQUALIZE + 1): _look_up,
}
"""Of each range of operations how it is done; what is in none stays as it is."""
