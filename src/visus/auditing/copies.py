"""From groups of images that are the same, or nearly so, to findings: duplicates, leakage, contradicting labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from visus.auditing.findings import Finding, some_names
from visus.auditing.scanning import PARTS, Pool, Scan


@dataclass(frozen=True)
class Copies:
    """Images that are one, or seem to be."""

    members: tuple[int, ...]
    """Places in the pool, ascending."""
    exact: bool
    similarity: float = 1.0
    """Of the least similar pair by which they were joined, at most 1."""


def exact_copies(scan: Scan) -> list[Copies]:
    """The groups of images with the same decoded pixels."""
    places = np.flatnonzero(scan.readable)
    _, group = np.unique(scan.digests[places], return_inverse=True)
    together = places[np.argsort(group, kind="stable")]
    counts = np.bincount(group)
    starts = np.cumsum(counts) - counts
    several = counts > 1
    return [
        Copies(tuple(together[start : start + count].tolist()), exact=True)
        for start, count in zip(starts[several], counts[several], strict=True)
    ]


def representatives(scan: Scan, exact: Iterable[Copies]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The places of all images that could be read, of exact copies only the first."""
    keep = scan.readable.copy()
    for each in exact:
        keep[list(each.members[1:])] = False
    return np.flatnonzero(keep)


def near_copies(pairs: Iterable[tuple[int, int, float]], exact: Sequence[Copies]) -> list[Copies]:
    """Images joined by `pairs` of places and their similarity, each with its exact copies."""
    twins = {each.members[0]: each.members for each in exact}
    parent: dict[int, int] = {}

    def root(place: int) -> int:
        while parent.setdefault(place, place) != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    least: dict[int, float] = {}
    for a, b, similarity in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
        least[low] = min(similarity, least.get(low, 1.0), least.get(high, 1.0))
    groups: dict[int, list[int]] = {}
    for place in parent:
        groups.setdefault(root(place), []).extend(twins.get(place, (place,)))
    return [
        Copies(tuple(sorted(members)), exact=False, similarity=least[low])
        for low, members in sorted(groups.items())
    ]


def find_copies(pool: Pool, copies: Iterable[Copies]) -> list[Finding]:
    """Each group under every kind that applies."""
    return [finding for each in copies for finding in _about(pool, each)]


def _about(pool: Pool, copies: Copies) -> list[Finding]:
    places = list(copies.members)
    names = tuple(pool.names[place] for place in places)
    same = "the same pixels" if copies.exact else f"nearly the same image ({copies.similarity:.2f} of 1)"
    parts = sorted({int(pool.parts[place]) for place in places})
    labels = sorted({int(pool.labels[place]) for place in places})
    # A later part is what scores rest on: there nothing is left out.
    earlier = tuple(pool.names[place] for place in places if pool.parts[place] != parts[-1])
    contradicting = len(labels) > 1
    surplus = earlier if len(parts) > 1 else names[1:]
    kind, severity = ("exact_duplicate", "medium") if copies.exact else ("near_duplicate", "low")
    message = f"{same}: {some_names(names)}"
    findings = [Finding(kind, severity, message, names, copies.similarity, () if contradicting else surplus)]  # type: ignore[arg-type]
    if len(parts) > 1:
        shown = " and ".join(PARTS[part] for part in parts)
        findings.append(
            Finding(
                "leakage",
                "high",
                f"{same} in {shown}: {some_names(names)}",
                names,
                copies.similarity,
                earlier,
            )
        )
    if contradicting:
        shown = " and ".join(pool.classes[label] for label in labels)
        drop = names if len(parts) == 1 else earlier
        message = f"{same} labelled {shown}: {some_names(names)}"
        findings.append(Finding("conflicting_label", "high", message, names, copies.similarity, drop))
    return findings
