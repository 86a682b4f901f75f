"""Scores as people read them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

_WORST = 5
_NAMED = 3


def describe(scores: dict[str, Any]) -> str:
    """The totals, what is worth knowing, and a row for each class: of the JSON document with `ci` in its keys."""
    lines = [
        f"accuracy on {scores['n']} images: {percent(scores['accuracy'])} "
        f"({100 * scores['ci_level']:g} % interval {extent(scores['accuracy_ci'])}), "
        f"top 5: {percent(scores['top5'])}, loss: {_figure(scores['loss'])}, calibration error: {_figure(scores['ece'])}",
        f"balanced accuracy: {percent(scores['balanced_accuracy'])} ({extent(scores['balanced_accuracy_ci'])}), "
        f"macro F1: {percent(scores['macro']['f1'])} ({extent(scores['macro']['f1_ci'])}), "
        f"AUROC: {_figure(scores['macro']['auroc'])}; always {_line(scores['majority']['name'])}: "
        f"{percent(scores['majority']['accuracy'])}",
        *_remarks(scores),
    ]
    return "\n".join(lines) + f"\n\n{_class_table(scores['per_class'])}"


def percent(share: float | None) -> str:
    """`0.5` as `50.00%`."""
    return "none" if share is None else f"{100 * share:.2f}%"


def none_of(row: Mapping[str, Any]) -> str | None:
    """`none of 12` of a class that no image was taken for, or that has no image; `None` where a share of them can be told."""
    return None if row["n"] and row["predicted"] else f"none of {row['n']}"


def extent(interval: list[float] | None) -> str:
    """`(0.25, 0.5)` as `25.00 to 50.00`."""
    return "" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"


def text_table(headings: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Aligned columns, the first `left` of them to the left, nothing cut off."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, no_wrap=True, justify="left" if place < left else "right")
    for row in rows:
        # Square brackets are no markup, line breaks no lines.
        table.add_row(*(Text(_line(cell)) for cell in row))
    width = 200 + max((sum(map(len, row)) for row in rows), default=0)
    console = Console(width=width, color_system=None, file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _left_out(left_out: Sequence[Mapping[str, Any]]) -> str:
    """`patient (212 values, more than 50); class cat, dog (fewer than 5 images)`, of what is under `slices_left_out`."""
    found = []
    for each in left_out:
        names, more = [name or '""' for name in each["values"][:_NAMED]], len(each["values"]) - _NAMED
        told = f"{each['column']} {', '.join(names)}" + f" and {more} more" * (more > 0)
        found.append(f"{_line(told)} ({each['reason']})")
    return "; ".join(found)


def _remarks(scores: dict[str, Any]) -> list[str]:
    lines = []
    if scores["without_prediction"]:
        lines.append(
            f"{scores['without_prediction']} images have an output that is NaN or infinite; they count as wrong"
        )
    if scores["groups"] is not None:
        lines.append(f"intervals are over {scores['groups']} groups of images")
    if found := scores["abstention"]:
        when = f"from a confidence of {found['threshold']:.4f} on" if found["threshold"] else "always"
        lines.append(
            f"answering {when} ({percent(found['coverage'])} of the images), the accuracy is {percent(found['accuracy'])}, "
            f"and above {percent(found['at_least'])} with {100 * found['level']:g} % certainty"
        )
    worse = sorted((each for each in scores["slices"] if each["beyond_chance"]), key=lambda each: each["p"])
    for each in worse[:_WORST]:
        lines.append(
            f"worse than the rest beyond chance: {each['column']} {_line(each['value'])}, {percent(each['accuracy'])} of "
            f"{each['n']} against {percent(each['rest_accuracy'])} (p = {each['p_adjusted']:.2g}, Holm, of {len(scores['slices'])})"
        )
    if len(worse) > _WORST:
        lines.append(f"and {len(worse) - _WORST} more")
    if left_out := scores["slices_left_out"]:
        lines.append(f"not looked at as slices: {_left_out(left_out)}")
    return lines


def _class_table(rows: list[dict[str, Any]]) -> str:
    headings = ["class", "n", "correct", "accuracy", "interval", "precision", "f1", "AUROC"]
    return text_table(
        headings,
        [
            [
                row["name"],
                str(row["n"]),
                str(row["correct"]),
                none_of(row) or percent(row["accuracy"]),
                extent(row["ci"]),
                percent(row["precision"]) if row["predicted"] else "none of 0",
                percent(row["f1"]),
                _figure(row["auroc"]),
            ]
            for row in rows
        ],
    )


def _line(text: str) -> str:
    return " ".join(text.split())


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
