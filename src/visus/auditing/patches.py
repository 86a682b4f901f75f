"""Features of thumbnails without any training: how much each of some patches of the set is seen where in an image.

Coates, Lee and Ng, An Analysis of Single-Layer Networks in Unsupervised Feature Learning, 2011, with patches drawn from the set
in the place of their means. `N` images, `D` features.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from visus.auditing.scanning import SIDE, Bytes
from visus.ops.rng import random_words
from visus.ops.scratch import scratch_array

_PATCH = 6
_STRIDE = 2
_FILTERS = 96
_POOLED = 3
_DRAWN = 20_000
_COMPONENTS = 256
ROW_BYTES = 4 * _COMPONENTS
"""What the features of an image take, at most."""
_FITTED = 20_000
"""Images that the principal components are found from."""
_AT_ONCE = 250
_SOFT = 0.25
"""What is taken off each response: below it there is none."""

Features = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Components:
    """From rows `[N, D]` to at most 256 principal components, the first of variance 1; each column of the rows counts the same."""

    mean: Features
    scale: Features
    axes: Features
    """`[D, components]`."""

    def __call__(self, rows: Features) -> Features:
        """`[N, components]`, float32."""
        components: Features = ((rows - self.mean) / self.scale @ self.axes).astype(np.float32)
        return components


def fit_components(rows: Features) -> Components:
    """Those of `rows [N, D]`; some 20,000 of them tell as much as all."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-3
    centred = (rows - mean) / scale
    values, axes = np.linalg.eigh(centred.T @ centred / len(rows))
    return Components(mean, scale, axes[:, ::-1][:, :_COMPONENTS] / np.sqrt(max(values[-1], 1e-9)))


def principal_components(rows: Features) -> Features:
    """`[N, D]`, D at most 256, of `rows`; those of many lie in a file."""
    components = fit_components(rows[_evenly(len(rows))])
    blocks = (rows[begin : begin + _AT_ONCE] for begin in range(0, len(rows), _AT_ONCE))
    return _collected(len(rows), map(components, blocks))


def patch_features(thumbs: Bytes, places: Places, seed: int = 0) -> Features:
    """`[N, D]` for the images at `places`, D at most 256: principal components, the first of variance 1.

    Those of many lie in a file.
    """
    if not len(places):
        return np.empty((0, _COMPONENTS), dtype=np.float32)
    grey_only = bool((thumbs[places[:: max(1, len(places) // 1000)]].std(axis=-1) == 0).all())
    filters, mean = _filters(thumbs, places, grey_only, seed)

    def responses(some: Places) -> Iterator[Features]:
        for begin in range(0, len(some), _AT_ONCE):
            images = _images(thumbs, some[begin : begin + _AT_ONCE], grey_only)
            yield _responses(images, filters, mean).numpy()

    seen = np.concatenate([*responses(places[_evenly(len(places))])])
    components = fit_components(seen)
    if len(seen) == len(places):
        return components(seen)
    return _collected(len(places), map(components, responses(places)))


def _evenly(count: int) -> slice:
    """At most 20,000 of `count`, all as far from each other."""
    return slice(None, None, -(-count // _FITTED))


def _collected(count: int, blocks: Iterator[Features]) -> Features:
    """All rows of `blocks`, one after the other, `count` together."""
    first = next(blocks)
    rows = scratch_array((count, first.shape[1]), np.float32)
    begin = 0
    for block in itertools.chain([first], blocks):
        rows[begin : begin + len(block)] = block
        begin += len(block)
    return rows


def _images(thumbs: Bytes, places: Places, grey_only: bool) -> Tensor:
    """`[N, C, 32, 32]` from 0 to 1."""
    pixels = torch.from_numpy(np.ascontiguousarray(thumbs[places])).permute(0, 3, 1, 2).float() / 255
    return pixels[:, :1] if grey_only else pixels


def _unfolded(images: Tensor) -> Tensor:
    """`[N, places, patch]`, each patch of mean 0 and about standard deviation 1; flat ones stay flat."""
    patches = functional.unfold(images, _PATCH, stride=_STRIDE).transpose(1, 2)
    patches = patches - patches.mean(dim=2, keepdim=True)
    return patches / (patches.var(dim=2, keepdim=True, unbiased=False) + 10 / 255**2).sqrt()


def _filters(thumbs: Bytes, places: Places, grey_only: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Whitened patches of the set, of length 1, as columns `[patch, 96]` that also whiten what they meet; and the mean patch."""
    words = random_words(seed, "patches", 0, np.arange(_DRAWN), draws=2)
    chosen = places[words[: _DRAWN // 100, 0] % len(places)]
    patches = _unfolded(_images(thumbs, chosen, grey_only)).reshape(-1, _PATCH**2 * (1 if grey_only else 3))
    mean = patches.mean(dim=0)
    values, axes = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    whiten = axes @ torch.diag((values.clamp(min=0) + 0.1).rsqrt()) @ axes.T
    textured = patches[patches.norm(dim=1) > 1]
    if not len(textured):
        textured = patches
    picked = torch.from_numpy(words[:_FILTERS, 1].astype(np.int64)) % len(textured)
    white = (textured[picked] - mean) @ whiten
    return whiten @ (white / white.norm(dim=1, keepdim=True).clamp(min=1e-6)).T, mean


def _responses(images: Tensor, filters: Tensor, mean: Tensor) -> Tensor:
    """`[N, 2 * 96 * 9]`: both signs of every filter, averaged over each of 3 x 3 regions."""
    found = (_unfolded(images) - mean) @ filters
    both = torch.cat([functional.relu(found - _SOFT), functional.relu(-found - _SOFT)], dim=2)
    side = (SIDE - _PATCH) // _STRIDE + 1
    grid = both.transpose(1, 2).reshape(len(images), -1, side, side)
    return functional.adaptive_avg_pool2d(grid, _POOLED).flatten(1)
