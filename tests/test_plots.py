import io
import math
import os
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from visus import plots
from visus.errors import UsageError
from visus.plots import fonts_for, missing_characters, plot_confusion, plot_curves

NAN, INF = math.nan, math.inf
HISTORY = {
    "acc": {"train": [0.5, 0.7, 0.8], "val": [0.6, 0.7]},
    "loss": {"train": [1.5, 0.9, 0.6], "val": [1.3, 0.8]},
}
BLUE, ORANGE = (0, 114, 178), (213, 94, 0)
SCRIPTS = [
    "cat",
    "猫",
    "ねこ",
    "한국어",
    "قط",
    "כלב",
    "हिन्दी",
    "\U0001f600",
    "\U0001f468\u200d\U0001f467",
    "❤\ufe0f",
    "<b>$x$",
]


def colours(path):
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}


def history(losses, accuracies=None):
    accuracies = accuracies or [0.5] * len(losses)
    return {"acc": {"train": accuracies, "val": []}, "loss": {"train": losses, "val": []}}


@pytest.fixture
def only_bundled_fonts(monkeypatch):
    """As on a machine without any font of its own."""
    bundled = [f for f in font_manager.fontManager.ttflist if matplotlib.get_data_path() in f.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)


def test_both_phases_are_drawn_where_told(tmp_path):
    path = plot_curves(HISTORY, "both", tmp_path / "a.png")
    assert path == tmp_path / "a.png"
    assert os.listdir(tmp_path) == ["a.png"]
    assert {BLUE, ORANGE} <= colours(path)
    with Image.open(path) as image:
        assert round(image.info["dpi"][0]) == 200
        assert image.size == (1400, 1000)


@pytest.mark.parametrize(
    ("kind", "expected"), [("loss", ["loss"]), ("accuracy", ["acc"]), ("both", ["loss", "acc"])]
)
def test_the_curves_hold_the_values_of_each_epoch(kind, expected):
    figure = plots._draw_curves(HISTORY, kind)
    assert len(figure.axes) == len(expected)
    for axes, part in zip(figure.axes, expected, strict=True):
        train, val = axes.get_lines()
        assert list(train.get_ydata()) == HISTORY[part]["train"]
        assert list(train.get_xdata()) == [1, 2, 3]
        assert list(val.get_ydata()) == HISTORY[part]["val"]
        assert list(val.get_xdata()) == [1, 2]
        assert axes.get_ylabel() == {"loss": "Loss", "acc": "Accuracy"}[part]
    assert figure.axes[0].get_xlabel() == "Epoch"


def test_the_legend_names_every_curve_and_the_best_accuracy():
    (legend,) = plots._draw_curves(HISTORY, "both").legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["train loss", "val loss", "train accuracy", "val accuracy (best 70.00%)"]


def test_without_validation_only_training_is_drawn(tmp_path):
    drawn = colours(plot_curves(history([1.5]), "both", tmp_path / "a.png"))
    assert BLUE in drawn
    assert ORANGE not in drawn


@pytest.mark.parametrize("kind", ["loss", "accuracy", "both"])
@pytest.mark.parametrize("losses", [[1.5] * 3, [1e-6, 2.5e-6], [3e9, 1.0, 1.0], [12345.6] * 300])
def test_nothing_is_hidden_or_cut_off(kind, losses):
    figure = plots._draw_curves(history(losses), kind)
    FigureCanvasAgg(figure).draw()
    legend, area = figure.legends[0].get_window_extent(), figure.bbox.padded(1)
    for axes in figure.axes:
        outline = axes.get_tightbbox()
        assert not legend.overlaps(outline)
        assert area.x0 <= outline.x0 < outline.x1 <= area.x1
        assert area.y0 <= outline.y0 < outline.y1 <= area.y1
    assert area.y0 <= legend.y0


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 37, 300])
def test_epochs_are_whole_numbers_from_one(epochs):
    axes = plots._draw_curves(history([1.0] * epochs), "loss").axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick == int(tick) and 1 <= tick <= epochs for tick in ticks)
    assert low < 1 <= epochs < high


def test_accuracies_are_percent_of_the_whole():
    axes = plots._draw_curves(HISTORY, "accuracy").axes[0]
    low, high = axes.get_ylim()
    assert low == 0
    assert 1 <= high < 1.05
    assert axes.yaxis.get_major_formatter()(0.5) == "50%"


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([2.3, 1.0, 0.5], "linear"),
        ([0.0, 0.0], "linear"),
        ([NAN, INF], "linear"),
        ([50.0, 0.3, 0.28, 0.26], "log"),
        ([2.3 * 2**epoch for epoch in range(20)], "log"),
        # Zero has no logarithm, and must not vanish.
        ([50.0, 0.3, 0.2, 0.0], "linear"),
    ],
)
def test_every_loss_is_within_an_axis_that_says_what_it_is(losses, scale):
    axes = plots._draw_curves(history(losses), "both").axes[0]
    low, high = axes.get_ylim()
    assert axes.get_yscale() == scale
    assert axes.get_ylabel() == ("Loss (logarithmic)" if scale == "log" else "Loss")
    assert all(low <= loss <= high for loss in losses if math.isfinite(loss))
    assert scale == "log" or low == 0


