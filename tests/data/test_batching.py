"""Batches do not depend on where one starts or how they are cut, and agree with a plain reference."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given
from hypothesis import strategies as st

from visus.data.arrays import array_split
from visus.data.augment import augment, draw, shift_and_flip
from visus.data.batching import EvaluationBatches, TrainingBatches, batch_sizes, measure_preprocessing
from visus.errors import UsageError

RANDOM = np.random.default_rng(0)
SPLIT = array_split("train", RANDOM.integers(0, 256, (23, 16, 24, 3), np.uint8), np.arange(23) % 3, None, "x")
RECORD = measure_preprocessing(SPLIT)


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


@given(st.integers(0, 5), st.integers(2, 23), st.integers(0, 4))
def test_skipping_batches_changes_nothing(epoch, batch_size, start):
    batches = TrainingBatches(SPLIT, RECORD, batch_size, "light", seed=3)
    whole = list(batches(epoch))
    assert len(whole) == len(batches)
    for first, second in zip(whole[start:], batches(epoch, start), strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.indices, second.indices)


@given(st.integers(2, 23), st.integers(2, 23))
def test_an_image_does_not_depend_on_its_batch(one, other):
    def images(batch_size):
        batches = list(TrainingBatches(SPLIT, RECORD, batch_size, "light")(1))
        assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)
        order = torch.cat([batch.indices for batch in batches]).argsort()
        return torch.cat([batch.images for batch in batches])[order]

    assert torch.equal(images(one), images(other))


def test_epochs_differ_and_every_image_is_seen():
    first, second = (list(TrainingBatches(SPLIT, RECORD, 5)(epoch)) for epoch in (0, 1))
    for epoch in (first, second):
        assert sorted(torch.cat([batch.indices for batch in epoch]).tolist()) == list(range(23))
    assert first[0].indices.tolist() != second[0].indices.tolist()


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


@given(st.integers(2, 23), st.integers(2, 5), st.sampled_from(["none", "light", "standard"]))
def test_processes_share_each_batch_among_them(batch_size, world_size, how):
    whole = TrainingBatches(SPLIT, RECORD, batch_size, how, seed=3)(2)
    shares = [
        TrainingBatches(SPLIT, RECORD, batch_size, how, seed=3, rank=rank, world_size=world_size)(2)
        for rank in range(world_size)
    ]
    for batch, *slices in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([each.images for each in slices]), batch.images)
        assert torch.equal(torch.cat([each.indices for each in slices]), batch.indices)
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_processes_are_dealt_whole_blocks(world_size):
    shares = [
        [batch.indices.tolist() for batch in EvaluationBatches(SPLIT, RECORD, 5, rank, world_size)]
        for rank in range(world_size)
    ]
    blocks = [shares[block % world_size][block // world_size] for block in range(5)]
    assert blocks == [batch.indices.tolist() for batch in EvaluationBatches(SPLIT, RECORD, 5)]
    assert sum(map(len, shares)) == 5
