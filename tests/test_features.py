import numpy as np
import pytest
import torch
from torch import nn

from visus.data.batching import EvaluationBatches, measure_preprocessing
from visus.data.sources import open_source
from visus.errors import DataError, UsageError
from visus.features import Embedder, embed
from visus.inference import predict_logits
from visus.models.build import build_model

MODELS = {
    "small": (32, lambda model: model.classifier),
    "quick": (32, lambda model: model.classifier),
    "torchvision/resnet18": (32, lambda model: model.fc),
    "torchvision/mobilenet_v3_small": (32, lambda model: model.classifier[-1]),
    "torchvision/googlenet": (64, lambda model: model.fc),
    "timm/resnetv2_18": (32, lambda model: model.head.fc),
    "timm/vit_tiny_patch16_224": (224, lambda model: model.head),
    "timm/convnext_atto": (32, lambda model: model.head.fc),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_classifier_makes_the_logits_of_the_features(name):
    size, classifier = MODELS[name]
    torch.manual_seed(0)
    model = build_model(name, 7)
    batches = [(torch.randn(2, 3, size, size), torch.tensor([0, 1])), (torch.randn(1, 3, size, size),) * 2]
    features = torch.from_numpy(embed(model, batches))
    expected = torch.cat([logits for logits, _ in predict_logits(model, batches)])
    layer = classifier(model)
    with torch.no_grad():
        found = (
            layer(features[:, :, None, None]).flatten(1) if isinstance(layer, nn.Conv2d) else layer(features)
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_a_squeezenet_gives_its_classifier_is_averaged_over_its_places():
    model = build_model("squeezenet1_1", 7).eval()
    images = torch.randn(2, 3, 64, 64)
    found = embed(model, [(images, torch.zeros(2))])
    with torch.no_grad():
        expected = model.features(images).mean(dim=(2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_of_tokens_the_features_are_averaged():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images):
            return self.head(images.flatten(2).transpose(1, 2)).mean(dim=1)

    images = torch.randn(4, 3, 2, 2)
    np.testing.assert_allclose(embed(Tokens(), [(images, images)]), images.mean(dim=(2, 3)), rtol=1e-5)


def test_the_layer_that_runs_last_counts_and_not_the_one_that_was_made_last():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 2)
            self.body = nn.Linear(3, 5)

        def forward(self, images):
            return self.head(self.body(images))

    model, rows = Reversed(), torch.randn(4, 3)
    with torch.no_grad():
        np.testing.assert_allclose(embed(model, [(rows, rows)]), model.body(rows).numpy(), rtol=1e-5)


def test_features_do_not_depend_on_the_batches_and_leave_the_model_as_it_was():
    train = open_source("digits").train.subset(np.arange(50))
    record = measure_preprocessing(train)
    model = build_model("small", 10, in_channels=1)
    model.pool.eval()
    found = [embed(model, EvaluationBatches(train, record, size)) for size in (7, 50)]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
    assert found[0].shape == (50, 128)
    assert found[0].dtype == np.float32
    assert model.training
    assert not model.pool.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_no_images_and_no_layer_are_refused():
    with pytest.raises(DataError, match="found none"):
        embed(nn.Linear(2, 2), [])
    with pytest.raises(UsageError, match="found none in Flatten"):
        embed(nn.Flatten(), [(torch.zeros(1, 2), torch.zeros(1))])


def test_hooks_go_when_the_model_fails():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError):
        Embedder(model)(torch.zeros(1, 3))
    assert not model[0]._forward_pre_hooks
