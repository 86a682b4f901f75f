"""What weights say about the images they expect."""

import numpy as np
import pytest
import torch

import visus
from visus.checkpoint import load_checkpoint
from visus.models.weights import pretrained_preprocessing
from visus.preprocessing import Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ("name", "size", "resize", "interpolation", "statistics"),
    [
        ("resnet18", 224, 256, "bilinear", IMAGENET),
        ("inception_v3", 299, 342, "bilinear", {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
        ("vit_b_16", 224, 256, "bilinear", IMAGENET),
        ("swin_t", 224, 232, "bicubic", IMAGENET),
        ("timm/resnet50", 224, 235, "bicubic", IMAGENET),
        ("tf_efficientnet_lite0", 224, 256, "bicubic", {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
    ],
)
def test_a_librarys_weights_are_used_as_it_states(name, size, resize, interpolation, statistics):
    found = pretrained_preprocessing(name, "default")
    assert found == Preprocessing((size, size), 3, **statistics, resize=resize, interpolation=interpolation)


def test_the_small_net_has_no_weights_to_say_anything():
    assert pretrained_preprocessing("small", "some.pth") is None


def test_grey_gets_the_averages_of_the_colours():
    grey = pretrained_preprocessing("resnet18", "default").for_channels(1)
    assert grey.mean == pytest.approx((np.mean(IMAGENET["mean"]),))
    assert grey.std == pytest.approx((np.mean(IMAGENET["std"]),))
    assert (grey.size, grey.resize) == ((224, 224), 256)


def test_training_from_a_checkpoint_keeps_its_statistics_and_gains_from_it(tmp_path):
    data = visus.open_source("digits", val_fraction=0)
    pixels, labels = data.train.images.pixels[:, 0].numpy(), data.train.labels
    few = {"images": pixels[:200] // 2, "labels": labels[:200]}
    np.savez(tmp_path / "many.npz", images=pixels, labels=labels)
    np.savez(tmp_path / "few.npz", **few)
    options = {"model": "small", "augment": "none", "batch_size": 50, "lr": 0.05, "amp": "off", "threads": 1}
    first = visus.train(
        visus.TrainConfig(data=str(tmp_path / "many.npz"), epochs=3, out=str(tmp_path), **options)
    )
    best = first.checkpoints["best"]

    def second(**more):
        config = visus.TrainConfig(
            data=str(tmp_path / "few.npz"), epochs=1, out=str(tmp_path), **options, **more
        )
        return visus.train(config)

    warm, cold = second(weights=best), second()
    record = load_checkpoint(warm.checkpoints["best"]).preprocessing
    assert record == load_checkpoint(best).preprocessing
    assert record != load_checkpoint(cold.checkpoints["best"]).preprocessing
    assert warm.best["accuracy"] > cold.best["accuracy"] + 0.3
    assert torch.is_tensor(load_checkpoint(best).model_tensors["classifier.weight"])
