"""Images made from one another: compressed again, resized, brighter, or cropped a little.

`N` images, `D` numbers that describe one. An image is described by its grey thumbnail, whitened by the principal components of
the set itself: what all images of a set share (a dark background, the outline of a shirt) counts little, what is particular to one
counts much, so that copies are similar (0.9 and more of 1) and others of the set are not, however alike they look. Whitening
is what makes a fixed threshold serve sets as different as photographs and silhouettes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from visus.auditing.scanning import SIDE, Bytes
from visus.ops.nearest import near_codes, sign_codes

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Candidates = npt.NDArray[np.void]
"""An image, another one that may be the same, the window of the first that is nearest to it, and in how many bits they differ."""

_GRID = 16
"""Side of what is compared: finer detail does not survive compression."""
_COMPONENTS = 128
_FITTED = 20_000
"""Images that the principal components are found from."""
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_RADIUS = 18
_CANDIDATES = 16
"""Of each image, the nearest by their codes; the best few of these are looked at closely."""
_LOOKED_AT = 3
_LIKELY = 0.5
_SAME = 0.94
_RATIO = 0.4
"""Of the distance (1 less the similarity) to a copy, to that of the next image. Both figures from `benchmarks/audit.py`."""
_LIKE = 0.93
"""So similar are also copies of one image to each other."""
_STEPS = (1 / 32, 1 / 32, 1 / 64, 1 / 64, 1 / 128)
"""By which margins are moved, one side after the other, to bring two images into line."""
_MOST_CUT = 0.25
_ACROSS, _DOWN = (0, 1), (2, 3)
"""Which margins are left and right, which top and bottom."""
_AT_ONCE = 4096
_WAITING = 2_000_000
"""Candidates that are held until the nearest of them are chosen; more where there are many images."""
_CANDIDATE = np.dtype([("image", "u4"), ("other", "u4"), ("distance", "u1"), ("window", "u1")])
_WINDOWS = [
    (0.0, 0.0, 0.0, 0.0),
    *(
        (size * x, size * (1 - x), size * y, size * (1 - y))
        for size, x, y in product((0.05, 0.1), (0, 0.5, 1), (0, 0.5, 1))
    ),
]
"""What may have been cut off (left, right, top, bottom, as shares of the side) to make one image from another."""


@dataclass(frozen=True)
class Whitening:
    """From thumbnails to vectors `[N, D]` of length 1."""

    mean: Floats
    axes: Floats
    """`[256, 128]`, scaled so that each direction varies alike in the set."""

    def __call__(self, grey: Floats, margins: Floats) -> Floats:
        """Of grey thumbnails `[N, 32, 32]`, each without its `margins [N, 4]`, or all without the same `[4]`."""
        return self.of_means(_means(grey, margins))

    def of_means(self, means: Floats) -> Floats:
        """Of thumbnails that are `[N, 16, 16]` already."""
        return _unit((_described(means) - self.mean) @ self.axes)


def fit_whitening(grey: Floats) -> Whitening:
    """The first 128 principal components of `grey [N, 32, 32]`.

    Of few images the covariance is unknown: it is mixed with that of photographs in general, whose variance falls with the
    square of the spatial frequency (Field, Relations between the statistics of natural images and cortical cells, 1987).
    """
    rows = _described(_means(grey, np.zeros(4, dtype=np.float32)))
    mean = rows.mean(axis=0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    share = min(1.0, _GRID**2 / len(rows))
    prior = _natural_covariance()
    mixed = (1 - share) * covariance + share * prior * max(np.trace(covariance), 1e-6) / np.trace(prior)
    values, axes = np.linalg.eigh(mixed)
    values, axes = values[::-1][:_COMPONENTS], axes[:, ::-1][:, :_COMPONENTS]
    return Whitening(mean, (axes / np.sqrt(np.maximum(values, 1e-3 * values[0]))).astype(np.float32))


def _natural_covariance() -> npt.NDArray[np.float64]:
    """`[256, 256]`: 1 / f^2 along the cosines of each frequency, without a constant."""
    places = np.arange(_GRID)
    cosines = np.cos(np.pi * np.outer(places, 2 * places + 1) / (2 * _GRID))
    cosines /= np.linalg.norm(cosines, axis=1, keepdims=True)
    waves = np.einsum("ay,bx->abyx", cosines, cosines).reshape(_GRID**2, _GRID**2)
    power = 1.0 / np.maximum(np.add.outer(places**2, places**2), 1).reshape(-1)
    power[0] = 0
    covariance: npt.NDArray[np.float64] = (waves.T * power) @ waves
    return covariance


def near_pairs(thumbs: Bytes, places: Places) -> list[tuple[int, int, float]]:
    """Pairs of `places` whose images are nearly the same, and their similarity (at most 1); `thumbs` is of all images.

    Time grows as N log N, memory by some 600 bytes for each image.
    """
    if len(places) < 2:
        return []
    step = -(-len(places) // _FITTED)
    whitening = fit_whitening(_grey(thumbs[places[::step]]))
    vectors, codes = _describe_all(thumbs, places, whitening)
    likeliest = _candidates(codes, len(places))
    if not len(likeliest):
        return []
    images, others, similarity = _compare(thumbs, places, whitening, vectors, likeliest)
    return [(int(places[i]), int(places[j]), s) for i, j, s in _outstanding(images, others, similarity)]


def _compare(
    thumbs: Bytes, places: Places, whitening: Whitening, vectors: Floats, likeliest: Candidates
) -> tuple[Places, Places, Floats]:
    """Image, other, and similarity, of the best candidates of each image."""
    ends = np.unique(np.searchsorted(likeliest["image"], likeliest["image"][_AT_ONCE::_AT_ONCE]))
    kept, similarity = [], []
    for rows in np.split(likeliest, ends):
        grey = _grey(thumbs[places[rows["image"]]])
        likely, best = _align(grey, vectors[rows["other"]], whitening, rows)
        kept.append(rows[likely])
        similarity.append(best)
    pairs = np.concatenate(kept)
    return pairs["image"], pairs["other"], np.concatenate(similarity)


def _align(grey: Floats, others: Floats, whitening: Whitening, rows: Candidates) -> tuple[Places, Floats]:
    """Which of `rows` may be copies, and how similar each is to the other without the margins with which it is most similar."""
    margins = np.array(_WINDOWS, dtype=np.float32)[rows["window"]]
    first = _dots(whitening(grey, margins), others)
    order = np.lexsort((-first, rows["image"]))
    rank = np.arange(len(rows)) - np.searchsorted(rows["image"][order], rows["image"][order])
    likely = order[(rank < _LOOKED_AT) & (first[order] > _LIKELY)]
    grey, others, best, cut = grey[likely], others[likely], first[likely], margins[likely]
    for step, (sides, fixed) in product(_STEPS, ((_ACROSS, _DOWN), (_DOWN, _ACROSS))):
        # The image shrinks along the axis that stays once for all that is tried along the other.
        half = _shrunk(grey, cut, fixed)
        for side, sign in product(sides, (1, -1)):
            moved = cut.copy()
            moved[:, side] = np.clip(moved[:, side] + sign * step, 0, _MOST_CUT)
            there = _dots(whitening.of_means(_shrunk(half, moved, sides)), others)
            better = there > best
            best, cut = np.where(better, there, best), np.where(better[:, None], moved, cut)
    return likely, best


def _dots(left: Floats, right: Floats) -> Floats:
    """`[N]`, of rows `[N, D]`."""
    dots: Floats = np.einsum("nd,nd->n", left, right)
    return dots


def _outstanding(images: Places, others: Places, similarity: Floats) -> list[tuple[int, int, float]]:
    """Those pairs that are similar, and far more so than either image is to the next one that is no copy of the other.

    The second condition is Lowe's (Distinctive Image Features from Scale-Invariant Keypoints, 2004): where all trousers look
    alike, two pairs of them are no copies of one another.
    """
    # Of millions of pairs only these have a say in it.
    same = similarity >= _SAME
    concerned = np.unique(np.concatenate([images[same], others[same]]))
    beside_them = np.isin(images, concerned) | np.isin(others, concerned)
    images, others, similarity = images[beside_them], others[beside_them], similarity[beside_them]
    pairs: dict[tuple[int, int], float] = {}
    for a, b, s in zip(images.tolist(), others.tolist(), similarity.tolist(), strict=True):
        pair = (min(a, b), max(a, b))
        pairs[pair] = max(s, pairs.get(pair, 0.0))
    beside: defaultdict[int, list[int]] = defaultdict(list)
    for a, b in pairs:
        beside[a].append(b)
        beside[b].append(a)

    def alike(a: int, b: int) -> float:
        return pairs.get((min(a, b), max(a, b)), 0.0)

    def next_best(a: int, b: int) -> float:
        """How similar the nearest image to `a` is that is neither `b` nor like it."""
        return max((alike(a, c) for c in beside[a] if c != b and alike(b, c) < _LIKE), default=0.0)

    return [
        (a, b, min(1.0, s))
        for (a, b), s in sorted(pairs.items())
        if s >= _SAME and 1 - s <= _RATIO * (1 - max(next_best(a, b), next_best(b, a), _LIKELY))
    ]


def near_vectors(vectors: Floats, places: Places) -> list[tuple[int, int, float]]:
    """As `near_pairs`, by the features `vectors [N, D]` of the images at `places` that a trained model gave them."""
    if len(places) < 2:
        return []
    unit = _unit(vectors - vectors.mean(axis=0))
    found = _candidates(sign_codes(unit), len(places))
    images, others = found["image"], found["other"]
    similarity = np.empty(len(found), dtype=np.float32)
    for begin in range(0, len(found), _AT_ONCE):
        some = slice(begin, begin + _AT_ONCE)
        similarity[some] = _dots(unit[images[some]], unit[others[some]])
    return [(int(places[i]), int(places[j]), s) for i, j, s in _outstanding(images, others, similarity)]


def _grey(thumbs: Bytes) -> Floats:
    grey: Floats = np.asarray(thumbs, dtype=np.float32) @ _LUMA
    return grey


def _describe_all(
    thumbs: Bytes, places: Places, whitening: Whitening
) -> tuple[Floats, npt.NDArray[np.uint64]]:
    """The vectors of all images as they are `[N, D]`, and the codes of each window of each, `[windows * N]`."""
    vectors = np.empty((len(places), whitening.axes.shape[1]), dtype=np.float32)
    codes = np.empty((len(_WINDOWS), len(places)), dtype=np.uint64)
    for begin in range(0, len(places), _AT_ONCE):
        block = slice(begin, begin + _AT_ONCE)
        grey = _grey(thumbs[places[block]])
        for number, window in enumerate(_WINDOWS):
            cut = whitening(grey, np.array(window, np.float32))
            codes[number, block] = sign_codes(cut)
            if number == 0:
                vectors[block] = cut
    return vectors, codes.reshape(-1)


def _candidates(codes: npt.NDArray[np.uint64], n: int) -> Candidates:
    """For each image those others that a window of it is nearest to."""
    best: Candidates = np.empty(0, dtype=_CANDIDATE)
    waiting: list[Candidates] = []
    held = 0
    for queries, found, distances in near_codes(codes[:n], codes, radius=_RADIUS):
        other = queries % n != found
        rows = np.empty(np.count_nonzero(other), dtype=_CANDIDATE)
        rows["image"], rows["other"] = queries[other] % n, found[other]
        rows["distance"], rows["window"] = distances[other], queries[other] // n
        waiting.append(rows)
        held += len(rows)
        if held > _WAITING + _CANDIDATES * n // 2:
            best, waiting, held = _nearest_of(np.concatenate([best, *waiting])), [], 0
    return _nearest_of(np.concatenate([best, *waiting]))


def _nearest_of(rows: Candidates) -> Candidates:
    """Each pair once, with its nearest window, and of each image the nearest few."""
    rows = rows[np.lexsort((rows["window"], rows["distance"], rows["other"], rows["image"]))]
    first = np.ones(len(rows), dtype=np.bool_)
    first[1:] = (rows["image"][1:] != rows["image"][:-1]) | (rows["other"][1:] != rows["other"][:-1])
    rows = rows[first]
    rows = rows[np.lexsort((rows["other"], rows["distance"], rows["image"]))]
    starts = np.searchsorted(rows["image"], rows["image"])
    return rows[np.arange(len(rows)) - starts < _CANDIDATES]


def _unit(rows: npt.NDArray[Any]) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return unit


def _described(means: Floats) -> Floats:
    """`[N, 256]`, of `[N, 16, 16]`: of mean 0 and length 1, whatever an image's brightness and contrast."""
    rows = means.reshape(len(means), _GRID**2)
    return _unit(rows - rows.mean(axis=1, keepdims=True))


def _means(grey: Floats, margins: Floats) -> Floats:
    """`[N, 16, 16]`, of images `[N, 32, 32]` without their margins."""
    return _shrunk(_shrunk(grey, margins, _DOWN), margins, _ACROSS)


def _shrunk(images: Floats, margins: Floats, sides: tuple[int, int]) -> Floats:
    """`[N, H, W]` with 16 means in the place of 32 cells along one axis, the margins at its two `sides` left out."""
    before, after = margins[..., sides[0]], margins[..., sides[1]]
    start, length = before * SIDE, (1 - before - after) * SIDE
    edges = start[..., None] + length[..., None] * np.linspace(0, 1, _GRID + 1, dtype=np.float32)
    cells = np.arange(SIDE, dtype=np.float32)
    low = np.maximum(edges[..., :-1, None], cells)
    high = np.minimum(edges[..., 1:, None], cells + 1)
    shares = np.maximum(high - low, 0)
    weights = shares / np.maximum(shares.sum(axis=-1, keepdims=True), 1e-9)
    shrunk: Floats = weights @ images if sides == _DOWN else images @ weights.swapaxes(-1, -2)
    return shrunk
