import numpy as np
import pytest
import torch
from PIL import Image

from visus.checkpoint import load_checkpoint
from visus.cli import app
from visus.config import make_config
from visus.errors import UsageError
from visus.overlays import overlay, write_overlays
from visus.preprocessing import Preprocessing
from visus.training import train


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    settings = {"data": "digits", "model": "small", "epochs": 1, "device": "cpu", "out": str(out)}
    return train(make_config(**settings)).checkpoints["best"]


@pytest.fixture
def files(tmp_path):
    """Two images of one name in two folders, and a file that is none."""
    rows = np.arange(64, dtype=np.uint8).reshape(8, 8)
    paths = [tmp_path / "a" / "seven.png", tmp_path / "b" / "seven.png", tmp_path / "broken.png"]
    for path in paths[:2]:
        path.parent.mkdir()
        Image.fromarray(4 * rows).save(path)
    paths[2].write_bytes(b"no image")
    return [str(paths[0]), str(paths[2]), str(paths[1])]


def test_each_file_that_can_be_decoded_has_a_picture(best, files, tmp_path):
    written = write_overlays(load_checkpoint(best), files, tmp_path / "new" / "maps", device="cpu")
    assert [path.name for path in written] == ["0001-seven.png", "0003-seven.png"]
    first, second = (np.asarray(Image.open(path)) for path in written)
    assert first.shape == (160, 320, 3)
    # The left half is the image, each of its pixels 20 times as wide and high.
    expected = 4 * np.arange(64).reshape(8, 8).repeat(20, axis=0).repeat(20, axis=1)
    np.testing.assert_allclose(first[:, :160].astype(int), expected[:, :, None].repeat(3, axis=2), atol=1)
    np.testing.assert_array_equal(first, second)
    assert sorted(path.name for path in (tmp_path / "new" / "maps").iterdir()) == [
        each.name for each in written
    ]


def test_where_nothing_speaks_for_the_class_the_image_is_grey():
    record = Preprocessing((2, 2), 3, (0.5,) * 3, (0.5,) * 3)
    image = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 2, 2)
    picture = overlay(image, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), record)
    assert picture[0, 0].tolist() == [255, 0, 0]
    assert picture[0, 160].tolist() == [85, 85, 85]
    assert picture[-1, -1, 0] > picture[-1, -1, 2] + 40


def test_a_file_in_the_place_of_the_folder_is_refused(best, files):
    with pytest.raises(UsageError, match="expected a folder to write pictures to"):
        write_overlays(load_checkpoint(best), files, files[0], device="cpu")


def test_the_command_writes_them(best, files, tmp_path, capsys):
    arguments = ["predict", str(best), *files, "--explain", str(tmp_path / "maps"), "--device", "cpu"]
    assert app(arguments, standalone_mode=False) == 1
    assert len(list((tmp_path / "maps").glob("*.png"))) == 2
    assert capsys.readouterr().out.count("seven.png") == 2
