"""The pixels of batches: of images that were kept when they are asked for, of others some batches ahead, from child processes.

`N` images, `C` channels, `H` height, `W` width. Pixels are uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visus.data.ahead import both, in_order, working
from visus.data.files import FileImages
from visus.data.images import ArrayImages, Images
from visus.processors import own_processors

Positions = npt.NDArray[np.int64]
Wanted = tuple[Positions, Sequence[Any] | npt.NDArray[Any]]
"""Which images a batch has, and what the change of each is given besides."""
Change = Callable[[Tensor, Any], Tensor]
"""What is done to an image `[C, h, w]` with what it is given, alone and in any thread."""

_AHEAD_BATCHES = 2
_AHEAD_BYTES = 2**30


def read_batches(
    images: Images,
    wanted: Iterable[Wanted],
    change: Change,
    *,
    workers: int | None = None,
    image_bytes: int | None = None,
) -> Generator[list[Tensor], None, None]:
    """The images of each batch that is `wanted`, changed, in order; the same for any `workers`, and wherever they are kept.

    Those that were kept are read and changed by as many threads as there are `workers`, a batch when it is asked for. Others are
    decoded by as many child processes, two batches ahead as long as these take at most 1 GB, of `image_bytes` each after the
    change (unknown: four images for each worker). With 0 workers all is done in the calling thread. `DataError` for a file that
    can no longer be used, when its batch is asked for.
    """
    workers = own_processors() if workers is None else workers
    if isinstance(images, FileImages) and images.decoded is None:
        return _read_ahead(images, wanted, change, workers, image_bytes)
    return _read_now(images, wanted, change, workers)


def _read_now(
    images: Images, wanted: Iterable[Wanted], change: Change, workers: int
) -> Generator[list[Tensor], None, None]:
    def read(some: Wanted) -> list[Tensor]:
        return [change(read_one(images, position), given) for position, given in zip(*some, strict=True)]

    with working(max(1, workers)) as pool:
        for positions, given in wanted:
            if workers < 2:
                yield read((positions, given))
                continue
            ends = (len(positions) * np.arange(workers + 1) // workers).tolist()
            shares = [(positions[begin:end], given[begin:end]) for begin, end in pairwise(ends)]
            yield [image for share in pool.map(read, shares) for image in share]


def _read_ahead(
    images: FileImages, wanted: Iterable[Wanted], change: Change, workers: int, image_bytes: int | None
) -> Generator[list[Tensor], None, None]:
    def read(some: Wanted) -> list[Tensor]:
        positions = some[0].tolist()
        pixels = images.read_apart(positions) if workers else map(images.read, positions)
        return [change(torch.from_numpy(each), given) for each, given in zip(pixels, some[1], strict=True)]

    batches = iter(wanted)
    first = next(batches, None)
    if first is None:
        return
    most = 4 * workers
    if image_bytes is not None:
        most = max(most, min(_AHEAD_BATCHES * len(first[0]), _AHEAD_BYTES // max(1, image_bytes)))
    mine, theirs = both(chain((first,), batches))
    # It has room for all its images, and is to be let go as the others are.
    del first
    shares = (share for some in theirs for share in _in_shares(some, images, workers))
    with closing(in_order(read, shares, workers, most, lambda share: len(share[0]))) as results:
        read_images = chain.from_iterable(results)
        for positions, _ in mine:
            yield list(islice(read_images, len(positions)))


def _in_shares(some: Wanted, images: FileImages, workers: int) -> Iterator[Wanted]:
    """`some` in shares of one thread's work: of as many images as a child may get by then, and of a batch each thread some."""
    positions, given = some
    size = max(1, min(images.decoders.at_once(images.settings), -(-len(positions) // max(1, workers))))
    for begin in range(0, len(positions), size):
        yield positions[begin : begin + size], given[begin : begin + size]


def read_one(images: Images, position: int) -> Tensor:
    """One image, uint8 `[C, h, w]`; `DataError` for a file that can no longer be used."""
    if isinstance(images, ArrayImages):
        return images.pixels[position]
    assert isinstance(images, FileImages)
    return torch.from_numpy(images.read(position))


def pixels_bytes(images: Images, size: tuple[int, int]) -> int:
    """What one of `images` takes as pixels of `size`."""
    return images.channels * math.prod(size)
