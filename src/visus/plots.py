"""Pictures: curves of a run, and the confusion matrix."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator, PercentFormatter

from visus.errors import UsageError
from visus.files import replacing
from visus.runs import Curve, History

Kind = Literal["loss", "accuracy", "both"]

# Blue and orange of Okabe and Ito's palette, told apart with every kind of colour blindness; line and marker say it again.
_STYLES = {
    "train": {"color": "#0072B2", "linestyle": "-"},
    "val": {"color": "#D55E00", "linestyle": "--"},
}
_BASE_FONT = "DejaVu Sans"
_MAX_NUMBERED = 20
_MAX_NAMED = 60


def plot_curves(history: History, kind: Kind = "both", path: str | os.PathLike[str] = "curves.png") -> Path:
    """Draw the losses, the accuracies or both of a run, epochs from 1, and write them to `path` at 200 dpi.

    A value that is not finite leaves a gap. `UsageError` where there is nothing to draw or no folder to write to.
    """
    if kind not in ("loss", "accuracy", "both"):
        raise UsageError(f"expected loss, accuracy or both as the kind of curves, found {kind!r}")
    if not history["loss"]["train"]:
        raise UsageError("expected at least one epoch to draw, found none")
    figure = Figure(figsize=(7, 5))
    axes = figure.add_subplot()
    if kind == "accuracy":
        _draw_accuracies(axes, history["acc"])
    else:
        _draw(axes, history["loss"], "loss", marker=".")
        axes.set_ylabel("Loss")
        axes.set_ylim(bottom=0)
    if kind == "both":
        _draw_accuracies(axes.twinx(), history["acc"])
    axes.set_title({"loss": "Loss", "accuracy": "Accuracy", "both": "Loss and accuracy"}[kind])
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(linewidth=0.5, alpha=0.4)
    lines = [line for each in figure.axes for line in each.get_lines()]
    figure.axes[-1].legend(handles=lines, loc="center right", framealpha=0.9)
    return _write(figure, path)


def plot_confusion(confusion: npt.ArrayLike, classes: Sequence[str], path: str | os.PathLike[str]) -> Path:
    """Draw `confusion[true, predicted]` counts, coloured by their share of the true class, and write it to `path` at 200 dpi.

    Up to 20 classes have their counts written in; of more than 60 not every class is named.
    """
    counts = np.asarray(confusion)
    side = min(14.0, 3.5 + 0.45 * len(classes))
    figure = Figure(figsize=(side, side))
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    every = -(-len(classes) // _MAX_NAMED)
    places = range(0, len(classes), every)
    names = [_elide(classes[place]) for place in places]
    family = fonts_for(names)
    axes.set_xticks(places, names, rotation=90, fontfamily=family)
    axes.set_yticks(places, names, fontfamily=family)
    axes.set_xlabel("Predicted")
    axes.set_ylabel("True")
    if len(classes) <= _MAX_NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    return _write(figure, path)


def fonts_for(texts: Iterable[str]) -> list[str]:
    """Font families that together have the characters of `texts`, as far as installed fonts go; the usual one first."""
    missing = {ord(character) for text in texts for character in text if not character.isspace()}
    families = [_BASE_FONT]
    missing -= _characters(font_manager.findfont(_BASE_FONT))
    for family, path in sorted(_installed().items()) if missing else ():
        if found := missing & _characters(path):
            families.append(family)
            missing -= found
        if not missing:
            break
    return families


def _draw_accuracies(axes: Axes, curve: Curve) -> None:
    _draw(axes, curve, "accuracy", marker="x")
    axes.set_ylabel("Accuracy")
    axes.set_ylim(0, 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _draw(axes: Axes, curve: Curve, what: str, *, marker: str) -> None:
    for phase, values in (("train", curve["train"]), ("val", curve["val"])):
        if values:
            finite = np.where(np.isfinite(values), values, np.nan)
            style: dict[str, Any] = _STYLES[phase]
            axes.plot(range(1, len(values) + 1), finite, marker=marker, label=f"{phase} {what}", **style)


def _elide(name: str, longest: int = 24) -> str:
    """A long name with its middle left out; `$` is no mathematics here."""
    short = name if len(name) <= longest else f"{name[: longest // 2]}…{name[-longest // 2 + 1 :]}"
    return short.replace("$", r"\$")


def _write(figure: Figure, path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: expected a folder to write to, found none; make it first")
    with replacing(target) as temporary, warnings.catch_warnings():
        # A character that no installed font has is drawn as a box; that is not worth a line per character.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        FigureCanvasAgg(figure).print_figure(
            temporary, format=target.suffix[1:] or "png", dpi=200, bbox_inches="tight"
        )
    return target.absolute()


@cache
def _installed() -> dict[str, str]:
    """Families and their files, without the font that has a box for every character there is."""
    fonts = font_manager.fontManager.ttflist
    return {f.name: f.fname for f in fonts if f.style == "normal" and not f.name.startswith("Last Resort")}


@cache
def _characters(path: str) -> frozenset[int]:
    return frozenset(FT2Font(path).get_charmap())
