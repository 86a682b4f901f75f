"""What is frozen, thawed, and how fast each layer learns."""

import pytest
import timm
import torch
from pydantic import ValidationError
from timm.optim import param_groups_layer_decay
from torch import nn

from visus.errors import UsageError
from visus.models.adapt import (
    AdaptSettings,
    Freezing,
    depths,
    freezer,
    frozen_names,
    learning_rate_factors,
    parse_freeze,
    stages,
    train_mode,
)
from visus.models.build import build_model
from visus.models.hollow import build_outline

NETS = [
    "resnet18",
    "vit_b_16",
    "swin_t",
    "vgg11_bn",
    "timm/resnet10t",
    "timm/vit_tiny_patch16_224",
    "small",
    "quick",
]


def test_what_can_be_frozen_is_understood():
    assert parse_freeze("none") == Freezing(0)
    assert parse_freeze("backbone,batchnorm") == Freezing(None, None, True)
    assert parse_freeze("batchnorm") == Freezing(0, None, True)
    assert parse_freeze("3") == Freezing(3)
    assert parse_freeze("gradual:2") == Freezing(None, 2)


@pytest.mark.parametrize("text", ["", "-1", "backbones", "gradual", "gradual:0", "batchnorm,2", "2,"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValidationError, match="expected none, backbone"):
        AdaptSettings(freeze=text)


def test_adaptation_and_freezing_exclude_each_other():
    with pytest.raises(ValidationError, match="leave --freeze out"):
        AdaptSettings(freeze="2", lora=4)


@pytest.mark.parametrize("name", NETS)
def test_stages_are_all_but_the_head_each_parameter_once(name):
    model = build_outline(name, 7)
    found = [parameter for stage in stages(model) for parameter in stage]
    everything = [parameter for parameter, _ in model.named_parameters()]
    (head,) = {each.rpartition(".")[0] for each in set(everything) - set(found)}
    assert sorted(found) == sorted(set(found))
    assert model.get_submodule(head).weight.shape[0] == 7
    assert len(stages(model)) > 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        ("vit_b_16", ["class_token", *(f"encoder.layers.encoder_layer_{i}" for i in range(12))]),
        ("small", ["features.0", "features.2", "features.3", "features.5", "features.6"]),
        ("quick", [f"features.{i}" for i in range(5)]),
        ("timm/resnet10t", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        ("timm/vit_tiny_patch16_224", ["cls_token", *(f"blocks.{i}." for i in range(12))]),
    ],
)
def test_stages_go_from_the_input_to_the_output(name, expected):
    found = stages(build_outline(name, 7))
    assert len(found) == len(expected)
    for stage, begin in zip(found, expected, strict=True):
        assert stage[0].startswith(begin)


def test_norms_and_embeddings_belong_to_the_stage_they_lie_in():
    vit = depths(build_outline("vit_b_16", 7))
    assert vit["class_token"] == vit["conv_proj.weight"] == vit["encoder.pos_embedding"] == 0
    assert vit["encoder.ln.weight"] == vit["encoder.layers.encoder_layer_11.ln_1.weight"] == 12
    assert vit["heads.head.weight"] == 13
    assert depths(build_outline("resnet18", 7))["bn1.weight"] == 0


@pytest.mark.parametrize("name", [each for each in NETS if each not in ("vit_b_16", "vgg11_bn")])
def test_only_what_is_not_frozen_gets_a_gradient(name):
    size = 224 if "vit" in name else 64
    model = build_model(name, 7)
    images = torch.rand(2, 3, size, size)
    for setting in ("backbone", "1", "none"):
        freezer(model, setting)(0)
        train_mode(model)
        model.zero_grad()
        model(images).sum().backward()
        frozen = frozen_names(model, parse_freeze(setting), 0)
        assert {n for n, p in model.named_parameters() if p.grad is None} == frozen


def test_the_backward_pass_does_not_run_through_a_frozen_backbone():
    model = build_model("small", 7)
    freezer(model, "backbone")(0)
    features = model.features(torch.rand(2, 3, 8, 8))
    assert not features.requires_grad
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        model(torch.rand(2, 3, 8, 8))
    assert sum(tensor.numel() for tensor in saved) <= 2 * 128 + model.classifier.weight.numel()


def test_frozen_batch_norm_keeps_its_statistics_and_trained_batch_norm_does_not():
    model = build_model("resnet18", 7)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    freezer(model, "2")(0)
    train_mode(model)
    model(torch.rand(4, 3, 32, 32))
    moved = {name for name, b in model.named_buffers() if not torch.equal(b, before[name])}
    assert not [name for name in moved if name.startswith(("bn1", "layer1"))]
    assert {"layer2.0.bn1.running_mean", "layer4.1.bn2.running_var"} <= moved


def test_batch_norm_alone_is_frozen_on_request():
    model = build_model("resnet18", 7)
    freezer(model, "batchnorm")(0)
    train_mode(model)
    kinds = {m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert kinds == {False}
    assert model.conv1.training
    assert model.conv1.weight.requires_grad
    assert not model.layer1[0].bn1.weight.requires_grad


def test_dropout_before_the_first_trained_layer_is_off_and_after_it_on():
    model = build_model("mobilenet_v3_small", 7)
    freezer(model, "backbone")(0)
    train_mode(model)
    assert not model.classifier[2].training
    freezer(model, "3")(0)
    train_mode(model)
    assert model.classifier[2].training
    assert not model.features[2].training
    assert model.features[3].training


def test_one_stage_is_thawed_after_another():
    model = build_model("small", 7)
    names = [stage[0] for stage in stages(model)]
    said = []
    prepare = freezer(model, "gradual:2", said.append)
    thawed = []
    for epoch in range(14):
        prepare(epoch)
        thawed.append(sum(model.get_parameter(name).requires_grad for name in names))
    assert thawed == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5]
    assert said[0] == "epoch 1 trains 903 of 279,079 parameters"
    assert len(said) == 5


def test_more_stages_than_there_are_name_how_many_there_are():
    with pytest.raises(UsageError, match="at most the 5 stages"):
        freezer(build_model("small", 7), "6")(0)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_rates_by_depth_are_those_of_timm(name):
    model = build_outline(f"timm/{name}", 7)
    factors = learning_rate_factors(model, layer_decay=0.7)
    groups = param_groups_layer_decay(model, layer_decay=0.7)
    theirs = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        assert factors[parameter_name] == pytest.approx(theirs[id(parameter)])


def test_the_head_learns_fastest():
    model = build_model("small", 7)
    factors = learning_rate_factors(model, layer_decay=0.5, backbone_factor=0.1)
    assert factors["classifier.weight"] == 1
    assert factors["features.6.block.0.weight"] == pytest.approx(0.05)
    assert factors["features.0.0.weight"] == pytest.approx(0.5**5 * 0.1)


def test_a_model_of_ones_own_has_its_children_as_stages():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2)
    )
    assert stages(model) == [["0.weight", "0.bias", "1.weight", "1.bias"], ["3.weight", "3.bias"]]


def test_timm_models_state_their_heads():
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7)
    freezer(model, "backbone")(0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
