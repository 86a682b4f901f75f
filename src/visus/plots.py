"""Pictures: curves of a run, and the confusion matrix."""

from __future__ import annotations

import math
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator, PercentFormatter

from visus.errors import UsageError
from visus.files import replacing
from visus.runs import Curve, History

if TYPE_CHECKING:
    from visus.ops.calibration_error import Bin

Kind = Literal["loss", "accuracy", "both"]

# Blue and orange of Okabe and Ito's palette, told apart with every kind of colour blindness; line and marker say it again.
_STYLES = {
    "train": {"color": "#0072B2", "linestyle": "-"},
    "val": {"color": "#D55E00", "linestyle": "--"},
}
_TITLES = {"loss": "Loss", "accuracy": "Accuracy", "both": "Loss and accuracy"}
_MAX_MARKERS = 20
# Where the largest loss is so many times the middle one, a linear axis from 0 would show it and a flat line.
_LOGARITHMIC_FROM = 20
_BASE_FONT = "DejaVu Sans"
_REGULAR = (400, "normal", "regular")
_MAX_NUMBERED = 20
_MAX_NAMED = 60
# Beyond, a class is about a pixel wide, and pixels are mixed rather than left out.
_MAX_SHARP = 1000
_MAX_MISSING_SAID = 5
_SUFFIXES = ("png", "svg", "pdf", "jpg", "jpeg", "webp", "tif", "tiff", "eps")


def plot_curves(history: History, kind: Kind = "both", path: str | os.PathLike[str] = "curves.png") -> Path:
    """Draw the losses, the accuracies or both of a run, epochs from 1, and write them to `path` at 200 dpi.

    A value that is not finite leaves a gap. Accuracies are drawn from 0 to 100 %, losses from 0, or on a logarithmic axis (which
    then says so) where one dwarfs the others. The suffix of `path` chooses the format.

    `UsageError` where there is nothing to draw, no folder to write to, or no such format; `OSError` where it cannot be written.
    """
    if kind not in _TITLES:
        raise UsageError(f"expected loss, accuracy or both as the kind of curves, found {kind!r}")
    if not history["loss"]["train"]:
        raise UsageError("expected at least one epoch to draw, found none")
    # A style of the user's could need LaTeX, which knows no more scripts than its own.
    with matplotlib.style.context("default"):
        return _write(_draw_curves(history, kind), path)