def test_values_that_are_not_finite_leave_gaps(tmp_path):
    broken = {
        "acc": {"train": [0.5, NAN, 0.8], "val": [NAN] * 3},
        "loss": {"train": [1.5, INF, 0.6], "val": [NAN] * 3},
    }
    train = plots._draw_curves(broken, "both").axes[0].get_lines()[0]
    np.testing.assert_array_equal(train.get_ydata(), [1.5, NAN, 0.6])
    assert BLUE in colours(plot_curves(broken, "both", tmp_path / "a.png"))


def test_many_epochs_have_few_markers_and_a_value_between_gaps_has_one():
    losses = [1.0] * 300
    losses[200] = losses[202] = NAN
    marked = plots._draw_curves(history(losses), "loss").axes[0].get_lines()[0].get_markevery()
    assert 201 in marked
    assert len(marked) <= 21
    assert plots._draw_curves(HISTORY, "loss").axes[0].get_lines()[0].get_markevery() == [0, 1, 2]


@pytest.mark.parametrize(
    ("suffix", "beginning"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("JPG", b"\xff\xd8\xff")]
)
def test_a_picture_is_written_in_other_formats(tmp_path, suffix, beginning):
    path = plot_confusion(np.eye(2, dtype=int), ["cat", "قط"], tmp_path / f"a.{suffix}")
    assert path.read_bytes().startswith(beginning)


def test_what_cannot_be_drawn_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="at least one epoch"):
        plot_curves(history([]), "both", tmp_path / "a.png")
    with pytest.raises(UsageError, match="expected loss, accuracy or both"):
        plot_curves(HISTORY, "type", tmp_path / "a.png")
    with pytest.raises(UsageError, match="expected a folder"):
        plot_curves(HISTORY, "both", tmp_path / "none" / "a.png")
    with pytest.raises(UsageError, match="ends in one of png, svg"):
        plot_curves(HISTORY, "both", tmp_path / "a.xyz")
    with pytest.raises(UsageError, match=r"3 classes, found an array of \(2, 2\)"):
        plot_confusion(np.eye(2), ["a", "b", "c"], tmp_path / "a.png")
    with pytest.raises(UsageError, match="0 classes"):
        plot_confusion([], [], tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def test_a_style_of_the_users_changes_nothing_and_is_kept(tmp_path):
    plain = plot_curves(HISTORY, "both", tmp_path / "a.png").read_bytes()
    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 9}):
        assert plot_curves(HISTORY, "both", tmp_path / "b.png").read_bytes() == plain
        assert plot_confusion([[1]], ["a_b"], tmp_path / "c.png").exists()
        assert matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["lines.linewidth"] == 9


def confusion_figure(counts, names):
    return plots._draw_confusion(np.asarray(counts), range(len(names)), names, ["DejaVu Sans"])


def test_a_confusion_matrix_has_true_classes_as_rows_and_their_shares_as_colours():
    figure = confusion_figure([[8, 2, 0], [0, 1, 3], [0, 0, 0]], ["a", "b", "c"])
    axes, bar = figure.axes
    (cells,) = axes.collections
    np.testing.assert_array_equal(cells.get_array(), [[0.8, 0.2, 0], [0, 0.25, 0.75], [0, 0, 0]])
    assert cells.norm.vmin == 0
    assert cells.norm.vmax == 1
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("True", "Predicted")
    assert bar.get_ylabel() == "Share of the true class"
    written = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert [[written[row, column] for column in range(3)] for row in range(3)] == [
        ["8", "2", "0"],
        ["0", "1", "3"],
        ["0", "0", "0"],
    ]


def test_counts_are_written_so_that_they_can_be_read_and_fit_their_cells():
    figure = confusion_figure([[1_234_567, 0], [60, 40]], ["a", "b"])
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    cell = axes.get_window_extent().width / 2
    for text in axes.texts:
        assert text.get_window_extent().width < cell
    assert [text.get_color() for text in axes.texts] == ["white", "#999999", "white", "white"]


