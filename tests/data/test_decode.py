"""Every mode and format gives pixels; everything else gives one reason, quickly."""

import contextlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin

from visus.data import decode
from visus.data.decode import UndecodableError, decode_image, read_image, shrunk_size

COLOURS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
PHOTO = Image.fromarray(COLOURS).resize((80, 60), Image.Resampling.BICUBIC)
FORMATS = ["png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm", "avif"]


def saved(tmp_path, image, kind, **options):
    path = tmp_path / f"a.{kind}"
    image.save(path, kind, **options)
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(tmp_path, kind):
    pixels = decode_image(saved(tmp_path, PHOTO, kind))
    assert (pixels.shape, pixels.dtype) == ((3, 60, 80), np.uint8)
    assert np.abs(pixels.transpose(1, 2, 0).astype(int) - np.asarray(PHOTO)).mean() < 25


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_read(tmp_path, mode, channels):
    grey = PHOTO.convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(np.asarray(grey).astype(np.int32) * 257)
    else:
        image = PHOTO.convert(mode)
    pixels = decode_image(saved(tmp_path, image, "tiff"), channels=channels)
    assert pixels.shape == (channels, 60, 80)
    if mode in ("L", "LA", "I;16", "I", "F"):
        # A float image keeps the fractions that the grey one has lost.
        np.testing.assert_allclose(pixels[0].astype(int), np.asarray(grey), atol=mode == "F")


