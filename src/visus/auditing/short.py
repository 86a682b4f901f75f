"""The checks before every training: cheap ones, on images that are decoded already."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from visus.auditing.copies import Copies, find_copies
from visus.auditing.findings import Audit, Finding
from visus.auditing.plain_checks import find_group_leakage, find_imbalance
from visus.auditing.scanning import Pool, pixel_digest, pool_images
from visus.data.decode import Pixels
from visus.data.files import FileImages
from visus.data.images import ArrayImages, Data, Split


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
    if all(map(_is_kept, parts)):
        findings += _find_exact(pool, parts)
    else:
        notes = ("copies were not looked for, as the decoded images are not kept; visus audit does",)
    return Audit(len(pool) + len(data.skipped), data.classes, tuple(findings), notes, "short")


def _is_kept(part: Split) -> bool:
    return isinstance(part.images, ArrayImages) or _files(part).decoded is not None


def _files(part: Split) -> FileImages:
    assert isinstance(part.images, FileImages)
    return part.images


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
            groups.setdefault(pixel_digest(_pixels(part, position)), []).append(begin + position)
        begin += len(part)
    copies = [Copies(tuple(places), exact=True) for places in groups.values() if len(places) > 1]
    return find_copies(pool, copies)


def _checksums(part: Split) -> npt.NDArray[np.uint32]:
    """CRC-32 of the pixels of each image, `[N]`."""
    if not isinstance(part.images, ArrayImages):
        kept = _files(part).decoded
        assert kept is not None
        return kept.checksums()
    pixels = part.images.pixels.numpy()
    return np.fromiter(
        (zlib.crc32(np.ascontiguousarray(each).data) for each in pixels), np.uint32, len(pixels)
    )


def _pixels(part: Split, position: int) -> Pixels:
    if isinstance(part.images, ArrayImages):
        pixels: Pixels = part.images.pixels[position].numpy()
        return pixels
    return _files(part).read(position)
