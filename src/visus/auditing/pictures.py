"""One picture of what was found: thumbnails side by side, with the numbers that the findings have in their table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visus.auditing.findings import Finding
from visus.auditing.scanning import Pool, Scan
from visus.errors import UsageError
from visus.files import replacing

_SIDE = 96
_GAP = 12
_TEXT = 18
_MOST = 24
_SHOWN = 4
_WIDTH = 1400


def draw_findings(findings: Sequence[Finding], pool: Pool, scan: Scan, path: Path) -> None:
    """A PNG of the first 24 findings of each kind, at most four images of each; `UsageError` for another suffix.

    Kinds stand below each other, each under its name; a number over the images of each finding is its place in the list.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: expected a name that ends in .png")
    texts, boxes = _laid_out(findings, {name: place for place, name in enumerate(pool.names)}, scan)
    bottom = max((top for _, top, _ in boxes), default=0)
    sheet = Image.new("RGB", (_WIDTH + _GAP, bottom + _SIDE + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for left, top, text in texts:
        pen.text((left, top), text, fill="black", font=font)
    for left, top, shown in boxes:
        for column, place in enumerate(shown):
            image = Image.fromarray(np.asarray(scan.thumbs[place]))
            sheet.paste(
                image.resize((_SIDE - 4, _SIDE - 4), Image.Resampling.BICUBIC),
                (left + column * _SIDE, top),
            )
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _laid_out(
    findings: Sequence[Finding], places: dict[str, int], scan: Scan
) -> tuple[list[tuple[int, int, str]], list[tuple[int, int, list[int]]]]:
    """Left and top of every text, and of the images of each finding, by their places."""
    texts: list[tuple[int, int, str]] = []
    boxes: list[tuple[int, int, list[int]]] = []
    x = y = _GAP
    kind = ""
    counts: dict[str, int] = {}
    for number, each in enumerate(findings, start=1):
        counts[each.kind] = counts.get(each.kind, 0) + 1
        shown = [places[name] for name in each.paths if scan.readable[places[name]]][:_SHOWN]
        if not shown or counts[each.kind] > _MOST:
            continue
        width = len(shown) * _SIDE
        if each.kind != kind or x + width > _WIDTH:
            x, y = _GAP, y + (_TEXT + _SIDE + _GAP) * bool(boxes)
        if each.kind != kind:
            texts.append((x, y, each.kind.replace("_", " ")))
            y += _TEXT
        texts.append((x, y, str(number)))
        boxes.append((x, y + _TEXT, shown))
        x, kind = x + width + _GAP, each.kind
    return texts, boxes
