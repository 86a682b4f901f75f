import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from visus.ops.calibration_error import (
    calibration_error_interval,
    debiased_calibration_error,
    plain_calibration_error,
    reliability_bins,
    smooth_calibration_error,
)


def drawn(seed, n, gap=0.0):
    """Confidences, and answers that are right `gap` less often than these say."""
    random = np.random.default_rng(seed)
    confidences = random.uniform(0.5, 1.0, n)
    return confidences, random.random(n) < confidences - gap


@pytest.mark.parametrize("seed", range(5))
def test_the_plain_error_is_that_of_torchmetrics(seed):
    # Rounded to float32 first: at a border of two bins the types would disagree.
    confidences, correct = drawn(seed, 500)
    confidences = confidences.astype(np.float32).astype(np.float64)
    theirs = binary_calibration_error(
        torch.from_numpy(confidences), torch.from_numpy(correct).long(), n_bins=15
    )
    assert plain_calibration_error(confidences, correct) == pytest.approx(theirs.item(), abs=1e-6)


def test_calibrated_confidences_have_no_error_where_the_plain_form_finds_some():
    samples = [drawn(seed, 300) for seed in range(200)]
    assert np.mean([plain_calibration_error(*each) for each in samples]) > 0.05
    squares = [debiased_calibration_error(*each) ** 2 for each in samples]
    # Negative estimates are cut off at 0, so the mean is a little above it.
    assert np.mean(squares) < 0.04**2
    assert np.median(squares) < 0.02**2


@pytest.mark.parametrize("gap", [0.1, 0.3])
def test_a_known_gap_is_found(gap):
    found = [debiased_calibration_error(*drawn(seed, 2000, gap)) for seed in range(20)]
    assert np.mean(found) == pytest.approx(gap, abs=0.01)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_images_are_enough_to_answer(n):
    assert 0 <= debiased_calibration_error(np.full(n, 0.7), np.ones(n, dtype=bool)) <= 1


@pytest.mark.parametrize(
    ("n", "gap", "expected"),
    # By the authors' own relplot 1.0.3, whose grid is another.
    [(100, 0.0, 0.06467), (1000, 0.1, 0.09631), (10_000, 0.03, 0.02255)],
)
def test_the_smooth_error_is_that_of_its_authors(n, gap, expected):
    assert smooth_calibration_error(*drawn(n, n, gap)) == pytest.approx(expected, abs=1e-3)


def test_the_smooth_error_of_one_confidence_is_the_plain_gap():
    correct = np.arange(500) < 300
    assert smooth_calibration_error(np.full(500, 0.8), correct) == pytest.approx(0.2, abs=1e-3)
    assert smooth_calibration_error(np.full(500, 1.0), np.ones(500, dtype=bool)) < 1e-3


def test_the_smooth_error_changes_little_where_confidences_do():
    confidences, correct = drawn(0, 2000)
    moved = np.clip(confidences + np.random.default_rng(1).uniform(-0.005, 0.005, 2000), 0, 1)
    ours, theirs = (smooth_calibration_error(each, correct) for each in (confidences, moved))
    assert ours == pytest.approx(theirs, abs=0.006)


@pytest.mark.parametrize("gap", [0.0, 0.1])
def test_the_interval_holds_the_error_as_often_as_it_says(gap):
    intervals = [calibration_error_interval(*drawn(seed, 400, gap)) for seed in range(150)]
    assert np.mean([low - 1e-9 <= gap <= high for low, high in intervals]) >= 0.92
    # It says something, too.
    assert np.mean([high - low for low, high in intervals]) < 0.15


def test_images_that_belong_together_make_the_interval_longer():
    confidences, correct = (each.repeat(10) for each in drawn(0, 100, 0.1))
    alone = calibration_error_interval(confidences, correct)
    together = calibration_error_interval(confidences, correct, units=np.arange(100).repeat(10))
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])


@pytest.mark.parametrize("units", [None, np.arange(2).repeat(10)])
def test_bins_that_are_all_right_or_all_wrong_leave_no_interval(units):
    confidences = np.linspace(0.5, 0.9, 20)
    assert calibration_error_interval(confidences, np.ones(20, dtype=bool), units=units) is None


def test_bins_hold_equally_many_and_every_image_once():
    confidences, correct = drawn(0, 302)
    bins = reliability_bins(confidences, correct)
    assert sum(each.n for each in bins) == 302
    assert {each.n for each in bins} == {20, 21}
    assert sum(each.n * each.accuracy for each in bins) == pytest.approx(correct.sum())
    assert all(each.low <= each.confidence <= each.high for each in bins)


@pytest.mark.parametrize(("n", "bins"), [(1, 1), (19, 1), (20, 2), (60, 6), (149, 14), (150, 15), (1000, 15)])
def test_a_bin_that_is_shown_has_ten_images_if_there_are_so_many(n, bins):
    sizes = [each.n for each in reliability_bins(*drawn(0, n))]
    assert (len(sizes), sum(sizes)) == (bins, n)
    assert min(sizes) >= min(n, 10)
