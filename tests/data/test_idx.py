import gzip

import numpy as np
import pytest

from visus.data.idx import read_idx
from visus.data.sources import open_source
from visus.errors import DataError

IMAGES = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx(tmp_path, pack):
    (tmp_path / "a").write_bytes(pack(idx(IMAGES)))
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), IMAGES)


@pytest.mark.parametrize("cut", [0, 3, 10, 40, -1])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_truncated_idx_file_is_named(tmp_path, pack, cut):
    (tmp_path / "a-idx3").write_bytes(pack(idx(IMAGES))[:cut])
    with pytest.raises(DataError, match="a-idx3"):
        read_idx(tmp_path / "a-idx3")


def test_images_and_labels_of_different_number_are_named(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(3)))
    with pytest.raises(
        DataError, match="images-idx3-ubyte and train-labels-idx1-ubyte: expected 4 labels for 4 images"
    ):
        open_source(tmp_path)
