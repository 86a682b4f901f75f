"""Each operation against torchvision's, the spaces and choices of both policies, and that an image does not depend on its batch."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import v2

from visus.data.policies import Change, Operation, apply_change, rand_augment, trivial_augment

TRIVIAL, RAND = v2.TrivialAugmentWide(), v2.RandAugment()
NAMES = {
    Operation.IDENTITY: "Identity",
    Operation.SHEAR_X: "ShearX",
    Operation.SHEAR_Y: "ShearY",
    Operation.TRANSLATE_X: "TranslateX",
    Operation.TRANSLATE_Y: "TranslateY",
    Operation.ROTATE: "Rotate",
    Operation.COLOUR: "Color",
    Operation.SHARPNESS: "Sharpness",
    Operation.BRIGHTNESS: "Brightness",
    Operation.CONTRAST: "Contrast",
    Operation.POSTERIZE: "Posterize",
    Operation.SOLARIZE: "Solarize",
    Operation.AUTOCONTRAST: "AutoContrast",
    Operation.EQUALIZE: "Equalize",
}
SHAPES = [(1, 28, 28), (3, 32, 32), (3, 21, 34), (1, 8, 5), (3, 2, 7), (3, 1, 1)]


def pictures(channels, height, width):
    """Noise, slopes of few grey levels, and one colour all over."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, channels, height, width), dtype=torch.uint8, generator=generator)
    coarse = torch.rand(3, channels, 3, 3, generator=generator) * 200 + 20
    slopes = F.interpolate(coarse, (height, width), mode="bilinear").to(torch.uint8)
    return torch.cat([noise, slopes, torch.full((1, channels, height, width), 77, dtype=torch.uint8)])


def magnitudes(operation, height, width):
    """What torchvision's two policies may choose, both signs."""
    found = []
    for policy in (TRIVIAL, RAND):
        space, signed = policy._AUGMENTATION_SPACE[NAMES[operation]]
        values = space(31, height, width)
        found += [0.0] if values is None else [float(value) for value in values]
        found += [-float(value) for value in values] if signed else []
    return found


def theirs(image, operation, magnitude):
    return TRIVIAL._apply_image_or_video_transform(
        image, NAMES[operation], magnitude, interpolation=TRIVIAL.interpolation, fill=TRIVIAL._fill
    )


def all_alike(images, operation, magnitude):
    n = len(images)
    return apply_change(images, Change(np.full(n, int(operation)), np.full(n, float(magnitude))))


# Where a product and a sum decide, torchvision's kernels may round once or twice: then a level more or less.
LEVELS_APART = {Operation.COLOUR: 1, Operation.SHARPNESS: 1, Operation.CONTRAST: 1}
TURNED = (Operation.SHEAR_X, Operation.SHEAR_Y, Operation.ROTATE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "operation", [each for each in Operation if each not in TURNED], ids=lambda o: o.name
)
def test_as_torchvision(operation, shape):
    images = pictures(*shape)
    differing, values = 0, 0
    for magnitude in magnitudes(operation, *shape[1:])[::3]:
        expected = torch.stack([theirs(image, operation, magnitude) for image in images])
        apart = (all_alike(images, operation, magnitude).int() - expected.int()).abs()
        assert apart.max() <= LEVELS_APART.get(operation, 0)
        differing, values = differing + int((apart > 0).sum()), values + apart.numel()
    assert differing <= 0.002 * values


@pytest.mark.parametrize("size", [(28, 28), (21, 35), (64, 40), (1, 1)], ids=str)
@pytest.mark.parametrize("operation", TURNED, ids=lambda o: o.name)
def test_pixels_come_from_where_torchvision_takes_them(operation, size):
    """Images that hold their own rows and columns, from 1; 0 is outside. On the line between two pixels either may be taken."""
    rows = (1 + torch.arange(size[0])).expand(size[1], -1).t()
    images = torch.stack([rows, (1 + torch.arange(size[1])).expand(size)])[:, None].to(torch.uint8)
    differing, values = 0, 0
    for magnitude in magnitudes(operation, *size):
        expected = torch.stack([theirs(image, operation, magnitude) for image in images]).int()
        found = all_alike(images, operation, magnitude).int()
        both_inside = (found > 0) & (expected > 0)
        assert bool(((found - expected).abs() <= 1)[both_inside].all())
        differing, values = differing + int((found != expected).sum()), values + found.numel()
    assert differing <= 0.001 * values


def test_a_turn_by_hand():
    image = torch.tensor([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], dtype=torch.uint8)
    assert all_alike(image, Operation.ROTATE, 90)[0, 0].tolist() == [[3, 6, 9], [2, 5, 8], [1, 4, 7]]
    assert all_alike(image, Operation.TRANSLATE_X, 1.9)[0, 0].tolist() == [[0, 1, 2], [0, 4, 5], [0, 7, 8]]
    assert all_alike(image, Operation.TRANSLATE_Y, -1.9)[0, 0].tolist() == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]
    assert all_alike(image, Operation.SHEAR_X, 0.99)[0, 0].tolist() == [[1, 2, 3], [5, 6, 0], [9, 0, 0]]


