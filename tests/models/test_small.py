import pytest
import torch

from visus.models.build import build_model
from visus.models.small import SmallNet


@pytest.mark.parametrize(("size", "channels"), [(4, 1), (8, 1), (28, 1), (32, 3), (65, 3)])
def test_it_takes_images_of_any_size(size, channels):
    assert SmallNet(7, channels)(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["quick", "quick_wide"])
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (65, 3)])
def test_quick_takes_images_of_8_pixels_and_more(name, size, channels):
    assert build_model(name, 7, in_channels=channels)(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_as_many_parameters_as_their_docstrings_say():
    counts = {
        name: sum(each.numel() for each in build_model(name, 10).parameters())
        for name in ("small", "quick", "quick_wide")
    }
    assert counts["quick"] == counts["small"]
    assert {name: round(count / 1e6, 2) for name, count in counts.items()} == {
        "small": 0.28,
        "quick": 0.28,
        "quick_wide": 1.11,
    }