@pytest.mark.parametrize("classes", [1, 2, 20, 21, 70])
def test_a_confusion_matrix_of_any_size_names_its_classes(classes, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(plots, "_write", lambda figure, path, **_: figures.append(figure) or path)
    names = [f"{index} with $ and a long name of class {index}" for index in range(classes)]
    plot_confusion(np.eye(classes, dtype=int) * 9, names, tmp_path / "a.png")
    axes = figures[0].axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        places, labels = axis.get_ticklocs(), [label.get_text() for label in axis.get_ticklabels()]
        assert len(labels) == (classes if classes <= 60 else 35)
        for place, label in zip(places, labels, strict=True):
            assert label.startswith(f"{int(place)} with $")
            assert label.endswith(f"class {int(place)}")
            assert len(label) <= 24
    assert len(axes.texts) == (classes**2 if classes <= 20 else 0)


@pytest.mark.parametrize("classes", [100, 1000])
def test_a_large_confusion_matrix_keeps_every_mistake(classes):
    counts = np.eye(classes, dtype=int)
    counts[: classes // 2, -3] = 1000
    figure = plots._draw_confusion(counts, [], [], ["DejaVu Sans"])
    figure.dpi = 200
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = figure.axes[0].get_images()[0].make_image(canvas.get_renderer())[0]
    # Rows run upwards. Of the upper right quarter one column is dark blue, with little red in it, and nothing else.
    dark = pixels[-(len(pixels) // 2) + 3 :, len(pixels) // 2 + 3 :, 0] < 60
    assert dark.all(axis=0).sum() == dark.any(axis=0).sum() == len(pixels) // classes


@pytest.mark.parametrize(
    "names", [SCRIPTS, ["\udce9", "a\0b", "a\nb\tc", "", " ", "\u202e\u200b", "\ud83d", r"$\frac{$"]]
)
def test_names_of_any_characters_do_not_fail(tmp_path, names):
    told = []
    path = plot_confusion(np.eye(len(names), dtype=int), names, tmp_path / "a.png", warn=told.append)
    assert path.exists()
    assert len(told) <= 1


def test_names_of_any_characters_do_not_fail_without_fonts(tmp_path, only_bundled_fonts):
    told = []
    assert plot_confusion(np.eye(11, dtype=int), SCRIPTS, tmp_path / "a.png", warn=told.append).exists()
    assert len(told) == 1
    assert "द (U+0926)" in told[0]
    assert "9 more" in told[0]
    # What needs no glyph (a joiner, a selector of a variant) and what the bundled font has (Arabic) are not missed.
    assert missing_characters(["قط\u200d❤\ufe0f \n"], ["DejaVu Sans"]) == []


def test_a_missing_font_is_a_warning_once_the_picture_is_there(tmp_path, only_bundled_fonts):
    with pytest.warns(UserWarning, match=r"expected a font with outlines for 猫 \(U\+732B\) in the names"):
        plot_confusion([[1]], ["猫"], tmp_path / "a.png")
    with pytest.raises(UserWarning, match="and 2 more"):
        plot_confusion([[1]], ["猫狗鸟鱼马牛羊"], tmp_path / "b.png")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_a_missing_font_is_said_once_for_a_picture_and_of_the_line_that_asked_for_it(
    tmp_path, only_bundled_fonts
):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plot_confusion(np.eye(4), ["猫", "狗", "猫狗", "cat"], tmp_path / "a.png")
    assert [warning.filename for warning in said] == [__file__]


def test_a_font_that_has_the_characters_is_found():
    if not any("CJK" in font.name for font in font_manager.fontManager.ttflist):
        pytest.skip("no font with Chinese characters is installed")
    families = fonts_for(["cat", "猫"])
    assert families[0] == "DejaVu Sans"
    assert len(families) == 2
    assert missing_characters(["cat", "猫"], families) == []
    assert missing_characters(["cat", "猫"], families[:1]) == ["猫"]
    assert fonts_for(["cat", "Größe"]) == ["DejaVu Sans"]


@pytest.mark.parametrize(("text", "family"), [("猫", "SC"), ("猫ねこ", "JP"), ("고양이", "KR")])
def test_of_fonts_that_have_the_characters_one_for_the_language_is_taken(text, family):
    if not any(font.name == f"Noto Sans CJK {family}" for font in font_manager.fontManager.ttflist):
        pytest.skip("Noto Sans CJK is not installed")
    assert fonts_for([text]) == ["DejaVu Sans", f"Noto Sans CJK {family}"]


def test_a_font_whose_file_is_damaged_or_gone_is_passed_over(monkeypatch, tmp_path):
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    entries = [
        font_manager.FontEntry(fname=str(tmp_path / name), name=name, style="normal", weight=400)
        for name in ("damaged.ttf", "gone.ttf")
    ]
    fonts = [*entries, *font_manager.fontManager.ttflist]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    assert not {"damaged.ttf", "gone.ttf"} & set(fonts_for(["\U000e0fff", "猫"]))


def ink(text):
    figure = Figure(figsize=(2, 1))
    figure.text(0.5, 0.5, text, ha="center", va="center", parse_math=False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="rgba")
    return buffer.getvalue()


def test_arabic_letters_are_joined_and_run_from_the_right():
    # Qaf and tah, and the forms that they take at the beginning and at the end of a word.
    assert ink("قط") == ink("\ufed7\ufec2")
    assert ink("قط") != ink("\ufed5\ufec1")
    assert ink("قط") != ink("طق")
