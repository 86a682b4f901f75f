"""Every image that is odd gives the pixels it means, every file that is none a reason; nothing else ever comes of one."""

import base64
import io
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import visus
from visus.config import make_config
from visus.data import decode, files
from visus.data.decode import DecodeSettings, UndecodableError, decode_image
from visus.data.decoder import Decoder
from visus.data.files import decode_all
from visus.data.keeping import decode_once
from visus.data.sources import open_source
from visus.display import Display
from visus.errors import DataError

FORMATS = ["png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm", "avif"]
LOSSLESS = {"png": {}, "tiff": {}, "bmp": {}, "ppm": {}, "webp": {"lossless": True}}
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
PHOTO = Image.fromarray(COLOURS).resize((80, 60), Image.Resampling.BICUBIC)
DEADLY = """
import os, signal
from visus.data import child
whole = child.read_image

def decode(source, **settings):
    if os.path.basename(source).startswith("deadly"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return whole(source, **settings)

child.read_image = decode
child.main()
"""


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, height, depth, colour, rows, *others):
    """A PNG by the book: `rows` are bytes; `others` chunks that come before the pixels."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *others, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def folder_of(root, contents):
    """Two classes of good images, and `contents` by name among those of the first."""
    for kind in ("a", "b"):
        (root / kind).mkdir(parents=True)
        for number in range(6):
            PHOTO.rotate(number).save(root / kind / f"good{number}.png")
    for name, content in contents.items():
        (root / "a" / name).write_bytes(content)
    return root


def reasons(root, **options):
    data = decode_once(open_source(root), resize=16, max_bad=0.9, memory_bytes=10**9, **options)
    assert len(data.train) + len(data.val) >= 12
    return {Path(each.path).name: each.reason for each in data.skipped}


# What odd images mean


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_any_depth_goes_from_black_to_white(depth):
    top = 2**depth - 1
    values = [0, top, top // 2, 1] if depth > 1 else [0, 1, 1, 0]
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = (
        int(bits, 2).to_bytes(-(-len(bits) // 8), "big")
        if len(bits) >= 8
        else bytes([int(bits, 2) << 8 - len(bits)])
    )
    pixels = decode_image(png(4, 1, depth, 0, [row]), channels=1)
    np.testing.assert_allclose(pixels[0, 0].astype(float), [255 * value / top for value in values], atol=0.5)


def test_colours_of_16_bits_keep_their_upper_eight():
    row = np.array([0x0001, 0x80FF, 0xFFFF, 0x1234, 0x0000, 0xFF00], ">u2").tobytes()
    assert decode_image(png(2, 1, 16, 2, [row]))[:, 0].T.tolist() == [[0, 0x80, 0xFF], [0x12, 0, 0xFF]]


@pytest.mark.parametrize("top", [65535, 2**31 - 1])
def test_whole_numbers_of_32_bits_are_scaled_by_what_they_hold(top):
    values = np.array([[0, top // 4, top]], np.int32)
    assert decode_image(encoded(Image.fromarray(values), "tiff"))[0, 0].tolist() == [0, 64, 255]


def test_floats_may_hold_anything():
    values = np.array([[0, 0.5, np.nan, 1, -np.inf]], np.float32)
    assert decode_image(encoded(Image.fromarray(values), "tiff"))[0, 0].tolist() == [0, 128, 0, 255, 0]
    values = np.array([[0, 51, np.inf]], np.float32)
    assert decode_image(encoded(Image.fromarray(values), "tiff"))[0, 0].tolist() == [0, 51, 255]


@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_ink_is_taken_from_white(kind):
    inks = np.random.default_rng(1).integers(0, 256, 4)
    image = Image.new("CMYK", (16, 16), tuple(inks.tolist()))
    cyan, magenta, yellow, black = inks / 255
    expected = [255 * (1 - ink) * (1 - black) for ink in (cyan, magenta, yellow)]
    pixels = decode_image(encoded(image, kind)).reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(pixels, expected, atol=4)


def test_what_is_transparent_shows_white():
    def over_white(colour, alpha):
        return [round(value * alpha / 255 + 255 - alpha) for value in colour]

    palette = [(10, 20, 30), (200, 100, 0), (0, 0, 255)]
    alphas = [0, 128, 255]
    entries = b"".join(bytes(each) for each in palette)
    indexed = png(3, 1, 8, 3, [bytes([0, 1, 2])], (b"PLTE", entries), (b"tRNS", bytes(alphas)))
    expected = [over_white(colour, alpha) for colour, alpha in zip(palette, alphas, strict=True)]
    np.testing.assert_allclose(decode_image(indexed)[:, 0].T.astype(int), expected, atol=1)
    grey = png(3, 1, 8, 4, [bytes([10, 0, 100, 128, 200, 255])])
    expected = [over_white([value], alpha)[0] for value, alpha in ((10, 0), (100, 128), (200, 255))]
    np.testing.assert_allclose(decode_image(grey, channels=1)[0, 0].astype(int), expected, atol=1)
    named = png(2, 1, 8, 2, [bytes([1, 2, 3, 4, 5, 6])], (b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    assert decode_image(named)[:, 0].T.tolist() == [[255] * 3, [4, 5, 6]]
    bit = png(8, 1, 1, 0, [bytes([0b10101010])], (b"tRNS", struct.pack(">H", 0)))
    assert decode_image(bit)[0, 0].tolist() == [255] * 8


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", TURNS)
def test_images_are_turned_as_their_exif_says(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(PHOTO, kind, exif=exif, **LOSSLESS.get(kind, {"quality": 95}))
    lying = decode_image(encoded(PHOTO, kind, **LOSSLESS.get(kind, {"quality": 95}))).transpose(1, 2, 0)
    expected = TURNS[orientation](lying)
    np.testing.assert_array_equal(decode_image(content).transpose(1, 2, 0), expected)
    assert decode.read_size(content) == expected.shape[:2]


def test_a_palette_is_turned_with_its_transparency():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.putpixel((1, 0), 1)
    pixels = decode_image(encoded(image, "png", exif=exif, transparency=b"\0\xff"))
    assert pixels[:, :, 0].T.tolist() == [[255] * 3, [9, 8, 7]]


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0garbage" * 9])
def test_pixels_that_are_whole_are_worth_more_than_a_broken_exif(exif):
    content = encoded(PHOTO, "jpeg")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    np.testing.assert_array_equal(decode_image(content[:2] + segment + content[2:]), decode_image(content))


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff", "avif"])
def test_of_several_frames_the_first_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    red, green, blue = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))[
        :, 4, 4
    ]
    assert red > 230
    assert max(green, blue) < 25


# What is no image


def test_files_that_are_no_images_are_all_named(tmp_path):
    whole = {kind: encoded(PHOTO.resize((300, 200)), kind) for kind in FORMATS}
    contents = {f"cut {kind}.{kind}": content[: len(content) // 2] for kind, content in whole.items()}
    contents |= {f"begun {kind}.{kind}": content[:20] for kind, content in whole.items()}
    contents |= {
        "empty.png": b"",
        "text.png": b"an image, honestly",
        "archive.jpg": b"PK\x03\x04" + bytes(90),
    }
    contents |= {
        "page.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    }
    root = folder_of(tmp_path / "x", contents)
    (root / "a" / "nowhere.png").symlink_to(root / "none")
    os.mkfifo(root / "a" / "pipe.png")
    found = reasons(root)
    assert set(found) == {*contents, "nowhere.png", "pipe.png"}
    assert all(reason and "\n" not in reason and str(tmp_path) not in reason for reason in found.values())
    assert found["empty.png"] == "expected an image, found 0 bytes"
    assert found["page.png"] == found["text.png"] == "cannot identify image file"
    assert found["nowhere.png"] == "No such file or directory"
    assert found["pipe.png"] == "not a file"


def test_links_in_a_circle_are_named_or_passed_over(tmp_path):
    root = folder_of(tmp_path / "x", {})
    (root / "a" / "up").symlink_to(root)
    data = open_source(root)
    (root / "a" / "good0.png").unlink()
    (root / "a" / "good0.png").symlink_to(root / "a" / "good0.png")
    decoded = decode_once(data, resize=16, max_bad=0.9, memory_bytes=10**9)
    assert [each.reason for each in decoded.skipped] == ["Too many levels of symbolic links"]


def test_names_and_suffixes_do_not_matter(tmp_path):
    names = ["a \udce9\udcff.png", "é 日本.jpg", "new\nline.gif", "-rf.webp", "'\".tif", " .bmp", "A.JPeG"]
    kinds = dict(zip(names, FORMATS[1:], strict=True))
    root = folder_of(tmp_path / "x", {name: encoded(PHOTO, kind) for name, kind in kinds.items()})
    (root / "a" / "broken \udcff.png").write_bytes(b"x")
    assert reasons(root) == {"broken \udcff.png": "cannot identify image file"}
    assert reasons(root, cache="disk") == reasons(root, cache="disk")


def test_bombs_are_refused_before_they_go_off(tmp_path):
    many = 60_000
    bmp = (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, many, many, 1, 24, *[0] * 6)
    )
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02L\x01\0;"
    text = b"comment\0\0" + zlib.compress(bytes(10**8))
    contents = {
        "wide.png": png(many, many, 8, 2, []),
        "true.png": encoded(Image.new("1", (20_000, 20_000)), "png"),
        "wide.bmp": bmp,
        "wide.gif": gif,
        "wide.ppm": b"P6 %d %d 255\n" % (many, many),
        "wide.jpg": encoded(PHOTO, "jpeg").replace(
            struct.pack(">HH", 60, 80), struct.pack(">HH", many, many)
        ),
        "text.png": png(1, 1, 8, 0, [b"\0"], (b"zTXt", text)),
    }
    found = reasons(folder_of(tmp_path / "x", contents))
    assert {name for name, reason in found.items() if "too many pixels" in reason} == set(contents) - {
        "text.png"
    }
    assert "too large" in found["text.png"]


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        (Image.new("1", (20_000, 20_000)), "copy them again, or raise --max-bad or --max-pixels"),
        (None, "copy them again, or raise --max-bad"),
    ],
)
def test_what_to_do_about_too_many_bad_files_is_said(tmp_path, image, advice):
    root = folder_of(tmp_path / "x", {"bad.png": encoded(image, "png") if image else b""})
    with pytest.raises(DataError, match=f"{advice}$"):
        decode_once(open_source(root), resize=16, max_bad=0.01, memory_bytes=10**9)


def test_a_file_that_cannot_be_opened_is_named_and_not_for_ever(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "x", {"secret.png": encoded(PHOTO, "png")})
    access = os.access
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "access", lambda path, how: "secret" not in str(path) and access(path, how))
        assert reasons(root, cache="disk") == {"secret.png": "Permission denied"}
    assert reasons(root, cache="disk") == {}


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "x"), OSError(5, "Input/output error")]
)
def test_what_the_system_refuses_may_be_fine_later(tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    (tmp_path / "a.png").write_bytes(encoded(PHOTO, "png"))
    monkeypatch.setattr(decode.Image, "open", refuse)
    with pytest.raises(UndecodableError, match=f"^{error.strerror}$") as found:
        decode_image(tmp_path / "a.png")
    assert not found.value.lasting


def test_files_may_vanish_at_any_time(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "x", {name: encoded(PHOTO, "png") for name in ("early.png", "late.png")})
    data = open_source(root)
    (root / "a" / "early.png").unlink()
    ask = Decoder.decode_all

    def vanish(self, sources):
        for source in sources:
            if source.endswith("late.png"):
                Path(source).unlink()
        return ask(self, sources)

    monkeypatch.setattr(Decoder, "decode_all", vanish)
    decoded = decode_once(data, resize=16, max_bad=0.9, memory_bytes=10**9, cache="disk")
    assert {(Path(each.path).name, each.reason) for each in decoded.skipped} == {
        ("early.png", "No such file or directory"),
        ("late.png", "No such file or directory"),
    }
    assert len(decoded.train) + len(decoded.val) == 12


# What kills a decoder


def test_a_decoder_that_dies_takes_no_run_with_it(tmp_path, monkeypatch):
    contents = {f"deadly{number}.png": encoded(PHOTO, "png") for number in range(2)}
    root = folder_of(tmp_path / "x", contents | {"cut.jpg": encoded(PHOTO, "jpeg")[:300]})
    (tmp_path / "child.py").write_text(DEADLY)
    monkeypatch.setattr("visus.data.decoder._CHILD", [str(tmp_path / "child.py")])
    shown = io.StringIO()
    options = {"model": "small", "img_size": 12, "augment": "standard", "epochs": 1, "batch_size": 4}
    config = make_config(
        data=str(root), threads=1, amp="off", max_bad=0.5, cache="disk", out=str(tmp_path / "runs"), **options
    )
    run = visus.train(config, display=Display(shown))
    assert run.skipped == 3
    for number in range(2):
        assert f"skipped a/deadly{number}.png: the decoder dies of it (SIGSEGV)" in shown.getvalue()
    # The second run names them without giving them another chance to kill.
    monkeypatch.setattr("visus.data.decoder._CHILD", ["-c", "raise SystemExit"])
    monkeypatch.setattr("visus.preparing.small_size", lambda *_: None)
    assert visus.train(config).digest == run.digest
    monkeypatch.setattr("visus.data.decoder._CHILD", [str(tmp_path / "child.py")])
    checkpoint = visus.load_checkpoint(Path(run.checkpoints["best"]))
    paths = [str(root / "a" / name) for name in ("good0.png", "deadly0.png", "good1.png")]
    errors = [each.error for each in visus.predict_files(checkpoint, paths)]
    assert errors == [None, "the decoder dies of it (SIGSEGV)", None]


DEADLY_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAAAAACMmsGiAAAAEklEQVSaEIau/tLSN2VjAWQF4yaLqngKwKifAAAAAElFTkSuQmCC"
)
"""4x4, whole but for the first bytes of its compressed pixels; torchvision 0.29.2 dies of it, for what libpng throws."""
WITH_TORCHVISION = """
import base64, sys, torch
from torchvision.io import decode_image
decode_image(torch.frombuffer(bytearray(base64.b64decode(sys.argv[1])), dtype=torch.uint8))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="depends on how torchvision was built")
def test_torchvision_dies_of_that_png():
    command = [sys.executable, "-c", WITH_TORCHVISION, base64.b64encode(DEADLY_PNG)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGSEGV


def test_a_png_that_torchvision_dies_of_is_an_error_like_any(tmp_path):
    root = folder_of(tmp_path / "x", {"deadly.png": DEADLY_PNG})
    found = decode_once(open_source(root), resize=16, max_bad=0.5, memory_bytes=10**9, cache="ram")
    assert [each.path for each in found.skipped] == ["a/deadly.png"]
    reason = found.skipped[0].reason
    assert "dies" not in reason
    with pytest.raises(UndecodableError) as here:
        decode_image(str(root / "a" / "deadly.png"))
    assert str(here.value) == reason


# What nobody has thought of


def mutated(content, random):
    """`content` with some of it changed, cut off, doubled or blanked."""
    changed = bytearray(content)
    for _ in range(random.integers(1, 5)):
        if len(changed) < 2:
            break
        begin = int(random.integers(len(changed)) * random.random())
        end = begin + int(random.integers(1, 33))
        piece = changed[begin:end]
        match random.integers(6):
            case 0:
                changed[begin] ^= 1 << int(random.integers(8))
            case 1:
                changed[begin:end] = random.integers(0, 256, len(piece), np.uint8).tobytes()
            case 2:
                changed[begin:end] = bytes([int(random.choice([0, 255]))]) * len(piece)
            case 3:
                changed[begin:begin] = piece * int(random.integers(1, 4))
            case 4:
                del changed[begin:end]
            case 5 if random.random() < 0.3:
                del changed[begin:]
    return bytes(changed)


def originals(kind):
    """Images of `kind` in its several ways of writing one."""
    images = [PHOTO, PHOTO.convert("L")]
    if kind in ("png", "gif", "tiff", "webp", "avif"):
        images.append(PHOTO.convert("P" if kind in ("gif", "tiff") else "RGBA"))
    written = [encoded(image, kind) for image in images]
    if kind in ("gif", "webp", "tiff", "png", "avif"):
        written.append(encoded(PHOTO, kind, save_all=True, append_images=[PHOTO.rotate(9), PHOTO.rotate(99)]))
    if kind == "tiff":
        written += [
            encoded(PHOTO, kind, compression=way)
            for way in ("jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits")
        ]
        written.append(encoded(PHOTO.convert("1"), kind, compression="group4"))
    if kind == "jpeg":
        written += [encoded(PHOTO, kind, progressive=True), encoded(PHOTO.convert("CMYK"), kind)]
    return written


def fuzz(kind, cases):
    settings = DecodeSettings(max_pixels=10**6)
    written = originals(kind)
    outcomes = []
    with Decoder(settings, seconds=30) as decoder:
        for case in cases:
            random = np.random.default_rng([FORMATS.index(kind), case])
            content = mutated(written[case % len(written)], random)
            try:
                pixels = decoder.decode(content)
            except UndecodableError as error:
                outcomes.append(str(error) or pytest.fail("no reason"))
            else:
                assert (pixels.ndim, pixels.shape[0], pixels.dtype) == (3, 3, np.uint8)
                assert 0 < pixels.size <= 3 * 10**6
                outcomes.append("")
    return outcomes


@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_files_give_an_image_or_a_reason(kind):
    outcomes = fuzz(kind, range(25))
    assert len(outcomes) == 25
    assert any(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_two_thousand_mutated_files_give_an_image_or_a_reason(kind):
    outcomes = fuzz(kind, range(250))
    assert len(outcomes) == 250
    assert any(outcomes)


def test_good_files_among_them_are_all_read(tmp_path):
    root = folder_of(tmp_path / "x", {f"{kind}.{kind}": encoded(PHOTO, kind) for kind in FORMATS})
    (images,) = {id(part.images): part.images for part in (open_source(root, val_fraction=0).train,)}.values()
    assert {each.shape for each in decode_all(images)} == {(3, 60, 80)}
