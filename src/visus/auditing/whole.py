"""What `visus audit` does: every check there is, on every image at full size."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from visus.auditing.copies import exact_copies, find_copies, near_copies, representatives
from visus.auditing.findings import Audit, Finding
from visus.auditing.judging import Array, features_by_name, held_out_probabilities
from visus.auditing.learnt_checks import find_label_errors, find_outliers, unseen_probabilities
from visus.auditing.patches import ROW_BYTES, patch_features, principal_components
from visus.auditing.pictures import draw_findings
from visus.auditing.plain_checks import (
    find_group_leakage,
    find_imbalance,
    find_odd_images,
    find_unreadable,
)
from visus.auditing.scanning import THUMB_BYTES, Pool, pool_images, scan_images
from visus.auditing.shortcuts import find_shortcuts
from visus.auditing.similarity import VECTOR_BYTES, near_pairs, near_vectors
from visus.data.agreement import with_validation
from visus.data.images import Data
from visus.data.sources import Source, read_source
from visus.errors import DataError, UsageError
from visus.ops.scratch import expect_room


def audit(
    source: Source,
    *,
    val: Source | None = None,
    model: str | None = None,
    weights: str | None = None,
    run: str | None = None,
    pictures: Path | None = None,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> Audit:
    """All that is wrong or odd with the images and labels of `source`, its parts as they are; nothing is changed.

    `val` is another source, whose images are compared with those of `source` as its validation part. Features are those of
    `model` with `weights`, else patches of the set itself; the labels of images that `run` was not trained on are judged by its
    model. `pictures` is a PNG to draw. `progress(what, done, total)` is called as images are looked at and compared. Raises
    `DataError` where there are no images, `UsageError` for what is no source, or where files of what is found have no room.
    """
    if (model is None) != (weights is None):
        raise UsageError("expected --model and --weights together, found one of them; give both or none")
    data, other = _open(source, val)
    pool, parts = pool_images(data, other)
    _expect_room(len(pool), len(data.classes))
    known = held_out_probabilities(data, other, run) if run is not None else {}
    embedded = features_by_name(data, other, model, weights) if model and weights else None
    scan = scan_images(parts, workers=workers, progress=partial(progress, "looked at"))
    exact = exact_copies(scan)
    # What occurs several times would be near itself, and would teach a model its own label.
    unique = representatives(scan, exact)
    pairs = near_pairs(scan.thumbs, unique, partial(progress, "compared"))
    if embedded is None:
        features = patch_features(scan.thumbs, unique)
    else:
        unique = np.array([place for place in unique if pool.names[place] in embedded], dtype=np.int64)
        features = np.stack([embedded[pool.names[place]] for place in unique])
        pairs += near_vectors(features, unique)
        features = principal_components(features)
    doubted, notes = _doubts(pool, unique, features, known)
    findings = (
        *find_unreadable(pool, scan.reasons),
        *find_copies(pool, [*exact, *near_copies(pairs, exact)]),
        *find_group_leakage(pool),
        *doubted,
        *find_shortcuts(pool, scan),
        *find_imbalance(pool),
        *find_odd_images(pool, scan),
        *find_outliers(pool, unique, features),
    )
    if pictures is not None:
        draw_findings(findings, pool, scan, pictures)
    return Audit(len(pool), data.classes, findings, (*data.notes, *notes))


def _expect_room(images: int, classes: int) -> None:
    """Before anything is looked at: the arrays that are to come lie in files where there are many images."""
    expect_room(*(images * each for each in (THUMB_BYTES, VECTOR_BYTES, ROW_BYTES, 4 * classes)))


def _doubts(
    pool: Pool, places: Array, features: Array, known: Mapping[str, Array]
) -> tuple[list[Finding], list[str]]:
    """The labels that a model doubts: one that is `known` not to have seen the image, else one fitted on the other images."""
    held_out = np.array([pool.names[place] in known for place in places], dtype=np.bool_)
    others = places[~held_out]
    described = features[~held_out] if known else features
    findings, notes = find_label_errors(pool, others, unseen_probabilities(pool, others, described))
    if held_out.any():
        rows = np.stack([known[pool.names[place]] for place in places[held_out]])
        more, further = find_label_errors(pool, places[held_out], rows)
        findings, notes = findings + more, notes + further
    return findings, notes


def _open(source: Source, val: Source | None) -> tuple[Data, str | None]:
    """The data with its parts as found, and where the validation part comes from if that is elsewhere."""
    data = read_source(source)
    if val is None:
        return data, None
    if data.train is None:
        raise DataError(f"{data.source}: expected training images to compare with --val, found none")
    if source is val or _real(source) == _real(val):
        raise UsageError(f"--val {val}: expected other images than those to audit, found the same")
    other = read_source(val)
    return with_validation(replace(data, val=None), data.train, other), str(other.source)


def _real(source: Source) -> object:
    return os.path.realpath(source) if isinstance(source, str | os.PathLike) else id(source)
