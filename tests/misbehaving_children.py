"""Children that decode and do to a file what its name says: die of it, hang over it, print."""

import numpy as np
from PIL import Image

CHILD = """
import os, re, signal
from visus.data import child
whole = child.read_image

def decode(source, **settings):
    name = os.path.basename(source) if isinstance(source, str) else ""
    if name.startswith("deadly"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("once") and not os.path.exists(source + ".tried"):
        open(source + ".tried", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("greedy"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("leaving"):
        os._exit(7)
    if name.startswith("endless"):
        # In foreign code that keeps the interpreter's lock.
        re.match("(a+)+$", "a" * 60 + "b")
    if name.startswith("stopped"):
        os.kill(os.getpid(), signal.SIGSTOP)
    if name.startswith("babbling"):
        print("a decoder that prints", flush=True)
        os.write(1, b"p" * 1000)
    return whole(source, **settings)

child.read_image = decode
child.main()
"""
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def misbehaving(tmp_path, monkeypatch):
    """A function that makes an image of a name, as PNG, and gives its path."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    monkeypatch.setattr("visus.data.decoder._CHILD", [str(script)])

    def image(name):
        path = tmp_path / f"{name}.png"
        Image.fromarray(PIXELS).save(path)
        return str(path)

    return image
