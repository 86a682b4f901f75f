"""Runs in which a part of the model is frozen or adapted, resumed, and what they leave behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from visus.checkpoint import load_checkpoint, rebuild_model
from visus.config import make_config
from visus.errors import CheckpointError, UsageError
from visus.models.build import build_model
from visus.training import resume, train


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Some of the digits, as a file."""
    import visus

    data = visus.open_source("digits", val_fraction=0).train
    path = tmp_path_factory.mktemp("few") / "few.npz"
    np.savez(path, images=data.images.pixels[:120, 0].numpy(), labels=data.labels[:120])
    return str(path)


def config(data, tmp_path, name, epochs=2, **options):
    common = {"model": "small", "augment": "none", "batch_size": 40, "amp": "off", "threads": 1, "lr": 0.05}
    return make_config(data=data, out=str(tmp_path), name=name, epochs=epochs, **{**common, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"freeze": "gradual:1", "optimizer": "adamw", "lr": 1e-3},
        {"freeze": "gradual:1"},
        {"freeze": "gradual:1", "ema": True, "layer_decay": 0.7, "weight_decay_on": "weights"},
        {"freeze": "2,batchnorm", "backbone_factor": 0.1},
        {"freeze": "backbone", "augment": "light"},
    ],
)
def test_a_run_with_frozen_parts_goes_on_to_the_same_bits(few, tmp_path, options):
    whole = train(config(few, tmp_path, "whole", 3, schedule="constant", **options))
    # In an epoch alone nothing would be thawed, which is refused where it is asked for.
    half = train(replace(config(few, tmp_path, "half", 3, schedule="constant", **options), epochs=1))
    assert resume(half.run, epochs=3).digest == whole.digest


def test_what_is_frozen_does_not_move_and_has_no_state(few, tmp_path):
    first = train(config(few, tmp_path, "first", 1))
    weights = first.checkpoints["last"]
    run = train(config(few, tmp_path, "second", 1, weights=weights, freeze="2", augment="light"))
    before, after = load_checkpoint(weights).tensors, load_checkpoint(run.checkpoints["last"]).tensors
    for name, tensor in before.items():
        if name.startswith("model."):
            frozen = name.startswith(("model.features.0.", "model.features.2."))
            assert torch.equal(tensor, after[name]) == frozen, name
    states = [name for name in after if name.startswith("optimizer.")]
    assert states
    assert not [
        name for name in states if name.startswith(("optimizer.features.0.", "optimizer.features.2."))
    ]


def drawn(folder):
    """Image files of two classes."""
    for number in range(24):
        place = folder / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (70, 70), (10 * number, 0, 0)).save(place)
    return str(folder)


class DecodedError(Exception):
    pass


@pytest.fixture
def undecoded(monkeypatch):
    def decode(*arguments, **options):
        raise DecodedError

    monkeypatch.setattr("visus.preparing.decode_once", decode)


def write_weights(kind, path):
    """A file to start from, or what is none."""
    if kind == "cut short":
        torch.save(build_model("resnet18", 7).state_dict(), path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind != "missing":
        torch.save(build_model(kind, 7).state_dict(), path)


@pytest.mark.parametrize(
    ("model", "kind", "sentence"),
    [
        ("resnet18", "missing", "expected a file of weights, found none"),
        ("resnet18", "cut short", "damaged or not a file of weights"),
        ("resnet18", "small", "the weights are not those of this model"),
    ],
)
def test_weights_that_are_of_no_use_are_refused_before_an_image_is_decoded(
    undecoded, tmp_path, model, kind, sentence
):
    write_weights(kind, tmp_path / "a.pth")
    settings = {"model": model, "weights": str(tmp_path / "a.pth"), "out": str(tmp_path / "runs")}
    with pytest.raises(CheckpointError, match=sentence):
        train(make_config(data=drawn(tmp_path / "images"), img_size=64, **settings))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("weights", ["default", "IMAGENET1K_V1"])
def test_names_that_stand_for_no_weights_are_refused_before_an_image_is_decoded(undecoded, tmp_path, weights):
    settings = {"model": "small", "weights": weights, "out": str(tmp_path / "runs")}
    with pytest.raises(UsageError, match=r"no default weights|unknown file or set of weights"):
        train(make_config(data=drawn(tmp_path / "images"), **settings))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("resnet18", {"stem": "small"}),
        ("timm/test_vit", {}),
        ("vit_b_32", {}),
        ("timm/tresnet_m", {}),
    ],
)
def test_weights_that_fit_are_no_reason_to_stop(undecoded, tmp_path, model, options):
    write_weights(model, tmp_path / "a.pth")
    settings = {"model": model, "weights": str(tmp_path / "a.pth"), "img_size": 64, "out": str(tmp_path)}
    with pytest.raises(DecodedError):
        train(make_config(data=drawn(tmp_path / "images"), **{**settings, **options}))


