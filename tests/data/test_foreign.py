"""Transforms of others, whose randomness must not depend on what was drawn before."""

import random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from visus.data.batching import TrainingBatches, measure_preprocessing
from visus.data.foreign import transform_images
from visus.data.sources import open_source
from visus.errors import UsageError

DATA = open_source("digits")
TRAIN = DATA.train.subset(np.arange(40))
RECORD = measure_preprocessing(TRAIN)
PIPELINE = v2.Compose([v2.RandomResizedCrop(12, antialias=True), v2.RandomRotation(20), v2.ColorJitter(0.3)])


def batches(batch_size=8, transform=PIPELINE, **options):
    return TrainingBatches(TRAIN, RECORD, batch_size, seed=3, transform=transform, **options)


def in_order(found):
    batch_list = list(found)
    order = torch.cat([batch.indices for batch in batch_list]).argsort()
    return torch.cat([batch.images for batch in batch_list])[order]


def test_an_image_depends_neither_on_its_batch_nor_on_what_was_drawn_before():
    first = in_order(batches(8)(1))
    torch.rand(17)
    random.random()
    assert torch.equal(in_order(batches(13)(1)), first)
    assert not torch.equal(in_order(batches(8)(2)), first)


def test_an_epoch_is_gone_on_with_in_its_middle():
    whole = list(batches()(0))
    for batch, again in zip(whole[2:], batches()(0, 2), strict=True):
        assert torch.equal(batch.images, again.images)


def test_processes_share_the_images():
    shares = [list(batches(rank=rank, world_size=2)(0)) for rank in range(2)]
    for batch, *slices in zip(batches()(0), *shares, strict=True):
        assert torch.equal(torch.cat([each.images for each in slices]), batch.images)


def test_global_generators_are_as_they_were():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    list(batches()(0))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_every_kind_of_generator_is_seeded():
    def noisy(image):
        drawn = torch.rand(()).item(), random.random(), np.random.random()
        return torch.tensor(drawn).view(1, 1, 3)

    first = transform_images(noisy, [torch.zeros(1, 2, 2)] * 3, 0, 0, [4, 5, 4])
    assert torch.equal(first[0], first[2])
    assert (first[0] != first[1]).all()


def test_bytes_are_normalised_and_floats_taken_as_they_are():
    (first, *_) = batches(40, transform=lambda image: image)(0)
    (plain, *_) = TrainingBatches(TRAIN, RECORD, 40, seed=3)(0)
    assert torch.equal(first.images, plain.images)
    (floats, *_) = batches(40, transform=lambda image: image.float() / 4)(0)
    assert torch.equal(floats.images, TRAIN.images.pixels[first.indices].float() / 4)
    assert floats.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("transform", "what"),
    [
        (lambda image: image.numpy(), "found ndarray"),
        (lambda image: image[0], "found Tensor"),
        (lambda image: image[:, : 2 + int(image[0, 3, 3]) % 5], r"\[1, 2, 8\] and \[1, 3, 8\]"),
    ],
)
def test_what_makes_no_batch_is_refused(transform, what):
    with pytest.raises(UsageError, match=what):
        list(batches(40, transform=transform)(0))


def test_a_transform_that_works_in_place_leaves_the_images_alone():
    image = torch.full((3, 4, 4), 7, dtype=torch.uint8)
    transform_images(lambda pixels: pixels.fill_(0), [image], 0, 0, [0])
    assert (image == 7).all()


def test_a_transform_gets_an_image_whose_channels_come_first_in_memory_too():
    decoded = torch.arange(4 * 5 * 3, dtype=torch.uint8).view(4, 5, 3).permute(2, 0, 1)
    flat = transform_images(lambda image: image.view(3, 1, 20), [decoded], 0, 0, [0])
    assert torch.equal(flat[0].view(3, 4, 5), decoded)
