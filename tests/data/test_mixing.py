"""Mixup and CutMix against torchvision's on the same parameters, and their shares against the Beta distribution."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import _augment as torchvision_augment

from visus.data.mixing import Mixing, cut_box, draw_mixing, mix_images_, mix_labels, with_partner

SIZE = (20, 31)
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(7, 3, *SIZE, generator=GENERATOR).to(memory_format=torch.channels_last)
LABELS = torch.tensor([0, 1, 2, 3, 4, 1, 1])
ROLLED = torch.cat([IMAGES[-1:], IMAGES]).to(memory_format=torch.channels_last)
ROLLED_LABELS = torch.cat([LABELS[-1:], LABELS])


def mixings(n, size=SIZE, **settings):
    return [
        draw_mixing(0, epoch, batch, size, **settings) for epoch in range(n // 100) for batch in range(100)
    ]


def test_mixup_as_torchvision():
    parameters = {"labels": LABELS, "batch_size": 7, "lam": 0.3}
    mixing = Mixing(0.3)
    transform = v2.MixUp(num_classes=5)
    torch.testing.assert_close(mix_images_(ROLLED.clone(), mixing), transform.transform(IMAGES, parameters))
    torch.testing.assert_close(mix_labels(ROLLED_LABELS, 5, mixing), transform.transform(LABELS, parameters))


def test_cutmix_as_torchvision():
    box = (5, 2, 17, 11)
    mixing = Mixing(0.9, (2, 5, 11, 17))
    parameters = {"labels": LABELS, "batch_size": 7, "box": box, "lam_adjusted": 0.9}
    transform = v2.CutMix(num_classes=5)
    assert torch.equal(mix_images_(ROLLED.clone(), mixing), transform.transform(IMAGES, parameters))
    torch.testing.assert_close(mix_labels(ROLLED_LABELS, 5, mixing), transform.transform(LABELS, parameters))


@pytest.mark.parametrize("box", [None, (0, 0, 20, 10)])
def test_images_that_are_mixed_a_few_at_a_time_come_out_the_same(box, monkeypatch):
    together = mix_images_(ROLLED.clone(), Mixing(0.4, box))
    assert together.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr("visus.data.mixing._VALUES_AT_ONCE", 3 * IMAGES[0].numel())
    assert torch.equal(mix_images_(ROLLED.clone(), Mixing(0.4, box)), together)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_boxes_as_torchvision(share, monkeypatch):
    """torchvision's box for the same share and centre; it draws the column first."""
    for row, column in ((0, 0), (3, 30), (10, 15), (19, 7)):
        centre = iter([column, row])
        transform = v2.CutMix(num_classes=5)
        transform._dist = SimpleNamespace(sample=lambda _: torch.tensor(share))
        monkeypatch.setattr(
            torchvision_augment.torch, "randint", lambda most, size, c=centre: torch.tensor([next(c)])
        )
        expected = transform.make_params([IMAGES])
        monkeypatch.undo()
        mixing = cut_box(share, (row + 0.5) / SIZE[0], (column + 0.5) / SIZE[1], SIZE)
        top, left, bottom, right = mixing.box
        assert (left, top, right, bottom) == expected["box"]
        assert mixing.share == pytest.approx(expected["lam_adjusted"])


@pytest.mark.parametrize("concentration", [0.2, 1.0, 8.0])
def test_shares_are_beta(concentration):
    shares = [each.share for each in mixings(2000, mixup=concentration, cutmix=0.0)]
    assert stats.kstest(shares, stats.beta(concentration, concentration).cdf).pvalue > 0.01


@pytest.mark.parametrize("concentration", [1e-300, 1e-3, 1e3, 1e9])
def test_shares_are_shares(concentration):
    shares = np.array([each.share for each in mixings(200, mixup=concentration, cutmix=0.0)])
    assert ((shares >= 0) & (shares <= 1)).all()
    assert abs(shares.mean() - 0.5) < 0.15


@pytest.mark.parametrize("concentration", [0.2, 1.0, 8.0])
def test_boxes_cover_a_beta_share(concentration):
    """Those that are not cut off at the border: the share that mixup would have had in that batch, to a pixel of the sides."""
    shares = [each.share for each in mixings(2000, mixup=concentration, cutmix=0.0)]
    boxes = mixings(2000, (1000, 1000), mixup=0.0, cutmix=concentration)
    kept = [
        (each.share, share) for each, share in zip(boxes, shares, strict=True) if not {0, 1000} & {*each.box}
    ]
    assert len(kept) > 100
    for found, expected in kept:
        assert found == pytest.approx(expected, abs=0.004)


def test_centres_of_boxes_are_anywhere():
    drawn = mixings(3000, (1000, 1000), mixup=0.0, cutmix=1.0)
    small = [each.box for each in drawn if each.share > 0.99]
    centres = (
        [(top + bottom) / 2000 for top, _, bottom, _ in small],
        [(le + ri) / 2000 for _, le, _, ri in small],
    )
    for each in centres:
        assert stats.kstest(each, "uniform").pvalue > 0.01


def test_given_both_each_batch_has_one_at_equal_chance():
    cut = sum(each.box is not None for each in mixings(2000, mixup=0.2, cutmix=1.0))
    assert stats.binomtest(cut, 2000).pvalue > 0.01
    assert all(each.box is None for each in mixings(200, mixup=0.2, cutmix=0.0))
    assert all(each.box is not None for each in mixings(200, mixup=0.0, cutmix=1.0))


def test_shares_differ_between_batches_epochs_and_seeds():
    shares = {
        draw_mixing(seed, epoch, batch, SIZE, mixup=1.0, cutmix=0.0).share
        for seed in (0, 1)
        for epoch in (0, 1)
        for batch in (0, 1)
    }
    assert len(shares) == 8


def test_targets_weigh_what_is_seen():
    """The share of a target is that of the pixels, also of boxes that are cut off."""
    own, other = torch.ones(1, 1, *SIZE), torch.zeros(1, 1, *SIZE)
    for mixing in mixings(200, mixup=0.0, cutmix=1.0):
        seen = mix_images_(torch.cat([other, own]), mixing).mean()
        targets = mix_labels(torch.tensor([0, 1]), 2, mixing)
        torch.testing.assert_close(targets[0, 1], seen)
        torch.testing.assert_close(targets.sum(), torch.tensor(1.0))
    assert mix_labels(torch.tensor([1, 1]), 2, Mixing(0.3)).tolist() == [[0.0, 1.0]]


def test_a_process_needs_one_image_more_than_its_slice():
    whole = np.array([5, 3, 8, 1, 9])
    assert with_partner(whole, 0, 1).tolist() == [9, 5, 3, 8, 1, 9]
    assert with_partner(whole, 0, 2).tolist() == [9, 5, 3, 8]
    assert with_partner(whole, 1, 2).tolist() == [8, 1, 9]
    assert with_partner(whole, 6, 7).tolist() == []