def test_a_size_that_the_model_cannot_be_built_for_is_no_fault_of_the_weights(undecoded, tmp_path):
    write_weights("vit_b_32", tmp_path / "a.pth")
    settings = {"model": "vit_b_32", "weights": str(tmp_path / "a.pth"), "img_size": 70, "out": str(tmp_path)}
    with pytest.raises(UsageError, match=r"cannot take images of 70x70 .* such as 64 and 96"):
        train(make_config(data=drawn(tmp_path / "images"), **settings))


def test_without_asking_for_anything_a_run_is_what_it_was(few, tmp_path):
    plain = train(config(few, tmp_path, "plain", 1))
    asked = config(few, tmp_path, "asked", 1, freeze="none", layer_decay=1.0, backbone_factor=1.0)
    assert train(asked).digest == plain.digest


VIT = {"model": "timm/test_vit", "img_size": 160, "optimizer": "adamw", "lr": 1e-3, "batch_size": 60}


def test_an_adapted_transformer_goes_on_to_the_same_bits_and_its_best_is_a_plain_model(few, tmp_path):
    whole = train(config(few, tmp_path, "whole", 2, schedule="constant", lora=2, ema=True, **VIT))
    half = train(config(few, tmp_path, "half", 1, schedule="constant", lora=2, ema=True, **VIT))
    best, last = (load_checkpoint(half.checkpoints[which]) for which in ("best", "last"))
    assert resume(half.run, epochs=2).digest == whole.digest
    assert not [name for name in best.tensors if "parametrizations" in name]
    assert not [name for name in best.tensors if name.startswith(("optimizer.", "ema."))]
    # The last one can be used as well; its averaged weights are merged when it is read.
    images = torch.rand(2, 1, 160, 160)
    assert [name for name in last.tensors if "parametrizations" in name]
    with torch.inference_mode():
        torch.testing.assert_close(rebuild_model(last).eval()(images), rebuild_model(best).eval()(images))
    trained = sorted({name.split(".")[-2] for name in last.tensors if name.startswith("optimizer.")})
    assert {"down", "up", "weight", "bias"} == set(trained)


def test_adaptation_is_for_models_with_linear_layers(few, tmp_path):
    with pytest.raises(UsageError, match=r"--lora 2: expected a model with linear layers"):
        train(config(few, tmp_path, "none", lora=2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"freeze": "batchnorm", **VIT}, "--freeze batchnorm: expected a model with batch norm, found none"),
        ({"freeze": "5", "layer_decay": 0.5}, "--freeze 5 trains nothing"),
        ({"freeze": "5", "backbone_factor": 0.5}, "--freeze 5 trains nothing"),
    ],
)
def test_what_would_change_nothing_of_the_model_leaves_nothing_behind(few, tmp_path, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        train(config(few, tmp_path, "none", **options))
    assert not list(tmp_path.iterdir())


def test_low_rank_changes_learn_by_depth_as_well(few, tmp_path):
    def digest(**options):
        return train(config(few, tmp_path, "a", 1, lora=2, **VIT, **options)).digest

    assert len({digest(), digest(layer_decay=0.5), digest(backbone_factor=0.5)}) == 3


def test_freezing_more_than_there_is_leaves_nothing_behind(few, tmp_path):
    with pytest.raises(UsageError, match="--freeze 9: expected at most the 5 stages"):
        train(config(few, tmp_path, "none", freeze="9"))
    assert not list(tmp_path.iterdir())
