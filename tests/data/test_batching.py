"""Batches do not depend on where one starts or how they are cut, and agree with a plain reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st

from visus.data import crops
from visus.data.arrays import array_split
from visus.data.augment import augment, cropping, draw, shift_and_flip
from visus.data.batching import (
    EvaluationBatches,
    TrainingBatches,
    batch_sizes,
    batches,
    measure_preprocessing,
)
from visus.data.images import ArrayImages
from visus.data.mixing import draw_mixing
from visus.data.normalising import normalise
from visus.data.policies import apply_change, rand_augment, trivial_augment
from visus.errors import UsageError
from visus.loop import fit

RANDOM = np.random.default_rng(0)
SPLIT = array_split("train", RANDOM.integers(0, 256, (23, 16, 24, 3), np.uint8), np.arange(23) % 3, None, "x")
RECORD = measure_preprocessing(SPLIT)
LARGE = array_split("train", RANDOM.integers(0, 256, (9, 80, 100, 3), np.uint8), np.arange(9) % 3, None, "x")
KINDS = [
    {"augment": "none"},
    {"augment": "light"},
    {"augment": "flip"},
    {"augment": "standard"},
    {"augment": "trivial", "erasing": 0.5},
    {"augment": "rand"},
    {"augment": "light", "sampler": "balanced"},
]
MIXED = [{"mixup": 0.4}, {"cutmix": 1.0}, {"augment": "trivial", "erasing": 0.3, "mixup": 1.0, "cutmix": 1.0}]


@given(st.integers(2, 500), st.integers(2, 500))
def test_no_image_is_dropped_and_none_is_alone(n, batch_size):
    if batch_size > n:
        with pytest.raises(UsageError, match="batch size"):
            batch_sizes(n, batch_size)
        return
    sizes = batch_sizes(n, batch_size)
    assert sum(sizes) == n
    assert min(sizes) > 1
    assert max(sizes) <= batch_size + 1


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(2, 23), st.integers(0, 4), st.sampled_from(KINDS + MIXED))
def test_skipping_batches_changes_nothing(epoch, batch_size, start, kind):
    batches = TrainingBatches(SPLIT, RECORD, batch_size, seed=3, **kind)
    whole = list(batches(epoch))
    assert len(whole) == len(batches)
    for first, second in zip(whole[start:], batches(epoch, start), strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.targets, second.targets)
        assert torch.equal(first.indices, second.indices)


@settings(deadline=None)
@given(st.integers(2, 23), st.integers(2, 23), st.sampled_from(KINDS))
def test_an_image_does_not_depend_on_its_batch(one, other, kind):
    def images(batch_size):
        batches = list(TrainingBatches(SPLIT, RECORD, batch_size, **kind)(1))
        assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)
        order = torch.cat([batch.indices for batch in batches]).argsort(stable=True)
        return torch.cat([batch.images for batch in batches])[order]

    assert torch.equal(images(one), images(other))


def test_epochs_differ_and_every_image_is_seen():
    first, second = (list(TrainingBatches(SPLIT, RECORD, 5)(epoch)) for epoch in (0, 1))
    for epoch in (first, second):
        assert sorted(torch.cat([batch.indices for batch in epoch]).tolist()) == list(range(23))
    assert first[0].indices.tolist() != second[0].indices.tolist()


def test_an_image_that_is_there_twice_is_not_the_same_picture():
    labels = np.array([0] * 21 + [1, 2])
    split = replace(SPLIT, labels=labels)
    (batch,) = TrainingBatches(split, RECORD, 23, "light", sampler="balanced")(0)
    again = batch.images[batch.indices == 22]
    assert len(again) > 3
    assert not any(torch.equal(again[0], each) for each in again[1:])
    (plain,) = TrainingBatches(split, RECORD, 23, "light")(0)
    assert any(torch.equal(each, plain.images[plain.indices == 22][0]) for each in again)


def test_targets_stay_with_their_images():
    for images, targets in TrainingBatches(SPLIT, RECORD, 5)(0):
        assert len(images) == len(targets)
    for batch in TrainingBatches(SPLIT, RECORD, 5)(0):
        assert batch.targets.tolist() == SPLIT.labels[batch.indices].tolist()


@given(st.integers(-3, 3), st.integers(-3, 3), st.booleans())
def test_shift_and_flip_is_a_crop_of_the_padded_image(top, left, flip):
    images = SPLIT.images.pixels[:1]
    expected = tv.crop(tv.pad(images, [3, 3]), 3 + top, 3 + left, 16, 24)
    if flip:
        expected = tv.horizontal_flip(expected)
    assert torch.equal(shift_and_flip(images, np.array([top]), np.array([left]), np.array([flip])), expected)


def test_flip_mirrors_every_other_image_and_moves_none():
    images = torch.randint(0, 256, (4000, 3, 5, 6), dtype=torch.uint8)
    before, draws = images.clone(), draw(0, 0, np.arange(4000), "flip")
    flipped = augment(images, draws, "flip")
    expected = [
        tv.horizontal_flip(image) if number < 0.5 else image
        for image, number in zip(images, draws[:, 2], strict=True)
    ]
    assert torch.equal(flipped, torch.stack(expected))
    assert 0.47 < (draws[:, 2] < 0.5).mean() < 0.53
    assert torch.equal(images, before)


def test_light_reaches_every_place():
    images = torch.zeros(4000, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    moved = augment(images, draw(0, 0, np.arange(4000), "light"), "light")
    places = moved[:, 0].flatten(1).argmax(1).bincount(minlength=64).view(8, 8)
    assert (places[3:6, 2:6].sum(), (places > 0).sum()) == (4000, 12)


def test_normalised_images_have_mean_0_and_std_1():
    images = torch.cat([batch.images for batch in EvaluationBatches(SPLIT, RECORD, 7)])
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_evaluation_keeps_the_order():
    batches = list(EvaluationBatches(SPLIT, RECORD, 7))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(23))
    assert [len(batch) for batch in batches] == [7, 7, 7, 2]


@settings(deadline=None)
@given(st.integers(2, 23), st.integers(2, 5), st.sampled_from(KINDS + MIXED))
def test_processes_share_each_batch_among_them(batch_size, world_size, kind):
    whole = TrainingBatches(SPLIT, RECORD, batch_size, seed=3, **kind)(2)
    shares = [
        TrainingBatches(SPLIT, RECORD, batch_size, seed=3, rank=rank, world_size=world_size, **kind)(2)
        for rank in range(world_size)
    ]
    for batch, *slices in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([each.images for each in slices]), batch.images)
        assert torch.equal(torch.cat([each.targets for each in slices]), batch.targets)
        assert torch.equal(torch.cat([each.indices for each in slices]), batch.indices)
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_each_image_is_mixed_with_the_one_before_it(settings):
    plain = TrainingBatches(SPLIT, RECORD, 5, "light", seed=3)(2)
    mixed = TrainingBatches(SPLIT, RECORD, 5, "light", seed=3, **settings)(2)
    for number, (before, after) in enumerate(zip(plain, mixed, strict=True)):
        mixing = draw_mixing(3, 2, number, (16, 24), **{"mixup": 0.0, "cutmix": 0.0, **settings})
        weights = torch.full((16, 24), mixing.share)
        if mixing.box:
            top, left, bottom, right = mixing.box
            weights = torch.ones(16, 24)
            weights[top:bottom, left:right] = 0
        partners = before.images.roll(1, 0)
        torch.testing.assert_close(after.images, before.images * weights + partners * (1 - weights))
        hot = torch.eye(3)[before.targets]
        torch.testing.assert_close(after.targets, hot * mixing.share + hot.roll(1, 0) * (1 - mixing.share))
        assert torch.equal(after.indices, before.indices)
        assert after.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("how", "policy"), [("trivial", trivial_augment), ("rand", rand_augment)])
@pytest.mark.parametrize(("split", "crops"), [(SPLIT, "light"), (LARGE, "standard")])
def test_a_policy_comes_after_the_crops_that_suit_the_size(split, crops, how, policy):
    record = measure_preprocessing(split)
    assert cropping(how, record.size) == crops
    found = next(TrainingBatches(split, record, 9, how, seed=5)(1))
    cropped = next(TrainingBatches(split, record, 9, crops, seed=5)(1))
    unit = torch.tensor(record.std)[:, None, None] * 255, torch.tensor(record.mean)[:, None, None] * 255
    pixels = (cropped.images * unit[0] + unit[1]).round().to(torch.uint8).contiguous()
    for change in policy(5, 1, cropped.indices.numpy(), record.size):
        pixels = apply_change(pixels, change)
    assert torch.equal(found.images, normalise(pixels, record))


@pytest.mark.parametrize("side", [64, 65])
def test_images_of_64_pixels_are_small(side):
    assert cropping("rand", (8, side)) == ("light" if side == 64 else "standard")
    assert cropping("none", (side, side)) == "none"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [5, 230])
def test_normalising_is_the_formula_rounded_as_written(channels, side):
    pixels = torch.randint(0, 256, (7, channels, side, side + 1), generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(torch.uint8)
    record = measure_preprocessing(replace(SPLIT, images=ArrayImages(pixels), labels=SPLIT.labels[:7]))
    mean, std = (np.float32(each) * np.float32(255) for each in (record.mean, record.std))
    values = pixels.numpy().astype(np.float32)
    expected = (values - mean[:, None, None]) * (np.float32(1) / std)[:, None, None]
    assert np.array_equal(normalise(pixels, record).numpy(), expected)


def test_a_net_trains_on_mixed_targets():
    """The loss at the start is that of a guess; accuracy counts the class of the larger share."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 24, 3))
    torch.nn.init.zeros_(model[1].weight)
    torch.nn.init.zeros_(model[1].bias)
    batches = TrainingBatches(SPLIT, RECORD, 23, mixup=1.0)
    history = fit(model, batches, optimizer=torch.optim.SGD(model.parameters(), 1e-3), epochs=1)
    larger = next(batches(0)).targets.argmax(1)
    assert history["loss"]["train"] == [pytest.approx(np.log(3), rel=1e-5)]
    assert history["acc"]["train"] == [pytest.approx(float((larger == 0).float().mean()))]


