"""Weights for other classes, channels and sizes, and under other names."""

import pytest
import timm
import torch
from torch import nn

from visus.errors import CheckpointError, UsageError
from visus.models.build import build_model
from visus.models.fitting import load_weights


def saved(model, path):
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "size"), [("timm/test_vit", 96), ("timm/test_efficientnet", 96), ("timm/tresnet_m", 64)]
)
@pytest.mark.parametrize("channels", [1, 6])
@torch.no_grad()
def test_a_grey_image_gets_the_answer_that_it_had_in_colour(tmp_path, name, size, channels):
    if name.endswith("tresnet_m") and channels != 1:
        pytest.skip("space to depth: the library itself adapts it for grey only")
    torch.manual_seed(0)
    source = build_model(name, 7, img_size=size).eval()
    model = build_model(
        name, 7, in_channels=channels, img_size=size, weights=saved(source, tmp_path / "a.pth")
    )
    grey = torch.rand(2, 1, size, size)
    expected = source(grey.expand(2, 3, size, size))
    torch.testing.assert_close(
        model.eval()(grey.expand(2, channels, size, size)), expected, atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_weights_of_a_grey_model_serve_colours(tmp_path):
    source = build_model("small", 7, in_channels=1)
    model = build_model("small", 7, weights=saved(source, tmp_path / "a.pth"))
    grey = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(
        model.eval()(grey.expand(2, 3, 8, 8)), source.eval()(grey), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm/test_vit", 96),
        ("timm/vit_tiny_patch16_224", 64),
        ("timm/swin_tiny_patch4_window7_224", 128),
        ("timm/deit_tiny_distilled_patch16_224", 96),
        ("vit_b_32", 96),
    ],
)
def test_position_embeddings_are_resized(tmp_path, name, size):
    source = build_model(name, 5)
    model = build_model(name, 7, img_size=size, weights=saved(source, tmp_path / "a.pth")).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 3, size, size)).shape == (1, 7)
    kept = dict(source.named_parameters())
    differing = [
        n for n, p in model.named_parameters() if p.shape != kept[n].shape or not torch.equal(p, kept[n])
    ]
    assert all("pos_embed" in n or "position" in n or n.startswith("head") for n in differing)


def test_torchvisions_position_embeddings_are_its_own_interpolation(tmp_path):
    source = build_model("vit_b_32", 5)
    model = build_model("vit_b_32", 5, img_size=128, weights=saved(source, tmp_path / "a.pth"))
    own = source.encoder.pos_embedding.detach()
    grid = own[:, 1:].permute(0, 2, 1).reshape(1, 768, 7, 7)
    resized = nn.functional.interpolate(grid, size=4, mode="bicubic", align_corners=True)
    expected = torch.cat((own[:, :1], resized.reshape(1, 768, 16).permute(0, 2, 1)), 1)
    torch.testing.assert_close(model.encoder.pos_embedding.detach(), expected)
    torch.testing.assert_close(model.conv_proj.weight, source.conv_proj.weight)


def renamed(tensors, rename):
    return {rename(name): tensor for name, tensor in tensors.items() if "num_batches" not in name}


