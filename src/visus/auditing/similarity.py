"""Images made from one another: compressed again, resized, brighter, or cropped a little.

`N` images, `D` numbers that describe one. An image is described by its grey thumbnail, whitened by the principal components of
the set itself: what all images of a set share (a dark background, the outline of a shirt) counts little, what is particular to one
counts much, so that copies are similar (0.9 and more of 1) and others of the set are not, however alike they look. Whitening
is what makes a fixed threshold serve sets as different as photographs and silhouettes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from visus.auditing.scanning import SIDE, Bytes
from visus.ops.nearest import WORDS, near_codes, sign_codes, unit_rows
from visus.ops.scratch import scratch_array

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint64]
Candidates = npt.NDArray[np.void]
"""An image, another one that may be the same, the window of the first that is nearest to it, in how many bits they differ, and
how similar they are, once that is known."""

_GRID = 16
"""Side of what is compared: finer detail does not survive compression."""
_COMPONENTS = 128
VECTOR_BYTES = 4 * _COMPONENTS
"""What describes an image takes."""
_FITTED = 20_000
"""Images that the principal components are found from."""
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_RADIUS = 16
_CANDIDATES = 8
"""Of each image, the nearest by their codes; the best few of these are looked at closely."""
_LOOKED_AT = 3
_LIKELY = 0.5
_SAME = 0.97
_RATIO = 0.4
"""Of the distance (1 less the similarity) to a copy, to that of the next image. Both figures from `benchmarks/audit.py`."""
_SAME_FEATURES = 0.94
"""By the features of a model, which a change moves further than what is whitened and brought into line here."""
_LIKE = 0.93
"""So similar are also copies of one image to each other."""
_STEPS = (1 / 32, 1 / 32, 1 / 64, 1 / 64, 1 / 128)
"""By which margins are moved, one side after the other, to bring two images into line."""
_MOST_CUT = 0.25
_ACROSS, _DOWN = (0, 1), (2, 3)
"""Which margins are left and right, which top and bottom."""
_AT_ONCE = 4096
_SEARCHED = 100_000
"""Images whose copies are searched for at a time."""
_WAITING = 2_000_000
"""Candidates that are held until the nearest of them are chosen; more where many images are searched for."""
_CANDIDATE = np.dtype(
    [("image", "u4"), ("other", "u4"), ("distance", "u2"), ("window", "u1"), ("similarity", "f4")]
)
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
        return unit_rows((_described(means) - self.mean) @ self.axes)


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


def near_pairs(
    thumbs: Bytes,
    places: Places,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[tuple[int, int, float]]:
    """Pairs of `places` whose images are nearly the same, and their similarity (at most 1); `thumbs` is of all images.

    Time grows as N log N. What describes many images lies in a file, so that memory grows by some 80 bytes for each only.
    `progress(done, total)` is called now and then.
    """
    if len(places) < 2:
        return []
    step = -(-len(places) // _FITTED)
    whitening = fit_whitening(_grey(thumbs[places[::step]]))
    vectors, codes = _describe_all(thumbs, places, whitening)
    found = []
    for some in _parts(len(places), _SEARCHED):
        progress(int(some[0]), len(places))
        likeliest = _search(thumbs, places, whitening, codes, some)
        ends = np.unique(np.searchsorted(likeliest["image"], likeliest["image"][_AT_ONCE::_AT_ONCE]))
        for rows in np.split(likeliest, ends):
            grey = _grey(thumbs[places[rows["image"]]])
            found.append(_align(grey, vectors[rows["other"]], whitening, rows))
            progress(int(rows["image"].max(initial=some[0])), len(places))
    progress(len(places), len(places))
    return _outstanding(np.concatenate(found), places, _SAME)


def _parts(count: int, size: int) -> Iterator[Places]:
    """Which of `count`: `size` at a time."""
    return (np.arange(begin, min(begin + size, count)) for begin in range(0, count, size))


def _search(thumbs: Bytes, places: Places, whitening: Whitening, codes: Codes, images: Places) -> Candidates:
    """For each of `images` the others that are nearest to a window of it."""
    windows = np.empty((len(_WINDOWS), len(images), WORDS), dtype=np.uint64)
    for some in _parts(len(images), _AT_ONCE):
        grey = _grey(thumbs[places[images[some]]])
        for number, window in enumerate(_WINDOWS):
            windows[number, some] = sign_codes(whitening(grey, np.array(window, np.float32)))
    return _candidates(codes, windows.reshape(-1, WORDS), images)


def _align(grey: Floats, others: Floats, whitening: Whitening, rows: Candidates) -> Candidates:
    """Those of `rows` that may be copies, with their similarity without the margins with which it is highest."""
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
    rows = rows[likely]
    rows["similarity"] = best
    return rows


def _dots(left: Floats, right: Floats) -> Floats:
    """`[N]`, of rows `[N, D]`."""
    dots: Floats = np.einsum("nd,nd->n", left, right)
    return dots


def _outstanding(rows: Candidates, places: Places, least: float) -> list[tuple[int, int, float]]:
    """The `places` of pairs at `least` so similar, and far more so than either image is to another that is no copy of both.

    The second condition is Lowe's (Distinctive Image Features from Scale-Invariant Keypoints, 2004): where all trousers look
    alike, two pairs of them are no copies of one another.
    """
    # Of millions of pairs only these have a say in it.
    same = rows[rows["similarity"] >= least]
    concerned = np.unique(np.concatenate([same["image"], same["other"]]))
    rows = rows[np.isin(rows["image"], concerned) | np.isin(rows["other"], concerned)]
    pairs: dict[tuple[int, int], float] = {}
    for a, b, s in rows[["image", "other", "similarity"]].tolist():
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
        (int(places[a]), int(places[b]), min(1.0, s))
        for (a, b), s in sorted(pairs.items())
        if s >= least and 1 - s <= _RATIO * (1 - max(next_best(a, b), next_best(b, a), _LIKELY))
    ]


def near_vectors(vectors: Floats, places: Places) -> list[tuple[int, int, float]]:
    """As `near_pairs`, by the features `vectors [N, D]` of the images at `places` that a trained model gave them."""
    if len(places) < 2:
        return []
    unit = unit_rows(vectors - vectors.mean(axis=0))
    codes = sign_codes(unit)
    rows = _candidates(codes, codes, np.arange(len(codes)))
    for some in _parts(len(rows), _AT_ONCE):
        rows["similarity"][some] = _dots(unit[rows["image"][some]], unit[rows["other"][some]])
    return _outstanding(rows, places, _SAME_FEATURES)


def _grey(thumbs: Bytes) -> Floats:
    grey: Floats = np.asarray(thumbs, dtype=np.float32) @ _LUMA
    return grey


def _describe_all(thumbs: Bytes, places: Places, whitening: Whitening) -> tuple[Floats, Codes]:
    """The vectors `[N, D]` of all images as they are, and their codes `[N, W]`."""
    vectors = scratch_array((len(places), whitening.axes.shape[1]), np.float32)
    codes = np.empty((len(places), WORDS), dtype=np.uint64)
    for some in _parts(len(places), _AT_ONCE):
        vectors[some] = whitening(_grey(thumbs[places[some]]), np.zeros(4, dtype=np.float32))
        codes[some] = sign_codes(vectors[some])
    return vectors, codes


def _candidates(codes: Codes, windows: Codes, images: Places) -> Candidates:
    """For each of `images`, whose windows have the codes `[windows * images, W]`, the others of `codes [N, W]` that are nearest."""
    best: Candidates = np.empty(0, dtype=_CANDIDATE)
    waiting: list[Candidates] = []
    held = 0
    for queries, found, distances in near_codes(codes, windows, radius=_RADIUS):
        rows = np.zeros(len(queries), dtype=_CANDIDATE)
        rows["image"], rows["window"] = images[queries % len(images)], queries // len(images)
        rows["other"], rows["distance"] = found, distances
        waiting.append(rows[rows["image"] != rows["other"]])
        held += len(waiting[-1])
        if held > _WAITING + _CANDIDATES * len(images) // 2:
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


def _described(means: Floats) -> Floats:
    """`[N, 256]`, of `[N, 16, 16]`: of mean 0 and length 1, whatever an image's brightness and contrast."""
    rows = means.reshape(len(means), _GRID**2)
    return unit_rows(rows - rows.mean(axis=1, keepdims=True))


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
