"""Checks that need no model: what cannot be read, how large classes are, what looks odd, whether groups are split."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from visus.auditing.findings import Finding, Severity, some_names
from visus.auditing.scanning import PARTS, Pool, Scan

_TINY = 20
"""A class of fewer images is tiny: one image more or less in five is then a quarter of its recall in a tenth set aside."""
_IMBALANCE = 10.0
"""Largest over smallest class from which on it is said."""
_FAR = 6.0
"""Robust standard deviations from the median beyond which a figure is unusual; of a normal one none in 500 million is."""
_RARE = 0.02
"""What a larger share of the images has is not odd."""
_LONG = 3.0
_DARK = 10
"""Mean of the grey values, of 255, below which an image is very dark."""

Flags = npt.NDArray[np.bool_]


def find_unreadable(pool: Pool, reasons: dict[int, str]) -> list[Finding]:
    """A finding for each file that holds no image."""
    return [
        Finding(
            "unreadable",
            "high",
            f"{pool.names[place]}: {reason}",
            (pool.names[place],),
            drop=(pool.names[place],),
        )
        for place, reason in sorted(reasons.items())
    ]


def find_imbalance(pool: Pool) -> list[Finding]:
    """Tiny classes, and classes of very different sizes, in the training part or else in the whole; with the files of tiny ones."""
    inside = pool.parts == 0 if (pool.parts == 0).any() else np.ones(len(pool), dtype=np.bool_)
    counts = np.bincount(pool.labels[inside], minlength=len(pool.classes))
    tiny = counts < _TINY
    concerned = inside & tiny[pool.labels]
    findings = []
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    ratio = counts[largest] / max(1, counts[smallest])
    if ratio >= _IMBALANCE:
        message = (
            f"{pool.classes[largest]} has {counts[largest]} images, {pool.classes[smallest]} {counts[smallest]}; "
            f"always saying {pool.classes[largest]} is right for {100 * counts[largest] / counts.sum():.1f} %"
        )
        names = _names(pool, concerned & (pool.labels == smallest))
        findings.append(Finding("imbalance", "medium", message, names, float(ratio)))
    if tiny.any():
        classes = [pool.classes[number] for number in np.flatnonzero(tiny)]
        have = "class has" if len(classes) == 1 else "classes have"
        message = f"{len(classes)} {have} fewer than {_TINY} images: {some_names(classes, 5)}"
        findings.append(Finding("imbalance", "medium", message, _names(pool, concerned), float(counts.min())))
    return findings


def find_group_leakage(pool: Pool) -> list[Finding]:
    """Groups, by a table's column `group`, with images in several parts."""
    groups = pool.columns.get("group")
    if groups is None:
        return []
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        if group != "":
            members.setdefault(str(group), []).append(place)
    findings = []
    for group, places in members.items():
        parts = sorted({int(pool.parts[place]) for place in places})
        if len(parts) > 1:
            shown = " and ".join(PARTS[part] for part in parts)
            message = f"group {group}: {len(places)} images in {shown}"
            drop = tuple(pool.names[place] for place in places if pool.parts[place] != parts[-1])
            names = tuple(pool.names[place] for place in places)
            findings.append(Finding("group_leakage", "high", message, names, float(len(places)), drop))
    return findings


def find_odd_images(pool: Pool, scan: Scan) -> list[Finding]:
    """A finding for each way of being odd, with all images that are. What is common in a set is not odd in it."""
    seen, whole = scan.readable, scan.readable & (scan.spread > 0)
    ratio = np.abs(np.log(np.maximum(scan.width, 1) / np.maximum(scan.height, 1)))
    ways = [
        (_rare(whole & (scan.mean < _DARK), seen), "very dark"),
        (_rare(whole & (scan.mean > 255 - _DARK), seen), "very bright"),
        (whole & (_deviations(np.log(scan.sharpness + 1e-9), whole) < -_FAR), "blurred beside the others"),
        (_unusual(np.log(scan.height * scan.width + 1), seen), "of unusual size in pixels"),
        (_rare(seen & (ratio > np.log(_LONG)), seen), f"one side more than {_LONG:g} times the other"),
        (_rare(scan.grey, seen), "grey among colour"),
        (_rare(~scan.grey, seen), "colour among grey"),
        (seen & (scan.orientations > 1), "turned only by a flag in the file, which not every program heeds"),
        *((flags, f"stored as {name}, unlike most") for name, flags in _rare_names(scan.modes, seen)),
        *((flags, f"stored as {name}, unlike most") for name, flags in _rare_names(scan.formats, seen)),
    ]
    blank = _odd(pool, seen & (scan.spread == 0), "one colour everywhere", "medium", drop=True)
    found = [blank, *(_odd(pool, flags, what, "low") for flags, what in ways)]
    return [each for each in found if each is not None]


def _names(pool: Pool, flags: Flags) -> tuple[str, ...]:
    return tuple(pool.names[place] for place in np.flatnonzero(flags))


def _odd(pool: Pool, flags: Flags, what: str, severity: Severity, *, drop: bool = False) -> Finding | None:
    names = _names(pool, flags)
    if not names:
        return None
    message = f"{what}: {len(names)} of {len(pool)} images ({some_names(names)})"
    return Finding("odd_image", severity, message, names, float(len(names)), names if drop else ())


def _deviations(values: npt.NDArray[Any], among: Flags) -> npt.NDArray[Any]:
    """How many robust standard deviations (1.4826 of the median absolute one) each value is from the median of those `among`."""
    if not among.any():
        return np.zeros(len(values))
    centre = np.median(values[among])
    scale = 1.4826 * np.median(np.abs(values[among] - centre))
    deviations: npt.NDArray[Any] = np.divide(
        values - centre, scale, out=np.zeros(len(values)), where=scale > 0
    )
    return deviations


def _unusual(values: npt.NDArray[Any], among: Flags) -> Flags:
    """Values four times as large as the median, or a quarter of it (they are logarithms), that are far out also for this set."""
    if not among.any():
        return among
    centre = np.median(values[among])
    deviations = np.abs(_deviations(values, among))
    all_alike = np.median(np.abs(values[among] - centre)) == 0
    flags: Flags = among & (np.abs(values - centre) > np.log(4)) & (all_alike | (deviations > _FAR))
    return flags


def _rare(flags: Flags, seen: Flags) -> Flags:
    found = seen & flags
    return found if found.sum() <= _RARE * seen.sum() else np.zeros_like(found)


def _rare_names(names: list[str], seen: Flags) -> list[tuple[str, Flags]]:
    """Each name that few of the images have, and which."""
    array = np.array(names, dtype=object)
    pairs = [(name, _rare(array == name, seen)) for name in sorted(set(array[seen])) if name]
    return [(name, flags) for name, flags in pairs if flags.any()]
