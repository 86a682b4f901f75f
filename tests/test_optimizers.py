"""Every optimizer that there is: stopped, written, read and gone on with, it ends in the same bits."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from timm.optim import list_optimizers
from torch import nn

from visus.checkpoint import load_checkpoint, model_digest, save_checkpoint
from visus.errors import UsageError
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.state import TrainingState, pack, restore

SAMPLED = ["adamw", "muon", "lamb", "adan", "lion", "adafactor", "sgdp", "nadamw", "madgrad", "novograd"]
WITHOUT_RATE = {"sgdp", "csgdp", "adafactor", "cadafactor"}
REFUSED = {"adahessian", "kron", "kronc", "kronw"}


def begin(name):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(64, 5)).to(memory_format=torch.channels_last)
    settings = OptimizerSettings(optimizer=name, lr=0.01 if name in WITHOUT_RATE else None)
    return TrainingState(model, make_optimizer(model, settings))


def train(state, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(6, 3, 8, 8, generator=generator)
        targets = torch.randint(5, (6,), generator=generator)
        F.cross_entropy(state.model(images), targets).backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
    return model_digest(state.model.state_dict())


def check(name, path):
    whole, stopped = begin(name), begin(name)
    at_first = model_digest(whole.model.state_dict())
    expected = train(whole, 0, 6)
    assert expected != at_first
    assert all(each.isfinite().all() for each in whole.model.parameters())
    train(stopped, 0, 3)
    tensors, plain = pack(stopped)
    document = {"model": "custom", "classes": [], "preprocess": None, "config": {}, "state": plain}
    save_checkpoint(path, tensors, document)
    resumed, checkpoint = begin(name), load_checkpoint(path)
    restore(resumed, checkpoint.tensors, checkpoint.document["state"], path)
    assert train(resumed, 3, 6) == expected


@pytest.mark.parametrize("name", SAMPLED)
def test_some_of_them(name, tmp_path):
    check(name, tmp_path / "last.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "adamw", *list_optimizers()])
def test_all_of_them(name, tmp_path):
    if name in REFUSED or name.startswith(("bnb", "fused")):
        with pytest.raises(UsageError, match=f"--optimizer {name}"):
            begin(name)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(name, tmp_path / "last.safetensors")
