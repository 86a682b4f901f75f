"""The end of decoding: what a whole image is shrunk with."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.backends.cpu import get_cpu_capability

from visus.data.shrinking import resample, shrink

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
BITS = """
import hashlib
import numpy as np
from visus.data.shrinking import shrink

random, digest = np.random.default_rng(0), hashlib.sha256()
for channels in (1, 3):
    for _ in range(20):
        image = random.integers(0, 256, (*random.integers(33, 300, 2), channels), np.uint8)
        digest.update(shrink(image, 32).tobytes())
    image = random.integers(0, 256, (1500, 2000, channels), np.uint8)
    digest.update(shrink(image, 32).tobytes())
print(digest.hexdigest())
"""
THREADS = """
import os
import numpy as np
import torch
from visus.data.crops import mirror, random_resized_crop
from visus.data.normalising import normalise_image_into, row_scales
from visus.data.shrinking import shrink
from visus.preprocessing import Preprocessing

torch.set_num_threads(4)
before, random = len(os.listdir("/proc/self/task")), np.random.default_rng(0)
for height, width in [(500, 375), (256, 256)]:
    for channels in (1, 3):
        image = torch.from_numpy(shrink(random.integers(0, 256, (height, width, channels), np.uint8), 256))
        for _ in range(50):
            crop = mirror(random_resized_crop(image, (224, 224), random.random(40))).numpy()
        record = Preprocessing((224, 224), channels, (0.5,) * channels, (0.2,) * channels)
        place = np.empty((224, 224, channels), np.float32)
        normalise_image_into(place, crop.transpose(1, 2, 0), row_scales(record))
# Of 100 % of the area, and square: as it is.
random_resized_crop(image, (256, 256), np.tile([1.0, 0.5, 0.0, 0.0], 10))
print(len(os.listdir("/proc/self/task")) - before)
image.add(1)
print(len(os.listdir("/proc/self/task")) - before)
"""


def printed(code, **environment):
    """What a process of its own prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return done.stdout


@pytest.mark.parametrize("resize", [None, 70, 71])
def test_an_image_that_is_small_enough_keeps_its_pixels(resize):
    small = shrink(IMAGE, resize)
    np.testing.assert_array_equal(small, IMAGE.transpose(2, 0, 1))
    assert small.transpose(1, 2, 0).flags["C_CONTIGUOUS"]
    assert small.flags["WRITEABLE"]
    assert not np.shares_memory(small, IMAGE)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 41), (90, 70), (200, 31)])
def test_resampling_has_the_bits_of_torch(channels, size):
    image = IMAGE[..., :channels].copy()
    found = resample(image, size)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], size, mode="bilinear", antialias=True
    )
    np.testing.assert_array_equal(found.transpose(2, 0, 1), expected[0].numpy())
    assert found.flags["C_CONTIGUOUS"]


def test_of_an_even_surface_every_pixel_stays():
    np.testing.assert_array_equal(shrink(np.full((90, 70, 3), 201, np.uint8), 32), np.full((3, 41, 32), 201))


def test_memory_that_cannot_be_written_is_taken_without_a_warning(recwarn):
    fixed = IMAGE.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(shrink(fixed, 32), shrink(IMAGE, 32))
    assert not recwarn.list


def test_bits_are_the_same_without_vector_instructions():
    assert printed(BITS) == printed(BITS, ATEN_CPU_CAPABILITY="default")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux shows them")
@pytest.mark.skipif(
    get_cpu_capability() == "DEFAULT", reason="torch has another way without vector instructions"
)
def test_an_image_is_shrunk_and_cropped_without_threads_of_torch():
    """They would spin beside the threads that read, and hold them up."""
    none, some = map(int, printed(THREADS, OMP_NUM_THREADS="4").split())
    assert none == 0
    assert some > 0
