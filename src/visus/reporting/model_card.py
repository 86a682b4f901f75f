"""The model card: the page of a model in Markdown, as model hubs show it (Mitchell et al., Model Cards, 2019)."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from visus.files import write_text
from visus.reporting.reading import RunResults, read_run
from visus.reporting.rendering import text_template
from visus.reporting.sections import about_data, about_repeating
from visus.reporting.verdict import judge
from visus.score_tables import none_of

CARD = "MODEL_CARD.md"
_MOST_CLASSES = 50
_SIGNATURE = "<!-- Written by visus, {}; once the text above is changed, visus leaves it alone. -->\n"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#!|~&$])")


def write_card(run: str | os.PathLike[str]) -> Path | None:
    """Write `MODEL_CARD.md` into the folder of `run`; its path, or `None` where a person has changed the one that is there."""
    results = read_run(Path(run))
    target = results.path / CARD
    if target.exists() and not _is_ours(target.read_text(encoding="utf-8", errors="replace")):
        return None
    write_text(target, _sign(card(results)))
    return target


def card(results: RunResults) -> str:
    """The text of the card."""
    per_class = list((results.evaluation or {}).get("per_class", []))
    if len(per_class) > _MOST_CLASSES:
        per_class.sort(key=lambda row: (row["accuracy"] is None, row["accuracy"]))
    values: dict[str, Any] = {
        "name": results.name,
        "model": results.config.get("model", "a model"),
        "version": (results.environment or {}).get("visus", ""),
        "data": Path(str(results.config.get("data", "data"))).name,
        "classes": results.classes,
        "verdict": judge(results),
        "per_class": [{**row, "none_of": none_of(row)} for row in per_class],
        "most": _MOST_CLASSES,
        "preprocess": (results.checkpoint or {}).get("preprocess"),
        "weights": "best.safetensors",
    }
    values |= about_data(results) | about_repeating(results)
    return text_template("card.md.j2", md=escape).render(values)


def escape(text: object) -> str:
    """`text` in one line in which Markdown finds nothing to format."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _sign(text: str) -> str:
    return text + "\n" + _SIGNATURE.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def _is_ours(text: str) -> bool:
    """Whether nobody has changed the card since it was written."""
    return _sign(text.rpartition("\n<!-- ")[0]) == text