def test_other_names_in_the_same_order_are_taken_and_said():
    source = build_model("resnet18", 12)
    said = []
    tensors = renamed(source.state_dict(), lambda name: f"backbone.{name}")
    model = build_model("resnet18", 7)
    assert set(load_weights(model, tensors, "dir/a.pth", say=said.append)) >= {"fc.weight", "fc.bias"}
    torch.testing.assert_close(model.layer4[1].bn2.running_var, source.layer4[1].bn2.running_var)
    torch.testing.assert_close(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    (sentence,) = said
    assert sentence.startswith("a.pth: names its tensors otherwise")
    assert "backbone.conv1.weight as conv1.weight, ..., backbone.fc.bias as fc.bias" in sentence


def test_other_names_and_other_channels_at_once():
    source = build_model("small", 12)
    model = build_model("small", 7, in_channels=1)
    load_weights(model, renamed(source.state_dict(), lambda name: f"x.{name}"), "a.pth")
    torch.testing.assert_close(model.features[0][0].weight, source.features[0][0].weight.sum(1, keepdim=True))


def test_nothing_is_guessed_where_the_order_kinds_or_shapes_differ():
    tensors = build_model("resnet18", 7).state_dict()
    other = list(renamed(tensors, lambda name: f"x.{name}").items())
    swapped = dict([other[1], other[0], *other[2:]])
    kinds = renamed(tensors, lambda name: f"x.{name}".replace("running_mean", "mean"))
    fewer = dict(other[:-1])
    # Two layers of one shape under each other's names: the order says one thing, the names another.
    crossed = renamed(tensors, lambda n: {"layer1.0.conv1.weight": "layer1.0.conv2.weight"}.get(n, f"x.{n}"))
    for wrong in (swapped, kinds, fewer, crossed):
        with pytest.raises(CheckpointError, match="not those of this model"):
            load_weights(build_model("resnet18", 7), wrong, "a.pth")


def test_in_python_a_guess_is_a_warning(tmp_path):
    tensors = renamed(build_model("small", 7).state_dict(), lambda name: f"x.{name}")
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="taken in their order"):
        build_model("small", 7, weights=tmp_path / "a.pth")


def test_the_small_stem_stays_new_where_the_weights_have_a_large_one(tmp_path):
    source = build_model("resnet18", 12)
    path = saved(source, tmp_path / "a.pth")
    model = build_model("resnet18", 7, stem="small", weights=path)
    assert model.conv1.weight.shape == (64, 3, 3, 3)
    torch.testing.assert_close(model.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
    again = build_model("resnet18", 7, stem="small", weights=saved(model, tmp_path / "b.pth"))
    torch.testing.assert_close(again.conv1.weight, model.conv1.weight)


def test_a_head_of_two_layers_stays_new(tmp_path):
    source = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=12)
    model = build_model("timm/deit_tiny_distilled_patch16_224", 7)
    found = load_weights(model, source.state_dict(), "a.pth")
    assert found == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]


def test_a_name_that_nobody_knows_gets_those_that_are_known():
    with pytest.raises(UsageError, match=r"'IMAGENET1K_V9'; expected one of default, IMAGENET1K_V1"):
        build_model("resnet18", 7, weights="IMAGENET1K_V9")
    with pytest.raises(CheckpointError, match=r"missing\.pth"):
        build_model("resnet18", 7, weights="missing.pth")


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", "IMAGENET1K_V1"),
        ("timm/resnet18", "a1_in1k"),
        ("resnet10t", "hf-hub:timm/resnet10t.c3_in1k"),
    ],
)
def test_without_a_network_the_file_option_is_named(monkeypatch, name, weights):
    def fail(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", fail)
    monkeypatch.setattr("timm.models.load_state_dict_from_hf", fail)
    with pytest.raises(UsageError, match=r"no route to host.*--weights FILE"):
        build_model(name, 7, weights=weights)


def test_a_repository_of_the_hub_gives_weights_and_says_how_images_are_prepared(monkeypatch):
    from visus.models.weights import pretrained_preprocessing

    source = timm.create_model("test_vit", num_classes=9)
    stated = dict(source.pretrained_cfg) | {"mean": (0.1, 0.2, 0.3)}
    monkeypatch.setattr("timm.models.load_state_dict_from_hf", lambda _: source.state_dict())
    monkeypatch.setattr("timm.models.load_model_config_from_hf", lambda _: (stated, "test_vit", {}))
    model = build_model("timm/test_vit", 7, weights="hf-hub:somebody/test_vit")
    torch.testing.assert_close(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert pretrained_preprocessing("timm/test_vit", "hf-hub:somebody/test_vit").mean == (0.1, 0.2, 0.3)
