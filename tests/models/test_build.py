import pytest
import torch
import torchvision
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from visus.errors import CheckpointError, UsageError
from visus.models.build import build_model
from visus.models.fitting import load_weights
from visus.models.names import model_names, resolve_model

SAMPLE = [
    "resnet18",
    "squeezenet1_0",
    "mobilenet_v3_small",
    "googlenet",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "timm/resnet10t",
    "timm/mobilenetv3_small_050",
    "small",
    "quick",
    "quick_wide",
]


def answers(model, channels=3, size=96):
    with torch.inference_mode():
        return model.eval()(torch.zeros(2, channels, size, size)).shape


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.parametrize("channels", [1, 3])
def test_models_take_the_classes_and_channels_asked_for(name, channels):
    assert answers(build_model(name, 7, in_channels=channels), channels) == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(torchvision.models.list_models(module=torchvision.models)))
def test_every_model_of_torchvision_has_a_head_for_seven_classes(name):
    with (
        torch.device("meta")
        if not name.startswith(("regnet", "inception", "googlenet"))
        else torch.device("cpu")
    ):
        model = build_model(name, 7)
    heads = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert heads[-1].weight.shape[0] == 7


def test_without_classes_it_is_as_its_library_builds_it():
    ours = sum(p.numel() for p in build_model("googlenet").parameters())
    theirs = sum(p.numel() for p in torchvision.models.googlenet(init_weights=False).parameters())
    assert ours == theirs


def test_torchvision_comes_before_timm():
    assert resolve_model("resnet18") == ("torchvision", "resnet18")
    assert resolve_model("timm/resnet18") == ("timm", "resnet18")
    assert resolve_model("resnet10t") == ("timm", "resnet10t")
    assert len(model_names()) > 1000


@pytest.mark.parametrize("name", ["resnet81", "torchvision/resnet10t", "other/resnet18", ""])
def test_a_mistyped_name_gets_the_nearest(name):
    with pytest.raises(UsageError, match="unknown model"):
        build_model(name, 7)


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_the_small_stem_keeps_small_images_large(name):
    model = build_model(name, 10, stem="small", in_channels=1)
    assert model.conv1.weight.shape == (64, 1, 3, 3)
    assert answers(model, 1, 8) == (2, 10)


def rates(model):
    """The chances to be left out, of the branches of either library that have one."""
    kinds = [(StochasticDepth, "p"), (DropPath, "drop_prob")]
    return [getattr(m, name) for m in model.modules() for kind, name in kinds if isinstance(m, kind)]


@pytest.mark.parametrize("name", ["swin_t", "efficientnet_b0", "timm/resnet10t", "timm/vit_tiny_patch16_224"])
def test_branches_are_left_out_the_deeper_the_likelier(name):
    found = rates(build_model(name, 3, drop_path=0.4))
    assert found == sorted(found)
    assert found[-1] == pytest.approx(0.4)
    assert found[0] < 0.21
    assert not any(rates(build_model(name, 3, drop_path=0.0)))


def test_without_a_rate_it_is_the_library_s_own():
    assert rates(build_model("swin_t", 3)) == rates(torchvision.models.swin_t())
    assert rates(build_model("swin_t", 3, drop_path=0.2)) == pytest.approx(rates(torchvision.models.swin_t()))


def test_images_lose_branches_in_training_and_never_after_it():
    torch.manual_seed(0)
    model = build_model("swin_t", 3, drop_path=0.9)
    images = torch.randn(1, 3, 32, 32).expand(8, -1, -1, -1)
    with torch.no_grad():
        kept, others = model.eval()(images), model.train()(images)
    assert kept.allclose(kept[:1].expand_as(kept), atol=1e-5)
    assert not others.allclose(others[:1].expand_as(others), atol=1e-2)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_is_a_chance_below_one(rate):
    with pytest.raises(UsageError, match="expected drop_path from 0 to less than 1"):
        build_model("swin_t", 3, drop_path=rate)


@pytest.mark.parametrize("name", ["vgg11", "timm/vgg11", "timm/ghostnet_100", "small", "alexnet"])
def test_a_model_without_branches_cannot_leave_any_out(name):
    build_model(name, 3, drop_path=0.0)
    with pytest.raises(UsageError, match=f"branches can be left out, found .*{name.removeprefix('timm/')}"):
        build_model(name, 3, drop_path=0.1)


def test_the_small_stem_is_for_resnets():
    with pytest.raises(UsageError, match="expected a ResNet"):
        build_model("mobilenet_v3_small", 10, stem="small")


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_weights_of_a_file_are_loaded_and_a_head_of_another_size_stays_new(tmp_path, channels):
    source = build_model("resnet18", 12)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "a.pth")
    model = build_model("resnet18", 7, in_channels=channels, weights=tmp_path / "a.pth")
    torch.testing.assert_close(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert model.fc.weight.shape == (7, 512)
    grey = torch.rand(1, 1, 32, 32)
    expected = source.conv1(grey.expand(1, 3, 32, 32))
    torch.testing.assert_close(model.conv1(grey.expand(1, channels, 32, 32)), expected, atol=1e-4, rtol=1e-4)


def test_what_stays_new_is_said():
    tensors = build_model("resnet18", 12).state_dict()
    assert load_weights(build_model("resnet18", 7), tensors, "a.pth") == ["fc.weight", "fc.bias"]
    assert load_weights(build_model("resnet18", 12), tensors, "a.pth") == []


def test_weights_of_another_model_name_the_layers(tmp_path):
    torch.save(build_model("resnet34", 7).state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"a\.pth: the weights are not those of this model: layer1\.0\.conv1"
    ):
        build_model("resnet50", 7, weights=tmp_path / "a.pth")


def test_four_channels_begin_again_with_the_first():
    tensors = build_model("resnet18", 7).state_dict()
    model = build_model("resnet18", 7, in_channels=4)
    load_weights(model, tensors, "a.pth")
    torch.testing.assert_close(model.conv1.weight, tensors["conv1.weight"][:, [0, 1, 2, 0]] * 0.75)


def test_a_deeper_model_of_the_same_family_is_refused():
    with pytest.raises(CheckpointError, match="not in the model"):
        load_weights(build_model("resnet18", 7), build_model("resnet34", 7).state_dict(), "a.pth")


def test_auxiliary_heads_of_a_file_are_left_out():
    tensors = build_model("googlenet").state_dict()
    assert load_weights(build_model("googlenet", 7), tensors, "a.pth") == ["fc.weight", "fc.bias"]


def test_without_a_network_the_file_option_is_named(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(UsageError, match=r"no route to host.*--weights FILE"):
        build_model("resnet18", 7, weights="default")
    with pytest.raises(UsageError, match="has no default weights"):
        build_model("small", 7, weights="default")
