"""Can the label be told without looking at the subject: from the file, the mean colour, one small cell, the border?

Each question is a linear model, judged on images that it was not fitted on. `N` images, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from visus.auditing.findings import Finding, Severity
from visus.auditing.scanning import SIDE, Bytes, Pool, Scan
from visus.ops.logistic import out_of_sample, stratified_folds

_LEAST = 20
"""Images of a class, below which nothing is said of it."""
_MOST = 20_000
"""Images that are looked at, evenly chosen."""
_PENALTY = 1e-3
_MANY = 400
"""Images of a class of which a half is enough to fit on."""
_FALSE_ALARMS = 0.01
_CELLS = 8
_CELL = SIDE // _CELLS
_GIVEN_AWAY = 0.95
"""Share of a class that a cell finds at 1 % false alarms from which on it is said; trousers between their legs reach 0.91."""
_OF_FILE, _OF_COLOUR = 0.5, 0.8
"""The same for size, format and mode, which say nothing of a subject, and for length of file and mean colour, which may."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Looked:
    """At some images of classes that are large enough."""

    files: list[str]
    labels: Array
    """`[N]`, numbers of `classes`."""
    classes: list[str]
    thumbs: Bytes
    """`[N, 32, 32, 3]`."""


def find_shortcuts(pool: Pool, scan: Scan) -> list[Finding]:
    """A finding for each class, or for all, that something beside the subject gives away.

    It names the files of which that is right, the surest first; none of them is to be left out.
    """
    places = np.flatnonzero(scan.readable)
    places = places[:: -(-max(1, len(places)) // _MOST)]
    counts = np.bincount(pool.labels[places], minlength=len(pool.classes))
    large = np.flatnonzero(counts >= _LEAST)
    if len(large) < 2:
        return []
    places = places[np.isin(pool.labels[places], large)]
    looked = _Looked(
        [pool.names[place] for place in places],
        np.searchsorted(large, pool.labels[places]),
        [pool.classes[number] for number in large],
        scan.thumbs[places],
    )
    by_cells, cell = _by_cells(looked)
    return [
        *_by_numbers(looked, _file_facts(scan, places), "size in pixels, format and mode", _OF_FILE),
        *_by_numbers(looked, _length(scan, places), "the length of the file", _OF_COLOUR),
        *_by_numbers(looked, _colour(looked.thumbs), "the mean colour", _OF_COLOUR),
        *by_cells,
        *_by_border(looked, cell),
    ]


def _surest(scores: Array, right: Array, labels: Array) -> Array:
    """Places of images that are `right`: the best scores `[N]` first, of each class in turn."""
    order = np.lexsort((-scores, labels))
    order = order[right[order]]
    rank = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
    return order[np.lexsort((-scores[order], rank))]


def _shortcut(
    looked: _Looked,
    message: str,
    share: float,
    scores: Array,
    right: Array,
    severity: Severity = "high",
) -> Finding:
    names = tuple(looked.files[place] for place in _surest(scores, right, looked.labels))
    return Finding("shortcut", severity, message, names, share)


def _found(scores: Array, inside: Array) -> Array:
    """Which of the images `inside` have a score higher than 99 % of the others have, `[N]`."""
    bound = np.quantile(scores[~inside], 1 - _FALSE_ALARMS, method="higher")
    found: Array = inside & (scores > bound)
    return found


def found_share(scores: Array, inside: Array) -> float:
    """The share of the images `inside` with a score higher than 99 % of the others have: 0.01 by chance."""
    return float(_found(scores, inside)[inside].mean())


def _by_numbers(looked: _Looked, facts: Array, what: str, limit: float) -> list[Finding]:
    spread = facts.std(axis=0)
    facts = (facts - facts.mean(axis=0))[:, spread > 1e-9] / spread[spread > 1e-9]
    if not facts.shape[1]:
        return []
    probabilities = out_of_sample(facts, looked.labels, len(looked.classes), penalty=_PENALTY)
    findings = []
    for number, name in enumerate(looked.classes):
        scores, inside = np.asarray(probabilities[:, number]), looked.labels == number
        share = found_share(scores, inside)
        if share >= limit:
            message = f"{what} give away {name}" if " and " in what else f"{what} gives away {name}"
            message += f": {100 * share:.0f} % of its images are found with 1 % false alarms (by chance 1 %)"
            findings.append(_shortcut(looked, message, share, scores, _found(scores, inside)))
    return findings


def _file_facts(scan: Scan, places: Array) -> Array:
    sizes = [np.log(np.maximum(values[places], 1)) for values in (scan.height, scan.width)]
    columns = [*sizes, scan.orientations[places] > 1]
    for names in (scan.formats, scan.modes):
        present = np.array(names, dtype=object)[places]
        columns += [present == name for name in sorted(set(present))]
    return np.stack(columns, axis=1).astype(np.float64)


def _length(scan: Scan, places: Array) -> Array:
    return np.log(np.maximum(scan.file_bytes[places], 1))[:, None]


def _colour(thumbs: Bytes) -> Array:
    means: Array = np.asarray(thumbs, dtype=np.float32).mean(axis=(1, 2)) / 255
    return np.concatenate([means, means**2], axis=1)


def _by_cells(looked: _Looked) -> tuple[list[Finding], tuple[int, int]]:
    """A watermark: one of 8 x 8 cells from which a class can be told, by ridge regression; and the cell that tells most."""
    fold = stratified_folds(looked.labels, 2)
    targets = np.eye(len(looked.classes))[looked.labels]
    insides = [looked.labels == number for number in range(len(looked.classes))]
    shares = np.zeros((_CELLS, _CELLS, len(insides)))
    for row in range(_CELLS):
        for column in range(_CELLS):
            scores = _ridge_scores(_cell(looked.thumbs, row, column), targets, fold)
            shares[row, column] = [found_share(scores[:, k], inside) for k, inside in enumerate(insides)]
    findings = []
    for number, (name, inside) in enumerate(zip(looked.classes, insides, strict=True)):
        row, column = divmod(int(shares[..., number].argmax()), _CELLS)
        share = float(shares[row, column, number])
        if share >= _GIVEN_AWAY:
            severity, like = _likely(row, column)
            message = (
                f"{_where(row, column)}, a 64th of the image gives away {name}: {100 * share:.0f} % of its images "
                f"are found with 1 % false alarms (by chance 1 %), as {like} would do"
            )
            scores = _ridge_scores(_cell(looked.thumbs, row, column), targets, fold)[:, number]
            findings.append(_shortcut(looked, message, share, scores, _found(scores, inside), severity))
    row, column = divmod(int(shares.mean(axis=2).argmax()), _CELLS)
    return findings, (row, column)


def _likely(row: int, column: int) -> tuple[Severity, str]:
    """How grave it is that a cell gives a class away, and what would do so: around the middle it may be the subject, as the hole
    of a zero."""
    quarter = _CELLS // 4
    if all(quarter <= place < _CELLS - quarter for place in (row, column)):
        return "medium", "a watermark, or a subject that is always in the same place,"
    return "high", "a watermark or a background"


def _cell(thumbs: Bytes, row: int, column: int) -> Array:
    """`[N, D]`: the pixels of a cell, its brightness squared, its contrast, and 1."""
    down, across = row * _CELL, column * _CELL
    pixels = thumbs[:, down : down + _CELL, across : across + _CELL].reshape(len(thumbs), -1) / 255.0
    extra = [pixels.mean(axis=1) ** 2, pixels.std(axis=1), np.ones(len(pixels))]
    return np.column_stack([pixels, *extra])


def _ridge_scores(inputs: Array, targets: Array, fold: Array) -> Array:
    scores = np.empty(targets.shape)
    for number in range(2):
        seen, held_out = inputs[fold != number], fold == number
        squares = seen.T @ seen + 1e-2 * np.eye(seen.shape[1])
        scores[held_out] = inputs[held_out] @ np.linalg.solve(squares, seen.T @ targets[fold != number])
    return scores


def _where(row: int, column: int) -> str:
    """Of a cell: `at the bottom right`, `in the middle`, else its middle, `31 % from the left and 44 % from the top`."""
    ends, middle = (0, _CELLS - 1), (_CELLS // 2 - 1, _CELLS // 2)
    if row in ends and column in ends:
        return f"at the {'bottom' if row else 'top'} {'right' if column else 'left'}"
    if row in middle and column in middle:
        return "in the middle"
    across, down = ((100 * place + 50) / _CELLS for place in (column, row))
    return f"{across:.0f} % from the left and {down:.0f} % from the top"


@dataclass(frozen=True)
class _Piece:
    """Of an image."""

    what: str
    alone: Array
    """Its numbers, `[N, D]`."""
    rest: Array
    """What is left of the image without it, `[N, D]`."""


def _by_border(looked: _Looked, cell: tuple[int, int]) -> list[Finding]:
    """Whether a border of an eighth of the side tells as much as the whole image does; named is what of it fits best.

    A border also shows the colour of the image, and may hold a watermark. Of the mean colour, the best `cell` and the border, those
    that alone tell as much as the best are compared by what is left without them: named is the one without which least is told,
    of equals the one of fewest numbers.
    """
    small = _small(looked.thumbs)
    border, whole = _border_of(small), _accuracy(small.reshape(len(small), -1), looked)
    told = _told(border.alone, looked)
    share = float(_right(told, looked).mean())
    majority = np.bincount(looked.labels).max() / len(looked.labels)
    if share < whole or (share - majority) / (1 - majority) < 0.5:
        return []
    smaller = [_mean_colour(small), _cell_of(small, cell)]
    pieces = [*smaller, border]
    probabilities = [*(_told(_as_large(each.alone, border.alone), looked) for each in smaller), told]
    shares = [float(_right(each, looked).mean()) for each in probabilities]
    named, left = _fitting(pieces, shares, looked)
    others = [
        f"{piece.what} alone: {100 * share:.1f} %"
        for piece, share in zip(pieces, shares, strict=True)
        if piece is not pieces[named]
    ]
    message = (
        f"{pieces[named].what} alone tells the class of {100 * shares[named]:.1f} % of the images, the whole image that of "
        f"{100 * whole:.1f} %, what is left without it that of {100 * left:.1f} % "
        f"(linear models; {'; '.join(others)}; always saying the largest class: {100 * majority:.1f} %)"
    )
    scores = probabilities[named][np.arange(len(looked.labels)), looked.labels]
    return [_shortcut(looked, message, shares[named], scores, _right(probabilities[named], looked))]


def _fitting(pieces: list[_Piece], shares: list[float], looked: _Looked) -> tuple[int, float]:
    """Which of `pieces`, that tell the class of `shares` of the images, fits best; and how much is told without it."""
    # Two standard errors of a share, at most.
    equal = len(looked.labels) ** -0.5
    good = [number for number, share in enumerate(shares) if share >= max(shares) - equal]
    left = [_accuracy(pieces[number].rest, looked) for number in good]
    return next(pair for pair in zip(good, left, strict=True) if pair[1] <= min(left) + equal)


def _small(thumbs: Bytes) -> Array:
    """`[N, 16, 16, 3]`, of mean 0 at each place."""
    means = np.asarray(thumbs, dtype=np.float32).reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4)) / 255
    small: Array = means - means.mean(axis=0)
    return small


def _mean_colour(small: Array) -> _Piece:
    means = small.mean(axis=(1, 2))
    alone = np.concatenate([means, means**2 - (means**2).mean(axis=0)], axis=1)
    return _Piece("the mean colour", alone, (small - means[:, None, None]).reshape(len(small), -1))


def _cell_of(small: Array, cell: tuple[int, int]) -> _Piece:
    inside = np.zeros((16, 16), dtype=np.bool_)
    row, column = cell
    inside[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = True
    return _cut(f"a 64th of the image {_where(row, column)}", small, inside)


def _border_of(small: Array) -> _Piece:
    inside = np.ones((16, 16), dtype=np.bool_)
    inside[2:-2, 2:-2] = False
    return _cut("the border", small, inside)


def _cut(what: str, small: Array, inside: Array) -> _Piece:
    return _Piece(what, *(small[:, places].reshape(len(small), -1) for places in (inside, ~inside)))


def _as_large(inputs: Array, others: Array) -> Array:
    """As large as `others` on average: the penalty is on weights, which are the larger the smaller the numbers are."""
    scaled: Array = inputs * (np.linalg.norm(others) / max(float(np.linalg.norm(inputs)), 1e-9))
    return scaled


def _told(inputs: Array, looked: _Looked) -> Array:
    folds = 2 if np.bincount(looked.labels).min() >= _MANY else 5
    return out_of_sample(inputs, looked.labels, len(looked.classes), penalty=_PENALTY, folds=folds)


def _right(probabilities: Array, looked: _Looked) -> Array:
    right: Array = probabilities.argmax(axis=1) == looked.labels
    return right


def _accuracy(inputs: Array, looked: _Looked) -> float:
    return float(_right(_told(inputs, looked), looked).mean())
