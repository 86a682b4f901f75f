"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visus.reporting.figures import curves
from visus.reporting.reading import RunResults
from visus.reporting.verdict import judge
from visus.reporting.wording import duration, part_name, plural

_LATEST = 3


def compare(results: Sequence[RunResults]) -> dict[str, Any]:
    """A row for each run, and their curves."""
    rows = [_row(each) for each in results]
    lows = [row["interval"][0] for row in rows if row["interval"]]
    sources = {str(each.config.get("data")) for each in results}
    return {
        "rows": rows,
        "least": int(10 * min(lows)) / 10 if lows else 0.0,
        "has_differences": False,
        "title": f"{len(results)} runs side by side",
        "eyebrow": f"{plural(len(results), 'run')} on {plural(len(sources), 'data set')}",
        "lead": "Where two intervals overlap by much, this data cannot tell which run is better.",
        "data": [{"name": each.name, "curves": curves(each)} for each in results],
    }


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
