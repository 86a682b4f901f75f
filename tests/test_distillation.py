"""A teacher sees what its student sees, as it was taught to see it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visus.checkpoint import model_digest, save_checkpoint
from visus.data.normalising import normalise
from visus.distillation import Teacher, find_teacher, load_teacher, normalised_again
from visus.errors import CheckpointError, UsageError
from visus.models.build import build_model
from visus.preprocessing import Preprocessing

COLOUR = Preprocessing((8, 8), 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
GREY = Preprocessing((8, 8), 1, (0.5,), (0.25,))
CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path):
    """The path of one of a small net for grey images of two classes, and the net."""
    torch.manual_seed(0)
    model = build_model("small", 2, in_channels=1)
    document = {
        "model": "small",
        "model_args": {"num_classes": 2, "in_channels": 1, "stem": None},
        "classes": ["a", "b"],
        "preprocess": GREY.to_json(),
        "config": {},
    }
    save_checkpoint(
        tmp_path / "best.safetensors", {f"model.{k}": v for k, v in model.state_dict().items()}, document
    )
    return tmp_path / "best.safetensors", model


def test_images_come_out_as_though_normalised_for_the_teacher():
    pixels = torch.randint(0, 256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    other = replace(COLOUR, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25))
    found = normalised_again(normalise(pixels, COLOUR), COLOUR, other)
    torch.testing.assert_close(found, normalise(pixels, other), atol=1e-5, rtol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    same = normalise(pixels, COLOUR)
    assert normalised_again(same, COLOUR, COLOUR) is same


def test_grey_images_are_repeated_for_a_teacher_of_colours():
    pixels = torch.randint(0, 256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    found = normalised_again(normalise(pixels, GREY), GREY, COLOUR)
    expected = normalise(pixels.expand(3, 3, 8, 8), COLOUR)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_images_are_as_large_as_the_teacher_wants_them_and_none_may_be_there():
    images = torch.randn(2, 3, 8, 8)
    found = normalised_again(images, COLOUR, replace(COLOUR, size=(4, 6)))
    torch.testing.assert_close(found, F.interpolate(images, (4, 6), mode="bilinear", antialias=True))
    assert normalised_again(images[:0], COLOUR, replace(COLOUR, size=(4, 6))).shape[0] == 0


def test_it_is_the_model_of_the_checkpoint_in_eval_mode(checkpoint):
    path, model = checkpoint
    teacher = load_teacher(str(path), None, ("a", "b"), replace(GREY, mean=(0.0,), std=(1.0,)), CPU)
    images = torch.rand(5, 1, 8, 8)
    with torch.inference_mode():
        expected = model.eval()((images - 0.5) / 0.25)
    found = teacher.logits(images)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    # What is saved for a backward pass must not come from inference mode.
    assert not found.is_inference()
    assert torch.equal(teacher.logits(images), found)


def test_a_teacher_draws_nothing_and_changes_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2), nn.BatchNorm1d(2)).eval()
    before = model_digest(model.state_dict())
    teacher = Teacher(model, GREY, GREY)
    images = torch.rand(3, 1, 8, 8)
    state = torch.get_rng_state()
    teacher.logits(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert model_digest(model.state_dict()) == before


def test_another_teacher_than_before_is_refused(checkpoint):
    path, model = checkpoint
    found, digest = find_teacher(str(path.parent), None)
    assert (found, digest) == (str(path), model_digest(model.state_dict()))
    assert find_teacher(found, digest) == (found, digest)
    for refused in (lambda: find_teacher(found, "0" * 64), lambda: load_teacher(found, "0", (), GREY, CPU)):
        with pytest.raises(CheckpointError, match="expected the teacher that the run began with"):
            refused()


def test_a_teacher_of_other_classes_or_channels_is_refused(checkpoint):
    path, _ = checkpoint
    with pytest.raises(UsageError, match="of the classes a, c, found a, b"):
        load_teacher(str(path), None, ("a", "c"), GREY, CPU)
    with pytest.raises(UsageError, match="for images of 3 channels, found 1"):
        load_teacher(str(path), None, ("a", "b"), COLOUR, CPU)
