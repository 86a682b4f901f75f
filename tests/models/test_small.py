import pytest
import torch

from visus.models.small import SmallNet


@pytest.mark.parametrize(("size", "channels"), [(4, 1), (8, 1), (28, 1), (32, 3), (65, 3)])
def test_it_takes_images_of_any_size(size, channels):
    assert SmallNet(7, channels)(torch.zeros(2, channels, size, size)).shape == (2, 7)
