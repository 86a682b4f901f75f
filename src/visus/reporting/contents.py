"""All that the templates of the page need of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from visus.display import Display, plural
from visus.errors import VisusError, one_line
from visus.reporting import gallery
from visus.reporting.architecture import examine_model
from visus.reporting.audited import images_of_findings
from visus.reporting.comparing import remaining_seconds
from visus.reporting.figures import curves
from visus.reporting.reading import PARTS, RunResults, clean
from visus.reporting.sections import (
    about_data,
    about_evaluation,
    about_model,
    about_repeating,
    about_training,
    best_epoch,
)
from visus.reporting.thumbnails import Draw, Key
from visus.reporting.verdict import judge
from visus.reporting.wording import (
    count,
    duration,
    isolated,
    part_name,
)

if TYPE_CHECKING:
    from visus.data.images import Data
    from visus.reporting.closer import CloserLook


@dataclass(frozen=True)
class Place:
    """Where a run stands on a page: which of how many, and what draws its pictures."""

    index: int = 0
    runs: int = 1
    draw: Draw | None = None
    with_model: bool = True
    data: Data | None = None
    """The run's, where its mistakes are to be looked at closely."""
    against: str = ""
    """How its accuracy compares with another run's, to follow it in a sentence."""
    display: Display | None = None
    """Shows how far the closer look is."""


def describe_run(results: RunResults, place: Place) -> dict[str, Any]:
    """All that the templates need of one run."""
    notes = list(results.notes)
    document = _data(results, place, notes)
    model = _model(results, notes) if place.with_model else {}
    return {
        "index": place.index,
        "name": results.name,
        "eyebrow": _eyebrow(results),
        "verdict": judge(results, place.against),
        "facts": _facts(results, model),
        **about_data(results, document.pop("audited")),
        "has_examples": any(document["examples"].values()),
        **about_training(results),
        **about_evaluation(results, document),
        **about_model(results, model),
        **about_repeating(results),
        "data": document,
        "notes": notes,
    }


def _data(results: RunResults, place: Place, notes: list[str]) -> dict[str, Any]:
    """The numbers that the page's script draws from."""
    predictions = results.predictions
    evaluation = results.evaluation or {}
    part = evaluation.get("split", "test")
    shown = gallery.examples(results.listing, place.runs) if results.listing else {}
    audited = images_of_findings(results, place.runs)
    keys: list[Key] = [*(key for each in shown.values() for key in each), *audited.values()]
    looks: dict[str, CloserLook] = {}
    compared = 0
    listed = pictured = np.empty(0, dtype=np.int64)
    if predictions:
        wrong = gallery.mistakes(predictions)
        correct = gallery.right(predictions, place.runs)
        pictured = np.r_[gallery.pictured(predictions, wrong, place.runs), correct]
        listed = np.r_[wrong[: gallery.MOST_LISTED], correct]
        keys += [(part, predictions.paths[position]) for position in pictured]
        looks, compared = _look(results, place, part, gallery.said(predictions, wrong), notes)
        keys += [("train", path) for look in looks.values() for path, _, _ in look.nearest]
    drawn = _draw(place, keys, notes)
    numbers = {key: number for number, key in enumerate(drawn)}
    images = gallery.rows(predictions, listed) if predictions else []
    for row in images:
        if (part, row[0]) in numbers:
            row.append(numbers[part, row[0]])
    return {
        "name": results.name,
        "classes": list(results.classes),
        "part": part_name(part),
        "curves": curves(results),
        "reliability": evaluation.get("reliability") or [],
        "coverage": evaluation.get("coverage") or [],
        "hasPredictions": predictions is not None,
        "mistakes": int((~predictions.correct).sum()) if predictions else 0,
        "cells": gallery.confusion_cells(results),
        "images": images,
        "examples": {name: [numbers[key] for key in each if key in numbers] for name, each in shown.items()},
        "pictures": [*drawn.values(), *(look.seen for look in looks.values())],
        "audited": {name: numbers[key] for name, key in audited.items() if key in numbers},
        "compared": compared,
        "looks": {
            path: {
                "seen": len(drawn) + number,
                "nearest": [[*each, numbers.get(("train", each[0]))] for each in look.nearest],
            }
            for number, (path, look) in enumerate(looks.items())
        },
    }


def _draw(place: Place, keys: list[Key], notes: list[str]) -> dict[Key, str]:
    if place.draw is None or not keys:
        return {}
    try:
        drawn = place.draw(keys)
    except (VisusError, OSError) as error:
        notes.append(f"no pictures, since the data could not be read ({error})")
        return {}
    if missing := len(set(keys)) - len(drawn):
        notes.append(f"{plural(missing, 'picture')} whose files are gone or have changed")
    return drawn


def _look(
    results: RunResults, place: Place, part: str, said: Mapping[str, str], notes: list[str]
) -> tuple[dict[str, CloserLook], int]:
    """Closer looks at images by their paths, and at how many training images; none for a run without weights."""
    if not said or place.data is None or not results.checkpoint:
        return {}, 0
    from visus.reporting.closer import look_closer  # loads torch

    try:
        return look_closer(results, place.data, part, said, place.display or Display(quiet=True))
    # Whatever a model raises that is built and run here.
    except Exception as error:
        reason = clean(one_line(error))
        notes.append(f"a closer look at mistakes ({reason})")
        return {}, 0


def _model(results: RunResults, notes: list[str]) -> dict[str, Any]:
    try:
        return examine_model(results) or {}
    # Whatever a library raises while it builds: the report of a run is not to fail for it.
    except Exception as error:
        notes.append(f"the layers of the model, which could not be built ({' '.join(str(error).split())})")
        return {}


def _eyebrow(results: RunResults) -> str:
    state = ""
    if results.epochs_done < results.epochs_asked:
        state = f" · {results.epochs_done} of {results.epochs_asked} epochs so far"
        if left := remaining_seconds(results):
            state += f", about {duration(left)} more if it goes on"
    return f"{results.config.get('model', 'model')} on {isolated(_source(results))}{state}"


def _source(results: RunResults) -> str:
    """The last part of the data's path."""
    return str(results.config.get("data", "data")).rstrip("/\\").replace("\\", "/").rpartition("/")[2]


def _facts(results: RunResults, model: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and a remark of what people ask first."""
    facts = []
    if listing := results.listing:
        small = ", ".join(
            f"{count(listing.count(part))} {part_name(part)}" for part in PARTS[1:] if listing.count(part)
        )
        facts += [("Training images", count(listing.count("train")), small)]
    if results.classes:
        facts.append(("Classes", count(len(results.classes)), ""))
    if done := results.epochs_done:
        best = best_epoch(results)
        facts.append(("Epochs", f"{done}", f"best after {best}" if best else ""))
    if trained := results.phase("train"):
        seconds = sum(record["seconds"] for record in trained)
        images = sum(record["n"] for record in trained)
        speed = f"{count(images / seconds)} images/s" if seconds else ""
        facts.append(("Training time", duration(seconds), speed))
    if model:
        facts.append(
            ("Parameters", _short_count(model["total_params"]), str(results.config.get("model", "")))
        )
    if devices := (results.environment or {}).get("devices"):
        facts.append(("Device", str(devices[0].get("name", "")), f"{_amp(results)} precision"))
    return facts


def _amp(results: RunResults) -> str:
    amp = results.config.get("amp", "off")
    return "float32" if amp == "off" else f"mixed ({amp})"


def _short_count(number: float) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return count(number)
