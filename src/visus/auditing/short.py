"""The checks before every training: cheap ones, on images that are decoded already."""

from __future__ import annotations

from collections.abc import Iterator

from visus.auditing.copies import Copies, find_copies
from visus.auditing.findings import Audit, Finding
from visus.auditing.plain_checks import find_group_leakage, find_imbalance
from visus.auditing.scanning import Pool, pixel_digest, pool_images
from visus.data.files import FileImages
from visus.data.images import ArrayImages, Data, Split

_MOST_BYTES = 2**29
"""Of pixels: they are read at about 0.5 GB a second."""


def short_audit(data: Data, val: str | None = None) -> Audit:
    """What can be found in a second or two in `data`, decoded: files left out, sizes of classes, groups, and exact copies.

    Copies are looked for among the decoded pixels, as the model gets them, where these are kept and take at most half a gigabyte;
    a note says where not. `val` is the other source of the validation part, if any.
    """
    pool, parts = pool_images(data, val)
    findings = [
        Finding("unreadable", "high", f"{each.path}: {each.reason}", (each.path,), drop=(each.path,))
        for each in data.skipped
    ]
    findings += find_imbalance(pool) + find_group_leakage(pool)
    notes: tuple[str, ...] = ()
    if sum(map(_pixel_bytes, parts)) <= _MOST_BYTES:
        findings += _find_exact(pool, parts)
    else:
        notes = ("copies were not looked for, as there are many pixels to compare; visus audit does",)
    return Audit(len(pool) + len(data.skipped), data.classes, tuple(findings), notes, "short")


def _pixel_bytes(part: Split) -> int:
    """Of the decoded images; more than any limit where they are not kept."""
    images = part.images
    if isinstance(images, ArrayImages):
        return images.pixels.numel()
    assert isinstance(images, FileImages)
    return images.decoded.nbytes if images.decoded is not None else _MOST_BYTES + 1


def _find_exact(pool: Pool, parts: list[Split]) -> list[Finding]:
    digests = [digest for part in parts for digest in _digests(part)]
    groups: dict[bytes, list[int]] = {}
    for place, digest in enumerate(digests):
        groups.setdefault(digest, []).append(place)
    copies = [Copies(tuple(places), exact=True) for places in groups.values() if len(places) > 1]
    return find_copies(pool, copies)


def _digests(part: Split) -> Iterator[bytes]:
    images = part.images
    if isinstance(images, ArrayImages):
        yield from map(pixel_digest, images.pixels.numpy())
        return
    assert isinstance(images, FileImages)
    for position in range(len(part)):
        yield pixel_digest(images.read(position))
