"""A head trained on features that were computed once is the head that is trained behind a frozen backbone."""

import numpy as np
import pytest
import torch
from listening import Listening

import visus
from visus.checkpoint import load_checkpoint, rebuild_model
from visus.config import make_config
from visus.models.small import SMALL_NETS, SmallNet
from visus.training import resume, train


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Some of the digits, as a file."""
    data = visus.open_source("digits", val_fraction=0).train
    path = tmp_path_factory.mktemp("few") / "few.npz"
    np.savez(path, images=data.images.pixels[:150, 0].numpy(), labels=data.labels[:150])
    return str(path)


def config(data, tmp_path, name, epochs=2, **options):
    common = {"model": "small", "augment": "none", "batch_size": 40, "amp": "off", "threads": 1, "lr": 0.05}
    return make_config(
        data=data, out=str(tmp_path), name=name, epochs=epochs, freeze="backbone", **{**common, **options}
    )


@pytest.mark.parametrize("options", [{}, {"ema": True, "optimizer": "adamw", "lr": 1e-3, "accumulate": 2}])
def test_both_ways_end_in_the_same_weights_and_scores(few, tmp_path, monkeypatch, options):
    fast = train(config(few, tmp_path, "fast", **options))
    monkeypatch.setattr("visus.training.trains_head_alone", lambda _: False)
    slow = train(config(few, tmp_path, "slow", **options))
    assert fast.best["epoch"] == slow.best["epoch"]
    for which in ("best", "last"):
        ours, theirs = (load_checkpoint(run.checkpoints[which]).tensors for run in (fast, slow))
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-4)
    assert fast.final["loss"] == pytest.approx(slow.final["loss"], rel=1e-4)


@pytest.fixture
def shown(monkeypatch):
    """How many images each pass through the backbone had."""
    shown = []
    forward = SmallNet.forward
    monkeypatch.setattr(SmallNet, "forward", lambda self, x: (shown.append(len(x)), forward(self, x))[1])
    return shown


@pytest.mark.parametrize("epochs", [1, 2, 9])
def test_each_image_goes_through_the_backbone_once_however_many_epochs(few, tmp_path, shown, epochs):
    assert train(config(few, tmp_path, "run", epochs=epochs)).epochs == epochs
    # Once more to try, and at the end for those that the best weights are tested on.
    assert sum(shown) == 150 + 1 + 2 * 4 + 16


def test_the_backbone_runs_once_and_the_best_is_a_whole_model(few, tmp_path, shown):
    display = Listening()
    run = train(config(few, tmp_path, "run", epochs=40, lr=0.5), display=display)
    assert sum(shown) == 150 + 1 + 2 * 4 + 16
    assert [line for line in display.lines if line.startswith("the frozen backbone ran once, on 150 images")]
    model = rebuild_model(load_checkpoint(run.checkpoints["best"]))
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert run.final["accuracy"] > 0.2


def test_it_goes_on_to_the_same_bits(few, tmp_path):
    whole = train(config(few, tmp_path, "whole", 3, schedule="constant"))
    half = train(config(few, tmp_path, "half", 1, schedule="constant"))
    assert resume(half.run, epochs=3).digest == whole.digest


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"augment": "light"}, "augmentation changes the images"),
        ({"mixup": 0.2}, "augmentation changes the images"),
        ({"model": "squeezenet1_1", "img_size": 32}, "its head is not one linear layer"),
    ],
)
def test_where_it_cannot_be_the_reason_is_said(few, tmp_path, options, reason):
    display = Listening()
    train(config(few, tmp_path, "run", epochs=1, **options), display=display)
    assert [
        line
        for line in display.lines
        if line.startswith(f"the frozen backbone runs in every epoch, since {reason}")
    ]


def test_what_is_drawn_at_random_before_the_head_is_found_out(few, tmp_path, monkeypatch):
    class Dropping(SmallNet):
        def forward(self, images):
            features = self.pool(self.features(images)).flatten(1)
            return self.classifier(torch.nn.functional.dropout(features, 0.5, self.training))

    monkeypatch.setitem(SMALL_NETS, "small", Dropping)
    display = Listening()
    train(config(few, tmp_path, "run", epochs=1), display=display)
    assert [line for line in display.lines if "drawn at random before it" in line]


def test_models_get_their_own_forward_back():
    from visus.probing import fed_with_features

    model = SmallNet(3).eval()
    images, features = torch.rand(2, 3, 8, 8), torch.rand(2, 128)
    before = model(images)
    with fed_with_features(model, model):
        torch.testing.assert_close(model(features), model.classifier(features))
    assert torch.equal(model(images), before)
    assert "forward" not in vars(model)