@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_processes_are_dealt_whole_blocks(world_size):
    shares = [
        [batch.indices.tolist() for batch in EvaluationBatches(SPLIT, RECORD, 5, rank, world_size)]
        for rank in range(world_size)
    ]
    blocks = [shares[block % world_size][block // world_size] for block in range(5)]
    assert blocks == [batch.indices.tolist() for batch in EvaluationBatches(SPLIT, RECORD, 5)]
    assert sum(map(len, shares)) == 5


def test_standard_is_a_random_crop_and_a_flip_of_torchvision():
    record = measure_preprocessing(LARGE, (32, 40))
    (batch,) = TrainingBatches(LARGE, record, 9, "standard", seed=5)(2)
    draws = draw(5, 2, np.arange(9), "standard")
    for image, position in zip(batch.images, batch.indices.tolist(), strict=True):
        top, left, height, width = crops._crop_box(80, 100, draws[position, 8:])
        whole = LARGE.images.pixels[position]
        expected = tv.resized_crop(whole, top, left, height, width, [32, 40], antialias=True)
        if draws[position, 2] < 0.5:
            expected = tv.horizontal_flip(expected)
        mean, std = (torch.tensor(values)[:, None, None] for values in (record.mean, record.std))
        torch.testing.assert_close(image, (expected / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert 0 < (draws[:, 2] < 0.5).sum() < 9


@pytest.mark.parametrize(("epoch", "start_step"), [(-1, 0), (0, -1)])
def test_there_is_no_epoch_or_step_before_the_first(epoch, start_step):
    with pytest.raises(UsageError, match="from 0 on, found epoch"):
        next(batches(SPLIT, batch_size=2, epoch=epoch, start_step=start_step))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mirrored_image_has_its_columns_the_other_way_round(channels):
    pixels = torch.randint(0, 256, (channels, 7, 10), dtype=torch.uint8)
    expected = tv.horizontal_flip(pixels)
    assert torch.equal(crops.mirror(pixels), expected)
    as_decoded = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(crops.mirror(as_decoded), expected)
