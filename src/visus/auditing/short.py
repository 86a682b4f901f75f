"""The checks before every training: cheap ones, on images that are decoded already."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from visus.auditing.copies import Copies, find_copies
from visus.auditing.findings import Audit, Finding
from visus.auditing.plain_checks import find_group_leakage, find_imbalance
from visus.auditing.scanning import Pool, pixel_digest, pool_images
from visus.data.decode import flat
from visus.data.files import FileImages, cache_in_use
from visus.data.images import ArrayImages, Data, Split
from visus.data.reading import read_one


def short_audit(data: Data, val: str | None = None) -> Audit:
    """What can be found quickly in `data`, decoded: files left out, sizes of classes, groups, and exact copies.

    Copies are looked for among the decoded pixels, as the model gets them, where they are kept; a note says where not. `val` is the
    other source of the validation part, if any.
    """
    pool, parts = pool_images(data, val)
    findings = [
        Finding("unreadable", "high", f"{each.path}: {each.reason}", (each.path,), drop=(each.path,))
        for each in data.skipped
    ]
    findings += find_imbalance(pool) + find_group_leakage(pool)
    notes: tuple[str, ...] = ()
    if all(cache_in_use(part.images) != "off" for part in parts):
        findings += _find_exact(pool, parts)
    else:
        notes = ("copies were not looked for, as the decoded images are not kept; visus audit does",)
    return Audit(len(pool) + len(data.skipped), data.classes, tuple(findings), notes, "short")


def _find_exact(pool: Pool, parts: list[Split]) -> list[Finding]:
    """Only images of equal checksums are compared by their digests, which take ten times as long."""
    _, number, counts = np.unique(
        np.concatenate([_checksums(part) for part in parts]), return_inverse=True, return_counts=True
    )
    repeated = counts[number] > 1
    groups: dict[bytes, list[int]] = {}
    begin = 0
    for part in parts:
        for position in np.flatnonzero(repeated[begin : begin + len(part)]).tolist():
            pixels = read_one(part.images, position).numpy()
            groups.setdefault(pixel_digest(pixels), []).append(begin + position)
        begin += len(part)
    copies = [Copies(tuple(places), exact=True) for places in groups.values() if len(places) > 1]
    return find_copies(pool, copies)


def _checksums(part: Split) -> npt.NDArray[np.uint32]:
    """CRC-32 of the pixels of each image, `[N]`."""
    images = part.images
    if isinstance(images, FileImages) and images.decoded is not None:
        return images.decoded.checksums()
    assert isinstance(images, ArrayImages)
    pixels = images.pixels.numpy()
    return np.fromiter((zlib.crc32(flat(each).data) for each in pixels), np.uint32, len(pixels))
