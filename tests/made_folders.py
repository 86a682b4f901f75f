"""Folders of images of noise."""

import numpy as np
from PIL import Image


def make_folder(root, count):
    """`count` images of several sizes in two classes, which differ by how much of them is black; the first one is broken."""
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (40 + number % 7, 50, 3), np.uint8)
        pixels[: 10 * (number % 2 + 1)] = 0
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (root / "a" / "0.png").write_bytes(b"no image")
    return root
