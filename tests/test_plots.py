import os

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from visus.errors import UsageError
from visus.plots import fonts_for, plot_confusion, plot_curves

HISTORY = {
    "acc": {"train": [0.5, 0.7, 0.8], "val": [0.6, 0.7]},
    "loss": {"train": [1.5, 0.9, 0.6], "val": [1.3, 0.8]},
}


def colours(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return {tuple(map(int, colour)) for colour in np.unique(pixels, axis=0)}


@pytest.mark.parametrize("kind", ["loss", "accuracy", "both"])
def test_both_phases_are_drawn_where_told(tmp_path, kind):
    path = plot_curves(HISTORY, kind, tmp_path / "a.png")
    assert path == tmp_path / "a.png"
    assert os.listdir(tmp_path) == ["a.png"]
    assert {(0, 114, 178), (213, 94, 0)} <= colours(path)
    with Image.open(path) as image:
        assert round(image.info["dpi"][0]) == 200


def test_without_validation_only_training_is_drawn(tmp_path):
    history = {"acc": {"train": [0.5], "val": []}, "loss": {"train": [1.5], "val": []}}
    drawn = colours(plot_curves(history, "both", tmp_path / "a.png"))
    assert (0, 114, 178) in drawn
    assert (213, 94, 0) not in drawn


def test_values_that_are_not_finite_leave_gaps(tmp_path):
    nan, inf = float("nan"), float("inf")
    history = {
        "acc": {"train": [0.5, nan, 0.8], "val": [nan] * 3},
        "loss": {"train": [1.5, inf, 0.6], "val": [nan] * 3},
    }
    assert (0, 114, 178) in colours(plot_curves(history, "both", tmp_path / "a.png"))


def test_a_picture_is_written_in_other_formats(tmp_path):
    assert b"<svg" in plot_curves(HISTORY, "both", tmp_path / "a.svg").read_bytes()


def test_what_cannot_be_drawn_is_one_sentence(tmp_path):
    empty = {"acc": {"train": [], "val": []}, "loss": {"train": [], "val": []}}
    with pytest.raises(UsageError, match="at least one epoch"):
        plot_curves(empty, "both", tmp_path / "a.png")
    with pytest.raises(UsageError, match="expected loss, accuracy or both"):
        plot_curves(HISTORY, "type", tmp_path / "a.png")
    with pytest.raises(UsageError, match="expected a folder"):
        plot_curves(HISTORY, "both", tmp_path / "none" / "a.png")


@pytest.mark.parametrize("classes", [2, 20, 70])
def test_a_confusion_matrix_of_any_size(tmp_path, classes):
    counts = np.eye(classes, dtype=int) * 9
    counts[0] = 0
    names = [f"class number {index} with $ and a long name" for index in range(classes)]
    with Image.open(plot_confusion(counts, names, tmp_path / "a.png")) as image:
        assert image.width > 500


def test_names_in_any_script_neither_fail_nor_warn(tmp_path):
    names = ["猫", "قطة", "\U0001f600", "\U00012000", "<b>$x$"]
    assert plot_confusion(np.ones((5, 5), int), names, tmp_path / "a.png").exists()


def test_a_font_that_has_the_characters_is_found():
    if not any("CJK" in font.name for font in font_manager.fontManager.ttflist):
        pytest.skip("no font with Chinese characters is installed")
    families = fonts_for(["cat", "猫"])
    assert families[0] == "DejaVu Sans"
    assert len(families) == 2
    assert fonts_for(["cat", "Größe"]) == ["DejaVu Sans"]
