"""Low-rank adaptation, against its formula and against layers that read their weights themselves."""

import copy

import pytest
import torch
from torch import nn

from visus.models.build import build_model
from visus.models.lora import add_lora, merge_lora, merged

NAMES = ["timm/test_vit", "timm/test_mambaout", "swin_t"]


def perturbed(name, rank=2):
    torch.manual_seed(0)
    model = build_model(name, 7).eval()
    plain = copy.deepcopy(model)
    add_lora(model, rank)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(".up"):
            nn.init.normal_(parameter, std=0.02)
    return plain, model


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_adaptation_is_used_and_merging_changes_nothing(name):
    plain, model = perturbed(name)
    images = torch.rand(2, 3, 160 if "vit" in name else 64, 160 if "vit" in name else 64)
    expected = model(images)
    assert not torch.allclose(plain(images), expected)
    plain.load_state_dict(merged(model.state_dict()))
    assert torch.equal(plain(images), expected)
    merge_lora(model)
    assert list(model.state_dict()) == list(plain.state_dict()) or set(model.state_dict()) == set(
        plain.state_dict()
    )
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_adaptation_and_the_head_get_a_gradient_and_nothing_else(name):
    _, model = perturbed(name)
    size = 160 if "vit" in name else 64
    model(torch.rand(2, 3, size, size)).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        trained = parameter_name.endswith((".up", ".down")) or "parametrizations" not in parameter_name
        assert parameter.requires_grad == (parameter.grad is not None), parameter_name
        if parameter_name.endswith((".up", ".down")):
            assert parameter.grad.abs().sum() > 0, parameter_name
        elif "original" in parameter_name:
            assert parameter.grad is None
        assert trained or parameter.grad is None


def test_the_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    add_lora(model, 3)
    state = model.state_dict()
    prefix = "0.parametrizations.weight"
    assert state[f"{prefix}.0.down"].shape == (3, 6)
    assert state[f"{prefix}.0.up"].shape == (5, 3)
    assert not state[f"{prefix}.0.up"].any()
    nn.init.normal_(model[0].parametrizations.weight[0].up)
    state = model.state_dict()
    expected = state[f"{prefix}.original"] + state[f"{prefix}.0.up"] @ state[f"{prefix}.0.down"]
    assert torch.equal(merged(state)["0.weight"], expected)
    assert [name for name, p in model.named_parameters() if p.requires_grad and name.startswith("1.")] == [
        "1.weight",
        "1.bias",
    ]


def test_torchs_own_attention_is_adapted_in_training_and_in_evaluation():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(16, 3))
    add_lora(model, 2)
    tokens = torch.rand(2, 5, 16)
    before = model.eval()(tokens)
    nn.init.normal_(model[0].self_attn.parametrizations.in_proj_weight[0].up)
    changed = model.eval()(tokens)
    assert not torch.allclose(before, changed)
    torch.testing.assert_close(model.train()(tokens), changed)


def test_other_peoples_parametrisations_stay():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    state = model.state_dict()
    assert merged(state).keys() == state.keys()
    merge_lora(model)
    assert model.state_dict().keys() == state.keys()
