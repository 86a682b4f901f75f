"""What `visus audit` does: every check there is, on every image at full size."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from visus.auditing.copies import exact_copies, find_copies, near_copies, representatives
from visus.auditing.findings import Audit
from visus.auditing.learnt_checks import find_label_errors, find_outliers
from visus.auditing.patches import patch_features
from visus.auditing.plain_checks import (
    find_group_leakage,
    find_imbalance,
    find_odd_images,
    find_unreadable,
)
from visus.auditing.scanning import pool_images, scan_images
from visus.auditing.shortcuts import find_shortcuts
from visus.auditing.similarity import near_pairs
from visus.data.agreement import with_validation
from visus.data.images import Data
from visus.data.sources import Source, read_source
from visus.errors import DataError, UsageError


def audit(
    source: Source,
    *,
    val: Source | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Audit:
    """All that is wrong or odd with the images and labels of `source`, its parts as they are; nothing is changed.

    `val` is another source, whose images are compared with those of `source` as its validation part. `progress(done, total)` is
    called for each image read. Raises `DataError` where there are no images, `UsageError` for what is no source.
    """
    data, other = _open(source, val)
    with tempfile.TemporaryDirectory(prefix="visus-audit-") as folder:
        pool, parts = pool_images(data, other)
        scan = scan_images(parts, folder=Path(folder), workers=workers, progress=progress)
        exact = exact_copies(scan)
        unique = representatives(scan, exact)
        near = near_copies(near_pairs(scan.thumbs, unique), exact)
        # What occurs several times would be near itself, and would teach a model its own label.
        features = patch_features(scan.thumbs, unique)
        doubted, notes = find_label_errors(pool, unique, features)
        findings = [
            *find_unreadable(pool, scan.reasons),
            *find_copies(pool, [*exact, *near]),
            *find_group_leakage(pool),
            *doubted,
            *find_shortcuts(pool, scan),
            *find_imbalance(pool),
            *find_odd_images(pool, scan),
            *find_outliers(pool, unique, features),
        ]
    return Audit(len(pool), data.classes, tuple(findings), (*data.notes, *notes))


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