def test_transparency_is_composed_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert decode_image(saved(tmp_path, image, "png"))[:, 0].T.tolist() == [[255] * 3, [10, 20, 30]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([1, 2, 3, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    path = saved(tmp_path, palette, "gif", transparency=0)
    assert decode_image(path)[:, 0].T.tolist() == [[255] * 3, [10, 20, 30]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, PHOTO, "png", exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode_image(path).transpose(1, 2, 0), expected)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "gif", save_all=True, append_images=frames[1:])
    assert decode_image(path)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_give_what_their_file_gives(tmp_path, kind):
    path = saved(tmp_path, PHOTO, kind)
    np.testing.assert_array_equal(decode_image(path.read_bytes(), resize=20), decode_image(path, resize=20))


def test_bytes_that_are_no_image_give_a_reason_that_is_the_same_each_time():
    for content, reason in ((b"", "0 bytes"), (b"no image", "cannot identify image file$")):
        with pytest.raises(UndecodableError, match=reason):
            decode_image(content)


def test_a_wrong_suffix_does_not_matter(tmp_path):
    PHOTO.save(tmp_path / "a.jpg", "png")
    assert decode_image(tmp_path / "a.jpg").shape == (3, 60, 80)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_it_is_shrunk_as_torchvision_does_and_never_enlarged(tmp_path, interpolation, mode):
    from torchvision.transforms.v2 import functional

    photo = PHOTO.convert(mode)
    path = saved(tmp_path, photo, "png")
    how = functional.InterpolationMode(interpolation)
    pillows = functional.pil_to_tensor(functional.resize(photo, [32], how, antialias=True)).numpy()
    shrunk = decode_image(path, channels=len(photo.getbands()), resize=32, interpolation=interpolation)
    if interpolation == "bilinear":
        torchs = functional.resize(functional.pil_to_tensor(photo), [32], how, antialias=True)
        np.testing.assert_array_equal(shrunk, torchs)
        assert np.abs(shrunk.astype(int) - pillows).max() <= 2
    else:
        np.testing.assert_array_equal(shrunk, pillows)
    assert decode_image(path, resize=100).shape == (3, 60, 80)
    assert shrunk_size(10_000, 1, 1) == (10_000, 1)


def test_only_an_image_of_some_size_is_left_to_whoever_asked():
    for side, left in [(2048, (2048, 2048, 1)), (2049, (32, 32, 1))]:
        file = io.BytesIO()
        Image.linear_gradient("L").resize((side, side)).save(file, "PNG", compress_level=1)
        options = {"channels": 1, "resize": 32, "interpolation": "bilinear"}
        assert read_image(file.getvalue(), **options, max_pixels=10**8).shape == left
        # Both filters see the same gradient.
        found = decode_image(file.getvalue(), **options)[0, :, 0].astype(int)
        np.testing.assert_allclose(np.diff(found[1:-1]), 8, atol=1)


def test_want_of_memory_is_no_fault_of_the_file(tmp_path, monkeypatch):
    def torch_has_none(image, resize):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")

    monkeypatch.setattr(decode, "shrink", torch_has_none)
    with pytest.raises(UndecodableError, match="can't allocate memory") as caught:
        decode_image(saved(tmp_path, PHOTO, "png"), resize=32)
    assert not caught.value.lasting


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    path = saved(tmp_path, Image.new("1", (20_000, 20_000)), "png")
    with pytest.raises(UndecodableError, match="too many pixels"):
        decode_image(path)
    with pytest.raises(UndecodableError, match="80 x 60, the limit is 4,799"):
        decode_image(saved(tmp_path, PHOTO, "png"), max_pixels=4799)
    assert decode_image(saved(tmp_path, PHOTO, "png"), max_pixels=4800).shape == (3, 60, 80)


def test_what_is_no_file_gives_a_reason_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    reasons = {
        "pipe": "not a file",
        "empty.png": "0 bytes",
        "loop": "symbolic links",
        "none": "No such file",
        ".": "not a file",
    }
    for name, reason in reasons.items():
        with pytest.raises(UndecodableError, match=reason):
            decode_image(tmp_path / name)
    with pytest.raises(UndecodableError, match="null"):
        decode_image("a\0b")


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_give_pixels_or_a_reason(tmp_path, kind):
    buffer = io.BytesIO()
    PHOTO.save(buffer, kind)
    whole = buffer.getvalue()
    random = np.random.default_rng(FORMATS.index(kind))
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for place in random.integers(0, len(damaged), size=2):
            damaged[place] = random.integers(256)
        (tmp_path / "a").write_bytes(damaged)
        with contextlib.suppress(UndecodableError):
            refused += 1
            assert decode_image(tmp_path / "a", max_pixels=10**7).ndim == 3
            refused -= 1
    assert refused > 10


def test_decoding_loads_no_torch():
    code = "import sys, visus.data.decode; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )


@pytest.mark.parametrize(("width", "height"), [(259, 195), (129, 400), (326, 325)])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_a_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same(width, height, orientation, interpolation):
    """Beside a decode of every pixel: the same size, and less difference than one grey level on average."""
    low = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    photo = Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=92, exif=exif)
    found = decode_image(buffer.getvalue(), resize=16, interpolation=interpolation)
    whole = ImageOps.exif_transpose(Image.open(buffer))
    target = shrunk_size(*whole.size, 16)
    filters = {"bilinear": 2, "lanczos": 1, "nearest": 0}
    expected = np.asarray(whole.resize(target, filters[interpolation])).transpose(2, 0, 1)
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    assert difference.mean() < 1
    assert difference.max() <= 12
    if interpolation == "nearest":
        assert not difference.any()


def test_only_a_jpeg_of_twice_the_size_is_decoded_at_a_fraction(monkeypatch):
    asked = []
    draft = JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile,
        "draft",
        lambda self, mode, size: draft(self, mode, size) and asked.append(self.size),
    )
    for side, resize in [(256, 64), (255, 64), (512, 64), (127, 64), (128, 64), (2000, None)]:
        buffer = io.BytesIO()
        Image.new("RGB", (side, side)).save(buffer, "JPEG")
        decode_image(buffer.getvalue(), resize=resize)
    assert asked == [(128, 128), (255, 255), (128, 128), (127, 127), (128, 128)]


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0"}])
def test_a_png_with_any_byte_changed_is_refused_or_gives_the_same_pixels(options):
    file = io.BytesIO()
    PHOTO.resize((16, 12)).save(file, "PNG", **options)
    whole, outcomes = file.getvalue(), []
    pixels = decode_image(whole)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        try:
            found = decode_image(bytes(damaged))
        except UndecodableError:
            outcomes.append("refused")
        else:
            np.testing.assert_array_equal(found, pixels)
            outcomes.append("the same")
    assert outcomes.count("refused") > 0.9 * len(whole)


def test_what_follows_the_end_of_a_png_is_not_looked_at(tmp_path):
    path = saved(tmp_path, PHOTO, "png")
    pixels = decode_image(path)
    for more in (b"\0\0\0\1IDATx0000", bytes(3_000_000)):
        np.testing.assert_array_equal(decode_image(path.read_bytes() + more), pixels)


def test_a_png_whose_second_half_is_zeros_is_refused(tmp_path):
    path = saved(tmp_path, PHOTO, "png")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    with pytest.raises(UndecodableError, match="the checksum of its pixels is wrong"):
        decode_image(path)
