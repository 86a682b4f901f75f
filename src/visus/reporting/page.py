"""The report: one page in one file, which needs no network."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visus.display import Display, plural
from visus.errors import UsageError, VisusError, one_line
from visus.files import write_text
from visus.reporting.comparing import Difference, compare, differences, in_a_sentence
from visus.reporting.contents import Place, describe_run
from visus.reporting.model_card import CARD, write_card
from visus.reporting.reading import RunResults, clean, read_run
from visus.reporting.rendering import as_json, page_template
from visus.reporting.thumbnails import Draw, drawing

if TYPE_CHECKING:
    from visus.data.images import Data

_SECTIONS = ("data", "training", "evaluation", "mistakes", "model", "repeat")


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    display: Display | None = None,
) -> Path:
    """Write what is known of `runs` to one page, and its path is returned: `output`, else `report.html` in the folder of a single
    run, else here. What a folder lacks is left out and said; `display` shows progress. `UsageError` for what is no run."""
    if not runs:
        raise UsageError("expected at least one run to report on, found none")
    results = told_apart([read_run(Path(run)) for run in runs])
    target = Path(output) if output else (results[0].path if len(results) == 1 else Path()) / "report.html"
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: expected a folder to write to, found none; make it first")
    write_text(target, render(results, display=display))
    return target.absolute()


def told_apart(results: Sequence[RunResults]) -> list[RunResults]:
    """`results`, those of the same name with the folder above it as well."""
    names = Counter(each.name for each in results)
    return [
        replace(each, label=clean("/".join(each.path.parts[-2:]))) if names[each.name] > 1 else each
        for each in results
    ]


def render(
    results: Sequence[RunResults],
    *,
    live: str | None = None,
    pictures: Callable[[Mapping[str, Any]], Draw] | None = None,
    display: Display | None = None,
) -> str:
    """The page of one run, or of several side by side.

    With `live`, a mark of this state of the runs, it asks for itself again; the model is then told of once the run is over.
    `pictures` opens the data of a run's settings to draw from, where it is to be opened in another way than here.
    """
    several = len(results) > 1
    found = differences(results)
    against = ["", *(in_a_sentence(each, results[0].name) for each in found)]
    runs = []
    for index, each in enumerate(results):
        data, draw, failure = _open(each, pictures)
        place = Place(
            index,
            len(results),
            draw,
            with_model=live is None or each.summary is not None,
            data=None if live or several else data,
            against=against[index],
            display=display,
        )
        run = describe_run(each, place)
        run["notes"] += [failure] if failure else []
        runs.append(run | {"data": as_json(run["data"])})
    anchors = [(f"{name}0", name.capitalize()) for name in _SECTIONS]
    return page_template("page.html.j2", live=live).render(
        title="Report on " + (f"{len(runs)} runs" if several else runs[0]["name"]),
        sections=[("compared", "Runs")] if several else anchors,
        runs=runs,
        compared=_compared(results, found) if several else None,
        footer=_footer(
            results, "followed by visus watch" if live else "one file; nothing is fetched from anywhere"
        ),
    )


def render_overview(
    results: Sequence[RunResults], links: Sequence[str], live: str, *, most_curves: int
) -> str:
    """A table of runs with `links` to their pages, and the curves of the first ones over one another."""
    compared = _compared(results, most_curves=most_curves) if results else None
    for row, link in zip(compared["rows"] if compared else (), links, strict=True):
        row["link"] = link
    if compared:
        compared["title"] = plural(len(results), "run")
    return page_template("overview.html.j2", live=live).render(
        title="Runs",
        sections=[],
        runs=[],
        compared=compared,
        footer=_footer(results, "followed by visus watch"),
    )


def _footer(results: Sequence[RunResults], how: str) -> str:
    versions = {clean(str((each.environment or {}).get("visus", ""))) for each in results} - {""}
    return f"Made by visus {', '.join(sorted(versions))}; {how}."


def _open(
    results: RunResults, pictures: Callable[[Mapping[str, Any]], Draw] | None
) -> tuple[Data | None, Draw | None, str | None]:
    """The data of a run, if it is opened here, and what draws pictures of it; or why there are none."""
    if "data" not in results.config:
        return None, None, None
    from visus.data.sources import open_named  # loads torch

    try:
        if pictures:
            return None, pictures(results.config), None
        data = open_named(results.config)
        return data, drawing(data), None
    except (VisusError, OSError) as error:
        return None, None, clean(f"pictures, since the data could not be opened ({error})")


def _compared(
    results: Sequence[RunResults],
    found: Sequence[Difference] | None = None,
    *,
    most_curves: int | None = None,
) -> dict[str, Any]:
    compared = compare(results, found)
    return compared | {"data": as_json(compared["data"][:most_curves])}


def report_on(run: str | os.PathLike[str], display: Display) -> None:
    """Write the report and the model card of a run that has ended; whatever goes wrong is a line on `display`, and no more."""
    try:
        card = write_card(run)
        if card is None:
            display.line(f"{CARD} has been changed by hand and is left as it is")
        display.line(f"Report: {write_report([run], display=display)}")
    # The run is over and whole; it must not fail, or seem interrupted, for a page about it.
    except KeyboardInterrupt:
        display.line(f"the report was interrupted; visus report {run} writes it")
    except Exception as error:
        display.line(f"the report could not be written: {one_line(error)}")
