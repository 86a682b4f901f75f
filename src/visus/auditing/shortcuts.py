"""Can the label be told without looking at the subject: from the file, the mean colour, one small cell, the border?

Each question is a linear model, judged on images that it was not fitted on. `N` images, `K` classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from visus.auditing.findings import Finding
from visus.auditing.scanning import SIDE, Bytes, Pool, Scan
from visus.ops.logistic import out_of_sample, stratified_folds

_LEAST = 20
"""Images of a class, below which nothing is said of it."""
_MOST = 20_000
"""Images that are looked at, evenly chosen."""
_PENALTY = 1e-3
_FALSE_ALARMS = 0.01
_CELLS = 8
_CELL = SIDE // _CELLS
_GIVEN_AWAY = 0.95
"""Share of a class that a cell finds at 1 % false alarms from which on it is said; trousers between their legs reach 0.91."""
_OF_FILE, _OF_COLOUR = 0.5, 0.8
"""The same for size, format and mode, which say nothing of a subject, and for length of file and mean colour, which may."""
_ROWS = ("top", "upper middle", "middle", "lower middle", "bottom")
_COLUMNS = ("left", "left of the middle", "middle", "right of the middle", "right")

Array = npt.NDArray[Any]


def find_shortcuts(pool: Pool, scan: Scan) -> list[Finding]:
    """A finding for each class, or for all, that something beside the subject gives away."""
    places = np.flatnonzero(scan.readable)
    places = places[:: -(-max(1, len(places)) // _MOST)]
    counts = np.bincount(pool.labels[places], minlength=len(pool.classes))
    large = np.flatnonzero(counts >= _LEAST)
    if len(large) < 2:
        return []
    places = places[np.isin(pool.labels[places], large)]
    labels = np.searchsorted(large, pool.labels[places])
    names = [pool.classes[number] for number in large]
    return [
        *_by_numbers(labels, names, _file_facts(scan, places), "size in pixels, format and mode", _OF_FILE),
        *_by_numbers(labels, names, _length(scan, places), "the length of the file", _OF_COLOUR),
        *_by_numbers(labels, names, _colour(scan, places), "the mean colour", _OF_COLOUR),
        *_by_cells(labels, names, scan.thumbs, places),
        *_by_border(labels, names, scan.thumbs, places),
    ]


def found_share(scores: Array, inside: Array) -> float:
    """The share of the images `inside` with a score higher than 99 % of the others have: 0.01 by chance."""
    bound = np.quantile(scores[~inside], 1 - _FALSE_ALARMS, method="higher")
    return float((scores[inside] > bound).mean())


def _by_numbers(labels: Array, names: list[str], facts: Array, what: str, limit: float) -> list[Finding]:
    spread = facts.std(axis=0)
    facts = (facts - facts.mean(axis=0))[:, spread > 1e-9] / spread[spread > 1e-9]
    if not facts.shape[1]:
        return []
    probabilities = out_of_sample(facts, labels, len(names), penalty=_PENALTY)
    findings = []
    for number, name in enumerate(names):
        share = found_share(probabilities[:, number], labels == number)
        if share >= limit:
            message = f"{what} give away {name}" if " and " in what else f"{what} gives away {name}"
            message += f": {100 * share:.0f} % of its images are found with 1 % false alarms (by chance 1 %)"
            findings.append(Finding("shortcut", "high", message, figure=share))
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


def _colour(scan: Scan, places: Array) -> Array:
    means: Array = np.asarray(scan.thumbs[places], dtype=np.float32).mean(axis=(1, 2)) / 255
    return np.concatenate([means, means**2], axis=1)


def _by_cells(labels: Array, names: list[str], thumbs: Bytes, places: Array) -> list[Finding]:
    """A watermark: one of 8 x 8 cells from which a class can be told, by ridge regression on its pixels."""
    fold = stratified_folds(labels, 2)
    targets = np.eye(len(names))[labels]
    shares = np.zeros((_CELLS, _CELLS, len(names)))
    for row in range(_CELLS):
        for column in range(_CELLS):
            scores = _ridge_scores(_cell(thumbs[places], row, column), targets, fold)
            shares[row, column] = [found_share(scores[:, k], labels == k) for k in range(len(names))]
    findings = []
    for number, name in enumerate(names):
        row, column = divmod(int(shares[..., number].argmax()), _CELLS)
        share = float(shares[row, column, number])
        if share >= _GIVEN_AWAY:
            message = (
                f"{_where(row, column)}, a 64th of the image gives away {name}: {100 * share:.0f} % of its images "
                "are found with 1 % false alarms (by chance 1 %), as a watermark or a background would do"
            )
            findings.append(Finding("shortcut", "high", message, figure=share))
    return findings


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
    """In words: `bottom right`."""
    ways = [list_[round(place * 4 / (_CELLS - 1))] for list_, place in ((_ROWS, row), (_COLUMNS, column))]
    return "in the middle" if ways == ["middle", "middle"] else f"at the {ways[0]} {ways[1]}"


def _by_border(labels: Array, names: list[str], thumbs: Bytes, places: Array) -> list[Finding]:
    """Whether a border of an eighth of the side tells as much as the whole image does."""
    small = (
        np.asarray(thumbs[places], dtype=np.float32).reshape(len(places), 16, 2, 16, 2, 3).mean(axis=(2, 4))
    )
    small = small / 255 - small.mean(axis=0) / 255
    ring = np.ones((16, 16), dtype=np.bool_)
    ring[2:-2, 2:-2] = False
    whole, border = (
        _accuracy(inputs, labels, len(names))
        for inputs in (small.reshape(len(places), -1), small[:, ring].reshape(len(places), -1))
    )
    majority = np.bincount(labels).max() / len(labels)
    if border < whole or (border - majority) / (1 - majority) < 0.5:
        return []
    message = (
        f"the border alone tells the class of {100 * border:.1f} % of the images, the whole image that of {100 * whole:.1f} % "
        f"(linear models; always saying the largest class: {100 * majority:.1f} %)"
    )
    return [Finding("shortcut", "high", message, figure=border)]


def _accuracy(inputs: Array, labels: Array, classes: int) -> float:
    return float((out_of_sample(inputs, labels, classes, penalty=_PENALTY).argmax(axis=1) == labels).mean())
