"""Sizes that a model cannot take are refused before files are decoded."""

import pytest
import torch
from made_folders import make_folder

from visus import trying
from visus.config import make_config
from visus.data.decoder import Decoder
from visus.errors import UsageError
from visus.models.sizes import takes_size
from visus.training import train
from visus.trying import check_size


def test_a_wrong_size_is_refused_before_files_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Decoder, "decode_all", lambda *_: pytest.fail("decoded"))
    data = make_folder(tmp_path / "images", 12)
    config = make_config(data=str(data), model="densenet121", img_size=16, out=str(tmp_path / "runs"))
    with pytest.raises(
        UsageError, match=r"cannot take images of 16x16 \(features\.transition3\.pool .* such as 32$"
    ):
        train(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "size", "img_size", "takes"),
    [
        ("vit_b_16", (48, 48), 48, True),
        ("vit_b_16", (48, 48), None, False),
        ("vit_b_16", (40, 40), 40, False),
        ("resnet18", (20, 31), None, True),
        ("alexnet", (20, 20), 20, False),
    ],
)
def test_an_outline_tells_what_the_model_does(name, size, img_size, takes):
    assert takes_size(name, size, 3, img_size) is takes
    if takes:
        check_size(name, size, 3, img_size=img_size, stem=None)
    else:
        with pytest.raises(UsageError, match=f"{name} cannot take images of {size[0]}x{size[1]}"):
            check_size(name, size, 3, img_size=img_size, stem=None)


@pytest.mark.parametrize("has_outline", [True, False])
def test_a_model_that_has_no_outline_is_tried_itself_and_random_numbers_stay(monkeypatch, has_outline):
    if not has_outline:
        monkeypatch.setattr(trying, "takes_size", lambda *_: False)
    before = torch.get_rng_state()
    check_size("small", (32, 32), 3, img_size=None, stem=None)
    assert torch.equal(torch.get_rng_state(), before)


def test_too_little_memory_is_not_a_wrong_size(monkeypatch):
    def forward(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("visus.models.small.SmallNet.forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        check_size("small", (32, 32), 3, img_size=None, stem=None)
