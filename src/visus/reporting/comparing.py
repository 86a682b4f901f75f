"""Several runs side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from visus.display import plural
from visus.errors import DataError, VisusError, one_line
from visus.reporting.figures import curves
from visus.reporting.reading import RunResults
from visus.reporting.verdict import judge
from visus.reporting.wording import duration, isolated, part_name

if TYPE_CHECKING:
    from visus.comparison import Pair
    from visus.tested_runs import TestedRun

_LATEST = 3
_ALPHA = 0.05
_LEAD = (
    "Differences are those on the same images, in pairs: they show more than two intervals beside one another do, "
    "which may overlap although one run is better. The p-values of several are corrected for their number (Holm)."
)


Difference: TypeAlias = "Pair | str"
"""Of a run from the first one on the same images; or why they cannot be compared."""


def differences(results: Sequence[RunResults]) -> list[Difference]:
    """Of each run but the first; their p-values corrected by Holm's method for as many as could be compared."""
    if len(results) < 2:
        return []
    from visus.comparison import compare_tested

    first, *others = (_tested(each) for each in results)
    if isinstance(first, str):
        return [f"not comparable: {first}" for _ in others]
    reasons = [_reason(first, each, result) for each, result in zip(others, results[1:], strict=True)]
    usable = [
        each for each, reason in zip(others, reasons, strict=True) if not (reason or isinstance(each, str))
    ]
    pairs = iter(compare_tested([first, *usable], with_first_only=True).pairs)
    return [next(pairs) if reason is None else f"not comparable: {reason}" for reason in reasons]


def compare(results: Sequence[RunResults], found: Sequence[Difference] | None = None) -> dict[str, Any]:
    """A row for each run, and their curves; with the `differences` that were `found`, if they were looked for."""
    with_differences = found is not None
    rows = [_row(each) for each in results]
    for row, difference in zip(rows[1:], found or (), strict=with_differences):
        row["difference"] = _in_a_cell(difference)
    lows = [row["interval"][0] for row in rows if row["interval"]]
    sources = {str(each.config.get("data")) for each in results}
    return {
        "rows": rows,
        "least": int(10 * min(lows)) / 10 if lows else 0.0,
        "has_differences": with_differences,
        "title": f"{len(results)} runs side by side",
        "eyebrow": f"{plural(len(results), 'run')} on {plural(len(sources), 'data set')}",
        "lead": _LEAD if with_differences else "",
        "data": [{"name": each.name, "curves": curves(each)} for each in results],
    }


def _tested(results: RunResults) -> TestedRun | str:
    """The run with its predictions; or why they cannot be had."""
    from visus.tested_runs import read_run

    try:
        return read_run(results.path)
    except (VisusError, OSError, ValueError, KeyError) as error:
        return one_line(error)


def _reason(first: TestedRun, other: TestedRun | str, results: RunResults) -> str | None:
    """Why `other`, whose folder `results` knows, cannot be compared with the first."""
    from visus.comparison import TOO_FEW, refuse_other_images

    if isinstance(other, str):
        return other.removeprefix(str(results.path)).lstrip(f": {os.sep}")
    if other.folder.path.resolve() == first.folder.path.resolve():
        return TOO_FEW
    try:
        refuse_other_images(first, other)
    except DataError as error:
        return one_line(error)
    return None


def _in_a_cell(pair: Difference) -> str:
    if isinstance(pair, str):
        return pair
    low, high = pair.difference_ci95
    over = "" if pair.groups is None else f" over {plural(pair.groups, 'group')} of images"
    return (
        f"{100 * pair.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}), {_beyond(pair)} "
        f"(McNemar{over}, p = {pair.p_adjusted:.2g}); {pair.only_b} images are right here alone, {pair.only_a} there"
    )


def in_a_sentence(pair: Difference, first: str) -> str:
    """What follows the accuracy of a run: how it differs from that of the run called `first`, and whether by more than chance."""
    if isinstance(pair, str):
        return ""
    low, high = pair.difference_ci95
    points = f"{100 * abs(pair.difference):.1f} points {'more' if pair.difference > 0 else 'less'} than"
    return (
        f", {points if pair.difference else 'as many as'} {isolated(first)} on the same images "
        f"({100 * low:+.1f} to {100 * high:+.1f}, {_beyond(pair)})"
    )


def _beyond(pair: Pair) -> str:
    return "beyond chance" if pair.p_adjusted < _ALPHA else "not beyond chance"


def progress(results: RunResults) -> str:
    """How far a run is, and how long it may still take, by its latest epochs."""
    done, asked = results.epochs_done, results.epochs_asked
    if done >= asked:
        return str(done)
    left = remaining_seconds(results)
    return f"{done} of {asked}" + (f", about {duration(left)} more if it goes on" if left is not None else "")


def remaining_seconds(results: RunResults) -> float | None:
    """What the epochs that are left will take if they take as long as the latest; `None` before the first."""
    done = results.epochs_done
    latest = [record["seconds"] for record in results.records if record["epoch"] > done - _LATEST]
    epochs = min(_LATEST, done)
    return (results.epochs_asked - done) * sum(latest) / epochs if epochs else None


def _row(results: RunResults) -> dict[str, Any]:
    verdict = judge(results)
    trained = results.phase("train")
    seconds = sum(record["seconds"] for record in trained)
    return {
        "name": results.name,
        "accuracy": verdict.accuracy,
        "interval": verdict.interval,
        "on": f"{verdict.n:,} {part_name(verdict.part)} images",
        "model": str(results.config.get("model", "")),
        "epochs": results.epochs_done,
        "progress": progress(results),
        "link": None,
        "speed": sum(record["n"] for record in trained) / seconds if seconds else None,
        "difference": "",
    }
