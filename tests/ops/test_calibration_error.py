import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from visus.ops.calibration_error import debiased_calibration_error, plain_calibration_error


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
