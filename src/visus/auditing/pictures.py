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
    """A PNG of the first 24 findings of each kind, at most four images of each; `UsageError` for another suffix."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: expected a name that ends in .png")
    places = {name: place for place, name in enumerate(pool.names)}
    boxes: list[tuple[int, int, str, list[int]]] = []
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
            x, y = _GAP, y + (_SIDE + _TEXT + _GAP) * bool(boxes)
        boxes.append((x, y, f"{number} {each.kind}", shown))
        x, kind = x + width + _GAP, each.kind
    sheet = Image.new("RGB", (_WIDTH + _GAP, y + _SIDE + _TEXT + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for left, top, title, shown in boxes:
        pen.text((left, top), title[: max(8, len(shown) * 13)], fill="black", font=font)
        for column, place in enumerate(shown):
            image = Image.fromarray(np.asarray(scan.thumbs[place]))
            sheet.paste(
                image.resize((_SIDE - 4, _SIDE - 4), Image.Resampling.BICUBIC),
                (left + column * _SIDE, top + _TEXT),
            )
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