@pytest.mark.parametrize("policy", [trivial_augment, rand_augment])
@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 9), st.integers(1, 29))
def test_an_image_does_not_depend_on_its_batch(policy, seed, epoch, cut):
    images = torch.cat([pictures(3, 19, 22)] * 5)[:30]
    indices = np.arange(100, 130)
    before = images.clone()
    whole, parts = images, (images[:cut], images[cut:])
    for change in policy(seed, epoch, indices, (19, 22)):
        whole = apply_change(whole, change)
    for place, part in zip((indices[:cut], indices[cut:]), parts, strict=True):
        for change in policy(seed, epoch, place, (19, 22)):
            part = apply_change(part, change)
        assert torch.equal(part, whole[place - 100])
    assert torch.equal(images, before)


def test_images_too_large_to_be_changed_together_come_out_the_same(monkeypatch):
    images = pictures(3, 15, 17)
    monkeypatch.setattr("visus.data.policies._VALUES_AT_ONCE", 2 * images[0].numel())
    change = Change(np.array([1, 1, 5, 9, 9, 13, 6]), np.array([0.2, -0.3, 40, 0.5, -0.5, 0, 0.7]))
    alone = [
        apply_change(images[i : i + 1], Change(change.operations[[i]], change.magnitudes[[i]]))
        for i in range(7)
    ]
    assert torch.equal(apply_change(images, change), torch.cat(alone))


@pytest.mark.parametrize("policy", [trivial_augment, rand_augment])
def test_no_images(policy):
    images = torch.empty((0, 3, 8, 8), dtype=torch.uint8)
    for change in policy(0, 0, np.arange(0), (8, 8)):
        assert apply_change(images, change).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (224, 160)], ids=str)
@pytest.mark.parametrize(("policy", "reference"), [(trivial_augment, TRIVIAL), (rand_augment, RAND)])
def test_magnitudes_are_those_of_torchvision(policy, reference, size):
    found = {operation: set() for operation in Operation}
    for change in policy(0, 0, np.arange(20_000), size):
        for operation, magnitude in zip(change.operations, change.magnitudes, strict=True):
            found[operation].add(round(float(magnitude), 4) + 0.0)
    for operation, name in NAMES.items():
        space, signed = reference._AUGMENTATION_SPACE[name]
        values = space(31, *size)
        if values is None:
            assert found[operation] == {0.0}
            continue
        values = [float(value) for value in (values if reference is TRIVIAL else values[[9]])]
        expected = sorted(
            {round(sign * value, 4) + 0.0 for value in values for sign in ((1, -1) if signed else (1,))}
        )
        assert sorted(found[operation]) == pytest.approx(expected, abs=2e-4)


def test_small_images_are_not_moved_out_of_sight():
    (change,) = trivial_augment(0, 0, np.arange(20_000), (8, 12))
    for operation, side in ((Operation.TRANSLATE_X, 12), (Operation.TRANSLATE_Y, 8)):
        moved = change.magnitudes[change.operations == operation]
        assert (moved.min(), moved.max()) == (-side, side)


def test_trivial_augment_chooses_evenly():
    (change,) = trivial_augment(1, 2, np.arange(70_000), (32, 32))
    assert stats.chisquare(np.bincount(change.operations, minlength=14)).pvalue > 0.01
    turned = change.magnitudes[change.operations == Operation.ROTATE]
    levels = np.rint(np.abs(turned) / 4.5).astype(int)
    assert stats.chisquare(np.bincount(levels, minlength=31)).pvalue > 0.01
    assert stats.chisquare(np.bincount(np.sign(turned[levels > 0]).astype(int) + 1)[[0, 2]]).pvalue > 0.01
    solarized = change.magnitudes[change.operations == Operation.SOLARIZE]
    assert stats.chisquare(np.bincount(np.rint(30 * solarized).astype(int), minlength=31)).pvalue > 0.01


def test_rand_augment_chooses_two_evenly_and_independently():
    first, second = rand_augment(1, 2, np.arange(98_000), (32, 32))
    pairs = Counter(zip(first.operations.tolist(), second.operations.tolist(), strict=True))
    counts = [pairs[one, other] for one in range(14) for other in range(14)]
    assert stats.chisquare(counts).pvalue > 0.01
    turned = first.operations == Operation.ROTATE
    assert set(first.magnitudes[turned]) == {-9.0, 9.0}
    assert stats.binomtest(int((first.magnitudes[turned] > 0).sum()), int(turned.sum())).pvalue > 0.01


@pytest.mark.parametrize("policy", [trivial_augment, rand_augment])
def test_epochs_and_seeds_choose_anew(policy):
    def operations(seed, epoch):
        return [change.operations for change in policy(seed, epoch, np.arange(40_000), (8, 8))]

    for other in (operations(0, 1), operations(1, 0)):
        for one, another in zip(operations(0, 0), other, strict=True):
            assert stats.binomtest(int((one == another).sum()), 40_000, 1 / 14).pvalue > 0.01
