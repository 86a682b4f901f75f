"""Random erasing: how often, how large, what shape and where, as torchvision's."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from visus.data.erasing import erase_, erased_box
from visus.ops.rng import uniform


@pytest.mark.parametrize("size", [(64, 64), (30, 90)], ids=str)
def test_rectangles_are_distributed_as_torchvisions(size):
    ours = [erased_box(draws, *size) for draws in uniform(0, "test", 0, np.arange(3000), 40)]
    transform, image = v2.RandomErasing(), torch.zeros(1, *size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [transform.make_params([image]) for _ in range(3000)]
    theirs = [(p["i"], p["j"], p["i"] + p["h"], p["j"] + p["w"]) for p in drawn if p["v"] is not None]
    found, expected = (np.array([box for box in boxes if box]) for boxes in (ours, theirs))
    measures = [
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        lambda box: (box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1]),
    ]
    for measure in measures:
        assert stats.ks_2samp(measure(found), measure(expected)).pvalue > 0.01
    assert abs(len(found) - len(expected)) < 30


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.25, 1.0])
def test_as_often_as_asked(chance):
    images = erase_(torch.ones(4000, 1, 16, 16), 0, 0, np.arange(4000), chance)
    erased = int((images == 0).flatten(1).any(1).sum())
    assert stats.binomtest(erased, 4000, chance).pvalue > 0.01 if 0 < chance < 1 else erased == 4000 * chance


def test_one_rectangle_of_all_channels_is_blanked():
    images = torch.rand(40, 3, 24, 17, generator=torch.Generator().manual_seed(0)) + 1
    before = images.clone().to(memory_format=torch.channels_last)
    erased = erase_(before.clone(), 3, 1, np.arange(40), 0.5)
    assert erased.is_contiguous(memory_format=torch.channels_last)
    for image, own in zip(erased, images, strict=True):
        blank = (image == 0).all(0)
        assert torch.equal(image[:, ~blank], own[:, ~blank])
        rows, columns = blank.any(1), blank.any(0)
        assert torch.equal(blank, rows[:, None] & columns)


@pytest.mark.parametrize("cut", [1, 13, 39])
def test_an_image_does_not_depend_on_its_batch(cut):
    images, indices = (
        torch.rand(40, 3, 24, 17, generator=torch.Generator().manual_seed(0)),
        np.arange(60, 100),
    )
    whole = erase_(images.clone(), 3, 1, indices, 0.5)
    parts = [
        erase_(images[part].clone(), 3, 1, indices[part], 0.5) for part in (slice(cut), slice(cut, None))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(erase_(images.clone(), 3, 2, indices, 0.5), whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1)], ids=str)
def test_what_no_rectangle_fits_into_stays(size):
    """A rectangle is lower and narrower than the image, as torchvision's."""
    images = torch.ones(50, 1, *size)
    assert torch.equal(erase_(images.clone(), 0, 0, np.arange(50), 1.0), images)


def test_rectangles_reach_every_border():
    first, last = np.zeros((10, 4)), np.zeros((10, 4))
    first[:, :2] = last[:, :2] = 0.5
    last[:, 2:] = 1 - 2**-32
    assert erased_box(first.ravel(), 20, 30)[:2] == (0, 0)
    assert erased_box(last.ravel(), 20, 30)[2:] == (20, 30)
