"""A new head for every architecture of both libraries: logits of so many classes, and nothing else is another than before."""

import warnings

import pytest
import timm
import torch

from visus.models.adapt import stages
from visus.models.build import build_model
from visus.models.heads import head_layers
from visus.models.hollow import build_outline, fake_mode, hollow_copy
from visus.models.names import timm_names, torchvision_names

NAMES = [f"torchvision/{n}" for n in sorted(torchvision_names())] + [
    f"timm/{n}" for n in sorted(timm_names())
]
# One of each kind of head: linear, convolution, hidden layers, two of them, none in the library, and models that say no stages.
SAMPLE = [
    "torchvision/googlenet",
    "torchvision/squeezenet1_1",
    "torchvision/vit_b_32",
    "torchvision/maxvit_t",
    "timm/convformer_s18",
    "timm/pit_ti_distilled_224",
    "timm/levit_384_s8",
    "timm/deit_tiny_distilled_patch16_224",
    "timm/qwen3_vit_88m_enc",
    "timm/mobilenetv5_300m_enc",
    "timm/csatv2",
    "timm/naflexvit_base_patch16_gap",
    "timm/mobilenetv3_small_050",
]
# Classifiers that only a training recipe of their own uses.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_all_names(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SAMPLE)))
def test_every_name(name):
    check(name)


def check(name):
    model, original = build_outline(name, 7), build_outline(name)
    head = tuple(f"{layer}." for layer in head_layers(model))
    shapes, before = shapes_but(model, head), shapes_but(original, (*head, *AUXILIARY))
    assert shapes == before
    assert [p.shape[0] for n, p in model.named_parameters() if n.startswith(head)].count(7) >= len(head)
    assert logits_of(model).shape == (2, 7)
    found = [parameter for stage in stages(model) for parameter in stage]
    assert sorted(found) == sorted(n for n, _ in model.named_parameters() if not n.startswith(head))
    assert len(stages(model)) >= 3


def shapes_but(model, prefixes):
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.shape for name, tensor in named if not name.startswith(prefixes)}


def logits_of(model):
    size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    with warnings.catch_warnings(), fake_mode(), torch.no_grad():
        warnings.simplefilter("ignore")
        return hollow_copy(model).eval()(torch.zeros(2, *size))


def test_an_encoder_without_a_head_gets_one_over_the_mean_of_its_outputs():
    torch.manual_seed(0)
    model = build_model("timm/qwen3_vit_88m_enc", 3, img_size=64).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        found = model(images)
        model._forward_hooks.clear()
        expected = model.head(model(images).mean(1))
    torch.testing.assert_close(found, expected)


def test_heads_are_what_differs_between_two_numbers_of_classes():
    model, other = (
        timm.create_model("convformer_s18", num_classes=3),
        timm.create_model("convformer_s18", num_classes=4),
    )
    differing = {
        name
        for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True)
        if a.shape != b.shape
    }
    assert differing == {f"{layer}.{part}" for layer in head_layers(model) for part in ("weight", "bias")}
