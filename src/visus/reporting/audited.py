"""What the audit of a run found, as the page tells it: the gravest first, with pictures of the images concerned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visus.reporting.reading import Listing, RunResults, clean
from visus.reporting.thumbnails import Key
from visus.reporting.verdict import Tone, tone_of
from visus.reporting.wording import count

_MOST_MESSAGES = 5
_MOST_PICTURED = 60
_PICTURED_OF_A_FINDING = 6
_TONES: tuple[Tone, ...] = ("bad", "doubtful", "unknown")

Finding = Mapping[str, Any]


def images_of_findings(results: RunResults, share: int = 1) -> dict[str, Key]:
    """Images that the shown findings concern, by what the audit calls them; the first of each, of the gravest findings first.

    `share` is how many runs there are on the page, which have room for so many pictures together.
    """
    if not results.audit or not results.listing:
        return {}
    called = _names(results.listing, results.config.get("val"))
    names = [
        name
        for group in _groups(results.audit)
        for finding in group[:_MOST_MESSAGES]
        for name in _pictured(finding)
    ]
    there = [name for name in dict.fromkeys(names) if name in called]
    return {name: called[name] for name in there[: _MOST_PICTURED // share]}


def describe_findings(audit: Mapping[str, Any], pictures: Mapping[str, int]) -> list[dict[str, Any]]:
    """The findings of one kind and severity together; `pictures` are the numbers of those that there are, by the image's name."""
    return [_describe(findings, pictures) for findings in _groups(audit)]


def _describe(findings: list[Finding], pictures: Mapping[str, int]) -> dict[str, Any]:
    first = findings[0]
    return {
        "kind": _kind(first).replace("_", " ").capitalize()
        + (f" ({count(len(findings))})" if len(findings) > 1 else ""),
        "severity": str(first.get("severity", "remark")),
        "tone": tone_of(first),
        "meaning": str(first.get("meaning", "")),
        "advice": str(first.get("advice", "")),
        "messages": [
            {
                "text": clean(str(each.get("message", ""))),
                "pictures": [(pictures[name], name) for name in _pictured(each) if name in pictures],
            }
            for each in findings[:_MOST_MESSAGES]
        ],
        "more": max(0, len(findings) - _MOST_MESSAGES),
        "paths": list(dict.fromkeys(path for each in findings for path in _paths(each))),
    }


def _groups(audit: Mapping[str, Any]) -> list[list[Finding]]:
    groups: dict[tuple[int, str], list[Finding]] = {}
    for finding in audit.get("findings", []):
        groups.setdefault((_TONES.index(tone_of(finding)), _kind(finding)), []).append(finding)
    return [members for _, members in sorted(groups.items(), key=lambda each: each[0])]


def _kind(finding: Finding) -> str:
    return str(finding.get("kind", "finding"))


def _paths(finding: Finding) -> list[str]:
    return [clean(str(path)) for path in finding.get("paths", [])]


def _pictured(finding: Finding) -> list[str]:
    return _paths(finding)[:_PICTURED_OF_A_FINDING]


def _names(listing: Listing, val: str | None) -> dict[str, Key]:
    """The images of a run by what the audit calls them."""
    from visus.data.excluding import image_names  # loads torch

    paths = {
        part: [path for each in classes.values() for path in each] for part, classes in listing.images.items()
    }
    return {
        name: (part, path)
        for part, names in image_names(paths, val).items()
        for name, path in zip(names, paths[part], strict=True)
    }
