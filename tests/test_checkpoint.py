import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from visus.checkpoint import (
    load_checkpoint,
    load_tensors,
    model_digest,
    pack_optimizer,
    restore_optimizer,
    save_checkpoint,
)
from visus.errors import CheckpointError

DOCUMENT = {"model": "custom", "classes": ["cat", "猫"], "preprocess": None, "config": {"lr": 0.1}}


def net():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(layers, nn.Flatten(), nn.Linear(8, 4)).to(memory_format=torch.channels_last)


def model_tensors(model):
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def steps(model, optimizer, numbers):
    for number in numbers:
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        model(images.to(memory_format=torch.channels_last)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def saved(tmp_path):
    model = net()
    save_checkpoint(tmp_path / "a.safetensors", model_tensors(model), DOCUMENT)
    return tmp_path / "a.safetensors"


def test_what_is_saved_is_loaded_and_opens_with_safetensors_alone(saved):
    checkpoint = load_checkpoint(saved)
    model = net()
    assert checkpoint.classes == ("cat", "猫")
    assert checkpoint.config == {"lr": 0.1}
    assert model_digest(checkpoint.model_tensors) == checkpoint.document["digest"]
    assert checkpoint.document["digest"] == model_digest(model.state_dict())
    assert set(load_file(saved)) == set(model_tensors(model))


def test_the_averaged_weights_are_the_ones_to_use(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", {"model.w": torch.ones(2), "ema.w": torch.zeros(2)}, DOCUMENT)
    assert load_checkpoint(tmp_path / "a.safetensors").model_tensors["w"].tolist() == [0, 0]


def test_tied_weights_are_stored_once(tmp_path):
    shared = torch.ones(1000)
    save_checkpoint(tmp_path / "a.safetensors", {"model.a": shared, "model.b": shared}, DOCUMENT)
    assert (tmp_path / "a.safetensors").stat().st_size < 6000
    assert set(load_checkpoint(tmp_path / "a.safetensors").model_tensors) == {"a", "b"}


@given(st.data())
def test_a_flipped_bit_is_found(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bits") / "a.safetensors"
    save_checkpoint(path, {"model.w": torch.arange(50.0)}, DOCUMENT)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError:
        return
    # What is left are spellings of the same header, such as a space for a space.
    assert checkpoint.tensors["model.w"].tolist() == list(range(50))
    assert checkpoint.config == DOCUMENT["config"]


@pytest.mark.parametrize("length", [0, 7, 100, -1, -400])
def test_a_truncated_file_is_named(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        load_checkpoint(saved)


def test_a_newer_format_is_refused(saved):
    content = saved.read_bytes().replace(b'\\"format\\":1', b'\\"format\\":9')
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="newer visus"):
        load_checkpoint(saved)


def test_the_digest_depends_on_names_types_shapes_and_values_but_not_on_layout():
    images = torch.randn(2, 3, 4, 4)
    base = model_digest({"a": images})
    assert model_digest({"a": images.to(memory_format=torch.channels_last)}) == base
    for other in ({"b": images}, {"a": images.reshape(6, 16)}, {"a": images.double()}, {"a": images + 1}):
        assert model_digest(other) != base


def test_the_digest_is_pinned():
    tensors = {"b": torch.tensor([1.5, -2.0]), "a": torch.tensor(3)}
    assert model_digest(tensors) == "1018292274cb506d779f8eed6dadaa9c7c1dfb3fd63292b7fd6fe32e20c126d9"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_an_optimizer_goes_on_to_the_same_bits(tmp_path, name, fused):
    def begin():
        model = net()
        options = {"momentum": 0.9, "nesterov": True} if name == "SGD" else {}
        return model, getattr(torch.optim, name)(model.parameters(), lr=0.1, fused=fused, **options)

    model, optimizer = begin()
    steps(model, optimizer, range(3))
    tensors, plain = pack_optimizer(optimizer, model)
    path = tmp_path / "a.safetensors"
    optimizer_tensors = {f"optimizer.{each}": tensor for each, tensor in tensors.items()}
    save_checkpoint(path, model_tensors(model) | optimizer_tensors, {**DOCUMENT, "optimizer": plain})
    steps(model, optimizer, range(3, 6))

    resumed, again = begin()
    checkpoint = load_checkpoint(path)
    load_tensors(resumed, checkpoint.model_tensors, path)
    tensors = {n.removeprefix("optimizer."): t for n, t in checkpoint.tensors.items() if n.startswith("opt")}
    restore_optimizer(again, resumed, tensors, checkpoint.document["optimizer"])
    steps(resumed, again, range(3, 6))
    assert model_digest(resumed.state_dict()) == model_digest(model.state_dict())


def test_weights_that_do_not_fit_are_named(saved):
    with pytest.raises(CheckpointError, match=r"do not fit the model.*fc\.weight"):
        load_tensors(nn.ModuleDict({"fc": nn.Linear(2, 2)}), load_checkpoint(saved).model_tensors, saved)


def test_a_file_of_weights_alone_is_told_from_a_checkpoint(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"x": json.dumps({})})
    with pytest.raises(CheckpointError, match="--weights"):
        load_checkpoint(tmp_path / "a.safetensors")