def plot_confusion(
    confusion: npt.ArrayLike,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    warn: Callable[[str], object] | None = None,
) -> Path:
    """Draw `confusion[true, predicted]` counts, coloured by their share of the true class, and write it to `path` at 200 dpi.

    Up to 20 classes have their counts written in; of more than 60 not every class is named. `warn` is told in one sentence of
    characters that no installed font has, which are drawn as boxes; by default that is a warning of Python's.

    `UsageError` where the counts do not fit the classes, or for a `path` that will not do, as in `plot_curves`.
    """
    counts = np.asarray(confusion)
    if not classes or counts.shape != (len(classes), len(classes)):
        raise UsageError(
            f"expected counts for each pair of {len(classes)} classes, found an array of {counts.shape}"
        )
    places = range(0, len(classes), -(-len(classes) // _MAX_NAMED))
    names = [_short(classes[place]) for place in places]
    families = fonts_for(names)
    with matplotlib.style.context("default"):
        target = _write(_draw_confusion(counts, places, names, families), path, bbox_inches="tight")
    if missing := missing_characters(names, families):
        (warn or partial(warnings.warn, stacklevel=2))(_describe_missing(missing))
    return target


def plot_range_test(
    rates: Sequence[float], losses: Sequence[float], lr: float, path: str | os.PathLike[str]
) -> Path:
    """Draw the losses of a range test over its learning rates, and `lr`, that to train with; write it to `path` at 200 dpi."""
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(rates, losses)
        axes.axvline(lr, color="tab:orange", label=f"learning rate {lr:g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss, smoothed", title="Range test")
        # A loss that has diverged would flatten all that is of interest.
        axes.set_ylim(0, 1.1 * max(losses[0], 2 * min(losses)))
        axes.grid(alpha=0.3)
        axes.legend()
        return _write(figure, path)


def plot_search(accuracies: Sequence[float | None], path: str | os.PathLike[str]) -> Path:
    """Draw the accuracies of trials in their order, and the best until each; write it to `path` at 200 dpi."""
    with matplotlib.style.context("default"):
        values = 100 * np.array([math.nan if each is None else each for each in accuracies])
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(values, "o", markersize=4, label="trial")
        axes.step(range(len(values)), np.fmax.accumulate(values), where="post", label="best until then")
        axes.set(xlabel="trial", ylabel="validation accuracy in %", title="Search")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
        return _write(figure, path)


def plot_reliability(bins: Mapping[str, Sequence[Bin]], path: str | os.PathLike[str]) -> Path:
    """Draw accuracy against confidence of one or two sets of bins, with the intervals of the accuracies, and write it to `path`.

    On the diagonal confidence is honest. Below, how many images have such a confidence. `UsageError` where there is nothing to
    draw, and as in `plot_curves`.
    """
    if not any(bins.values()):
        raise UsageError("expected bins to draw, found none")
    with matplotlib.style.context("default"):
        return _write(_draw_reliability(bins), path)


def fonts_for(texts: Iterable[str]) -> list[str]:
    """Font families that together have the characters of `texts`, as far as installed fonts go; the usual one first."""
    families = [_BASE_FONT]
    installed = _installed()
    missing = _visible(texts) - _characters(installed[_BASE_FONT])
    if not missing:
        return families
    candidates = {name: missing & _characters(entry) for name, entry in installed.items()}
    while missing:
        order = partial(_preference, missing=missing)
        name, found = min(candidates.items(), key=lambda item: order(installed[item[0]], found=item[1]))
        if not found & missing:
            break
        families.append(name)
        missing -= found
    return families


def missing_characters(texts: Iterable[str], families: Iterable[str]) -> list[str]:
    """The characters of `texts` that none of the font `families` has, in order."""
    installed = _installed()
    missing = _visible(texts)
    for family in families:
        missing -= _characters(installed[family])
    return [chr(each) for each in sorted(missing)]


def _draw_curves(history: History, kind: Kind) -> Figure:
    figure = Figure(figsize=(7, 5))
    # Fixed margins with room for the widest labels: measuring them costs a second pass over all text, in every epoch.
    figure.subplots_adjust(left=0.12, right=0.88 if kind == "both" else 0.97, bottom=0.21, top=0.93)
    axes = figure.add_subplot()
    axes.set_title(_TITLES[kind])
    axes.set_xlabel("Epoch")
    axes.set_xlim(0.5, len(history["loss"]["train"]) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(linewidth=0.5, alpha=0.4)
    if kind != "accuracy":
        _draw_losses(axes, history["loss"])
    if kind != "loss":
        _draw_accuracies(axes.twinx() if kind == "both" else axes, history["acc"])
    lines = [line for each in figure.axes for line in each.get_lines()]
    # Below the axes, where it hides no value.
    figure.legend(handles=lines, loc="lower center", ncols=2, frameon=False)
    return figure


def _draw_losses(axes: Axes, curve: Curve) -> None:
    _draw(axes, curve, "loss", marker=".")
    finite = [value for values in (curve["train"], curve["val"]) for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > _LOGARITHMIC_FROM * float(np.median(finite)):
        axes.set_yscale("log")
        axes.set_ylabel("Loss (logarithmic)")
    else:
        axes.set_ylim(0, 1.05 * max([*finite, 0.0]) or 1.0)
        axes.set_ylabel("Loss")


def _draw_accuracies(axes: Axes, curve: Curve) -> None:
    _draw(axes, curve, "accuracy", marker="x")
    axes.set_ylabel("Accuracy")
    axes.set_ylim(0, 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    # Near 100 % the curve alone says too little.
    if curve["val"]:
        best = np.nanmax([0.0, *curve["val"]])
        axes.get_lines()[-1].set_label(f"val accuracy (best {100 * best:.2f}%)")


def _draw(axes: Axes, curve: Curve, what: str, *, marker: str) -> None:
    for phase, values in (("train", curve["train"]), ("val", curve["val"])):
        if values:
            finite = np.where(np.isfinite(values), values, np.nan)
            style: dict[str, Any] = _STYLES[phase] | {"marker": marker, "markevery": _marked(finite)}
            # Drawn over the frame too: an accuracy of 100 % is not cut in half.
            axes.plot(
                range(1, len(values) + 1), finite, label=f"{phase} {what}", clip_on=False, zorder=3, **style
            )


def _marked(values: npt.NDArray[np.float64]) -> list[int]:
    """Which values get a marker: of many every so manieth, and those between gaps, which no line would show."""
    gap = np.pad(np.isnan(values), 1, constant_values=True)
    alone = gap[:-2] & gap[2:]
    regular = np.arange(len(values)) % -(-len(values) // _MAX_MARKERS) == 0
    return [int(each) for each in np.flatnonzero(alone | regular)]


def _draw_reliability(bins: Mapping[str, Sequence[Bin]]) -> Figure:
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=":", label="honest")
    for (name, members), style in zip(bins.items(), _STYLES.values(), strict=False):
        confidences = [each.confidence for each in members]
        accuracies = [each.accuracy for each in members]
        lengths = [
            [each.accuracy - each.ci95[0] for each in members],
            [each.ci95[1] - each.accuracy for each in members],
        ]
        above.errorbar(
            confidences, accuracies, lengths, label=name, marker="o", markersize=4, capsize=2, **style
        )
        # Images to a unit of confidence: the bins have equally many, and are the narrower the more there are.
        widths = [max(each.high - each.low, 2e-3) for each in members]
        heights = [each.n / width for each, width in zip(members, widths, strict=True)]
        below.bar(
            [each.low for each in members],
            heights,
            widths,
            align="edge",
            alpha=0.5,
            color=style["color"],
        )
    above.set_xlim(-0.01, 1.01)
    above.set_ylim(-0.01, 1.01)
    for axis in (above.xaxis, above.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    above.set_ylabel("Accuracy")
    above.set_title("Reliability")
    above.grid(linewidth=0.5, alpha=0.4)
    above.legend(loc="upper left", frameon=False)
    below.set_yscale("log")
    below.set_ylabel("Density")
    below.set_xlabel("Confidence")
    return figure


def _draw_confusion(
    counts: npt.NDArray[Any], places: Sequence[int], names: Sequence[str], families: Sequence[str]
) -> Figure:
    side = min(14.0, 3.5 + 0.45 * len(counts))
    figure = Figure(figsize=(side, side))
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = _colour_cells(axes, shares)
    text: dict[str, Any] = {"fontfamily": families, "parse_math": False}
    axes.set_xticks(places, names, rotation=90, **text)
    axes.set_yticks(places, names, **text)
    axes.set_xlabel("Predicted")
    axes.set_ylabel("True")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, format=PercentFormatter(1.0, decimals=0))
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.set_label("Share of the true class")
    if len(counts) <= _MAX_NUMBERED:
        _write_counts(axes, counts, shares)
    return figure


def _colour_cells(axes: Axes, shares: npt.NDArray[np.float64]) -> ScalarMappable:
    # By the square root of the share: a class mistaken in one case of a hundred is seen beside the diagonal.
    colours: Any = {"cmap": "Blues", "norm": PowerNorm(0.5, vmin=0, vmax=1)}
    if len(shares) > _MAX_NAMED:
        sharpness: Literal["nearest", "antialiased"] = (
            "nearest" if len(shares) <= _MAX_SHARP else "antialiased"
        )
        return axes.imshow(shares, interpolation=sharpness, **colours)
    # As polygons: an image takes some 50 bytes for each pixel of the picture meanwhile, 60 MB for ten classes.
    edges = np.arange(len(shares) + 1) - 0.5
    axes.set_aspect("equal")
    axes.invert_yaxis()
    return axes.pcolormesh(edges, edges, shares, **colours)


def _write_counts(axes: Axes, counts: npt.NDArray[Any], shares: npt.NDArray[np.float64]) -> None:
    # A cell is about 30 points wide, a digit 0.6 of its size.
    size = min(8, 50 / len(str(counts.max())))
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.3 else "black" if count else "#999999"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=size)


def _short(name: str, longest: int = 24) -> str:
    """A name in one line that can be encoded, with its middle left out where it is long."""
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    name = "".join("\ufffd" if unicodedata.category(each) == "Cc" else each for each in name)
    return name if len(name) <= longest else f"{name[: longest // 2]}…{name[-longest // 2 + 1 :]}"


def _visible(texts: Iterable[str]) -> set[int]:
    """Code points that need a glyph: no spaces, no joiners, no variation selectors."""
    characters = {character for text in texts for character in text}
    return {
        ord(each)
        for each in characters
        if unicodedata.category(each) not in ("Cc", "Cf", "Zs", "Zl", "Zp")
        and not "\ufe00" <= each <= "\ufe0f"
    }


def _preference(entry: FontEntry, *, found: set[int], missing: set[int]) -> tuple[object, ...]:
    """Smallest for the best font: the one with most of what is missing; of equals a plain one, made for the language."""
    kana = any(0x3040 <= each < 0x3100 for each in missing)
    hangul = any(0xAC00 <= each < 0xD7B0 for each in missing)
    language = "JP" if kana else "KR" if hangul else "SC"
    return (
        -len(found & missing),
        entry.weight not in _REGULAR,
        not entry.name.endswith(language),
        "Sans" not in entry.name,
        entry.name,
    )


def _describe_missing(missing: Sequence[str]) -> str:
    shown = ", ".join(f"{each} (U+{ord(each):04X})" for each in missing[:_MAX_MISSING_SAID])
    more = f" and {len(missing) - _MAX_MISSING_SAID} more" if len(missing) > _MAX_MISSING_SAID else ""
    return (
        f"expected a font with outlines for {shown}{more} in the names of classes, found none, so that boxes stand for them; "
        "install one such as Noto (a font of coloured emoji will not do)"
    )


def check_picture(path: str | os.PathLike[str]) -> str:
    """The format of a picture to be written at `path`, by its suffix; `UsageError` where it could not be."""
    target = Path(path)
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: expected a folder to write to, found none; make it first")
    suffix = target.suffix[1:].lower() or "png"
    if suffix not in _SUFFIXES:
        raise UsageError(f"{target}: expected a name that ends in one of {', '.join(_SUFFIXES)}")
    return suffix


def _write(figure: Figure, path: str | os.PathLike[str], **options: Any) -> Path:
    target, suffix = Path(path), check_picture(path)
    with replacing(target) as temporary, warnings.catch_warnings():
        # Missing characters are said once for all of them, not in a line for each.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        FigureCanvasAgg(figure).print_figure(temporary, format=suffix, dpi=200, **options)
    return target.absolute()


def _installed() -> dict[str, FontEntry]:
    """Families and their most regular font, without the one that has a box for every character there is."""
    fonts = [f for f in font_manager.fontManager.ttflist if f.style == "normal"]
    regular_last = sorted(fonts, key=lambda font: font.weight in _REGULAR)
    return {font.name: font for font in regular_last if not font.name.startswith("Last Resort")}


def _characters(font: FontEntry) -> set[int]:
    """Code points that the font has; none where its file is damaged or gone."""
    try:
        return set(FT2Font(font.fname, face_index=font.index).get_charmap())
    except (OSError, RuntimeError):
        return set()
