"""Which sizes are named where one does not work."""

import numpy as np
import pytest
import torch

from visus.config import make_config
from visus.errors import UsageError
from visus.models.sizes import working_sizes
from visus.training import train


@pytest.mark.parametrize(
    ("name", "near", "expected"),
    [
        ("vit_b_16", (100, 100), [(96, 96), (112, 112)]),
        ("timm/test_vit", (161, 161), [(160, 160), (176, 176)]),
        ("alexnet", (20, 20), [(224, 224)]),
        ("alexnet", (50, 300), [(64, 304)]),
        # Squares are all that it takes.
        ("vit_b_16", (60, 100), [(48, 48), (112, 112)]),
    ],
)
def test_the_nearest_that_work_are_found(name, near, expected):
    assert working_sizes(name, near) == expected


def test_a_run_names_them(tmp_path):
    config = make_config(data="digits", model="vit_b_16", img_size=40, out=str(tmp_path), amp="off")
    with pytest.raises(UsageError, match=r"cannot take images of 40x40 .*such as 32 and 48"):
        train(config)


@pytest.mark.parametrize(
    ("side", "sizes", "layer"),
    [
        ((16, 16), "32", r"features\.transition3\.pool \(AvgPool2d\) was given \[1, 512, 1, 1\] and failed"),
        ((16, 24), "32", r"features\.transition3\.pool \(AvgPool2d\) was given \[1, 512, 1, 1\] and failed"),
    ],
)
def test_a_run_names_the_layer_as_well(tmp_path, side, sizes, layer):
    pixels = np.random.default_rng(0).integers(0, 256, (40, *side), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", images=pixels, labels=np.arange(40) % 2)
    config = make_config(
        data=str(tmp_path / "few.npz"), model="densenet121", out=str(tmp_path / "runs"), amp="off"
    )
    expected = rf"^densenet121 cannot take images of {side[0]}x{side[1]} \({layer}.*such as {sizes}$"
    with pytest.raises(UsageError, match=expected):
        train(config)
    assert not (tmp_path / "runs").exists()


def test_too_little_memory_is_not_a_wrong_size(tmp_path, monkeypatch):
    def forward(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("visus.models.small.SmallNet.forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        train(make_config(data="digits", model="small", out=str(tmp_path)))
