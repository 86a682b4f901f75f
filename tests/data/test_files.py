import numpy as np
import pytest
from PIL import Image

from visus.data.files import FileImages, decode_all
from visus.data.images import Data, Split
from visus.data.keeping import decode_once
from visus.errors import DataError


def a_part(folder, labels, broken=()):
    for place in range(len(labels)):
        if place in broken:
            (folder / f"{place}.png").write_bytes(b"x")
        else:
            Image.new("RGB", (4, 4), (50 * place, 0, 0)).save(folder / f"{place}.png")
    paths = [f"{place}.png" for place in range(len(labels))]
    return Split("train", FileImages(folder, paths), np.array(labels), ("cat", "dog", "owl"), paths)


def test_files_are_read_as_grey_where_asked_for(tmp_path):
    images = a_part(tmp_path, [0, 1]).images
    grey = FileImages(images.root, images.paths, channels=1)
    assert [pixels.shape for pixels in decode_all(grey)] == [(1, 4, 4)] * 2
    assert [pixels.shape for pixels in decode_all(images)] == [(3, 4, 4)] * 2


def test_only_a_class_that_had_images_can_be_lost(tmp_path):
    without_owls = Data("x", ("cat", "dog", "owl"), a_part(tmp_path, [0, 0, 1, 1], broken=[3]))
    decoded = decode_once(without_owls, resize=None, max_bad=0.5, memory_bytes=10**9)
    assert decoded.train.labels.tolist() == [0, 0, 1]
    lost = Data("x", ("cat", "dog", "owl"), a_part(tmp_path, [0, 0, 1, 1], broken=[2, 3]))
    with pytest.raises(DataError, match=r"none that can be used of dog$"):
        decode_once(lost, resize=None, max_bad=0.5, memory_bytes=10**9)


def test_sizes_are_those_of_the_files(tmp_path):
    images = a_part(tmp_path, [0, 1, 2]).images
    (tmp_path / "1.png").unlink()
    sizes = images.sizes_bytes()
    assert sizes.tolist() == [(tmp_path / "0.png").stat().st_size, -1, (tmp_path / "2.png").stat().st_size]


def test_what_was_decoded_once_may_be_decoded_otherwise(tmp_path):
    data = Data("x", ("cat", "dog", "owl"), a_part(tmp_path, [0, 1, 2, 2], broken=[3]))
    once = decode_once(data, resize=None, max_bad=0.5, memory_bytes=10**9)
    again = decode_once(once, resize=2, max_bad=0.5, memory_bytes=10**9)
    assert [pixels.shape for pixels in once.train.images.decoded] == [(3, 4, 4)] * 3
    assert [pixels.shape for pixels in again.train.images.decoded] == [(3, 2, 2)] * 3
