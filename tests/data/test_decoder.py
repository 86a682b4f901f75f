"""A child process that decodes: what it answers, and what happens when it does not."""

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from misbehaving_children import PIXELS, misbehaving
from PIL import Image

from visus.data.decode import DecodeSettings, UndecodableError, decode_image
from visus.data.decoder import Decoder
from visus.errors import VisusError


@pytest.fixture
def child(tmp_path, monkeypatch):
    return misbehaving(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "settings", [DecodeSettings(), DecodeSettings(1, 16, "bicubic"), DecodeSettings(3, 16, "lanczos", 2000)]
)
def test_a_child_gives_what_this_process_gives(tmp_path, settings):
    path = tmp_path / "é \udcff.png"
    Image.fromarray(PIXELS).save(path)
    with Decoder(settings) as decoder:
        for source in (str(path), path.read_bytes()):
            expected = decode_image(source, **vars(settings))
            np.testing.assert_array_equal(decoder.decode(source), expected)
            assert decoder.size(source) == (40, 50)


def test_reasons_are_those_of_this_process(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    sources = [str(tmp_path / "a.png"), str(tmp_path / "none.png"), b"", "a\0b"]
    with Decoder(DecodeSettings()) as decoder:
        for source in sources:
            with pytest.raises(UndecodableError) as here:
                decode_image(source)
            with pytest.raises(UndecodableError) as there:
                decoder.decode(source)
            assert (str(there.value), there.value.lasting) == (str(here.value), here.value.lasting)
            with pytest.raises(UndecodableError):
                decoder.size(source)


def test_a_child_that_dies_or_hangs_names_its_file_and_no_other(child):
    names = ["a", "deadly", "b", "leaving", "endless", "greedy", "c"]
    reasons = {}
    with Decoder(DecodeSettings(), seconds=1) as decoder:
        for name in names:
            try:
                np.testing.assert_array_equal(decoder.decode(child(name)), PIXELS.transpose(2, 0, 1))
            except UndecodableError as error:
                reasons[name] = (str(error), error.lasting)
    assert reasons == {
        "deadly": ("the decoder dies of it (SIGSEGV)", True),
        "leaving": ("the decoder dies of it (exit code 7)", True),
        "endless": ("decoding takes longer than 1 s", True),
        "greedy": ("the decoder dies of it (SIGKILL)", False),
    }


def test_a_child_that_is_stopped_holds_nobody_up(child, monkeypatch):
    monkeypatch.setattr("visus.data.decoder._GRACE_SECONDS", 0.5)
    with Decoder(DecodeSettings(), seconds=2) as decoder:
        with pytest.raises(UndecodableError, match="longer than 2 s"):
            decoder.decode(child("stopped"))
        assert decoder.decode(child("a")).shape == (3, 40, 50)


def test_a_file_whose_child_was_killed_gets_another(child):
    with Decoder(DecodeSettings()) as decoder:
        assert decoder.decode(child("once")).shape == (3, 40, 50)


def test_what_decoders_print_is_no_answer(child):
    with Decoder(DecodeSettings()) as decoder:
        np.testing.assert_array_equal(decoder.decode(child("babbling")), PIXELS.transpose(2, 0, 1))


def test_a_child_that_cannot_start_is_said(monkeypatch, capfd):
    monkeypatch.setattr("visus.data.decoder._CHILD", ["-c", "raise SystemExit(5)"])
    with Decoder(DecodeSettings()) as decoder, pytest.raises(VisusError, match="ends with 5"):
        decoder.decode(b"x")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with Decoder(DecodeSettings()) as decoder, pytest.raises(VisusError, match="found none: No such file"):
        decoder.decode(b"x")


HUGE = struct.pack("<4Q", 0, 20_000, 20_000, 3)
NOWHERE = struct.pack("<4Q", 2**64 - 1, 10, 10, 3)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"p",
        b"p" + bytes(8) + b"\xff" * 32,
        b"m" + bytes(8) + HUGE,
        b"m" + bytes(8) + NOWHERE,
        b"s" + b"\xff" * 8,
        b"?" * 40,
    ],
)
def test_an_answer_that_makes_no_sense_is_a_reason(monkeypatch, answer):
    code = f"import sys; sys.stdin.buffer.read(1); sys.stdout.buffer.write({answer!r})"
    ready = "import sys; sys.stdout.buffer.write(b'r'); sys.stdout.flush();" + code
    monkeypatch.setattr("visus.data.decoder._CHILD", ["-c", ready])
    with (
        Decoder(DecodeSettings()) as decoder,
        pytest.raises(UndecodableError, match=r"dies of it|is no image"),
    ):
        decoder.decode(b"x" * 100)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_children_end_with_their_parent(tmp_path):
    code = (
        "import os, signal, sys\nfrom visus.data.decode import DecodeSettings\nfrom visus.data.decoder import Decoder\n"
        "decoder = Decoder(DecodeSettings())\n"
        "try: decoder.size(b'x')\nexcept Exception: pass\n"
        "print(decoder._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    # The child holds this pipe as its own stderr until it is ready only, so the output ends with the parent.
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    pid = int(done.stdout)
    # An end that is waited for, not timed: its descriptor is readable once it is gone.
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select

    assert select.select([descriptor], [], [], 60)[0]
    os.close(descriptor)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at open files in /proc")
def test_children_hold_no_file_or_socket_of_their_parent(tmp_path):
    with (
        (tmp_path / "run.lock").open("w") as lock,
        socket.socket() as connection,
        Decoder(DecodeSettings()) as decoder,
    ):
        # As gloo's are: libraries in C seldom say that a descriptor is not for children.
        for each in (lock, connection):
            os.set_inheritable(each.fileno(), True)
        with pytest.raises(UndecodableError):
            decoder.decode(b"x")
        folder = Path(f"/proc/{decoder._process.pid}/fd")
        held = {str(each.readlink()) for each in folder.iterdir()}
    assert {each.partition(":")[0] for each in held} <= {os.devnull, "pipe", "/memfd"}


@pytest.mark.parametrize("how", ["shared", "no such memory", "not allowed"])
def test_pixels_come_through_shared_memory_where_there_is_any(tmp_path, monkeypatch, how):
    if how == "no such memory":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    if how == "not allowed":
        monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    paths = [tmp_path / f"{side}.png" for side in (30, 90, 2100)]
    for number, path in enumerate(paths):
        side = int(path.stem)
        pixels = np.random.default_rng(number).integers(0, 256, (side, side + 5, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    # The last one takes more than there is to share, since it is not shrunk.
    for resize in (20, None):
        settings = DecodeSettings(resize=resize)
        with Decoder(settings) as decoder:
            found = [decoder.decode(str(path)) for path in paths]
            assert (decoder._shared is not None) == (how == "shared" and hasattr(os, "memfd_create"))
        # What came first is not written over by what came later.
        for path, pixels in zip(paths, found, strict=True):
            np.testing.assert_array_equal(pixels, decode_image(path, resize=resize))


def refuse(*_):
    raise PermissionError


def test_children_load_no_torch():
    code = "import sys, visus.data.isolated, visus.data.cache; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_child_whose_answer_finds_no_memory_is_replaced(child, monkeypatch):
    def has_none(decoder, answers, shared):
        raise MemoryError

    paths = [child(name) for name in ("a", "b")]
    with Decoder(DecodeSettings(resize=10)) as decoder:
        with monkeypatch.context() as patched:
            patched.setattr(Decoder, "_read_pixels", has_none)
            with pytest.raises(UndecodableError, match="no memory is left") as caught:
                decoder.decode(paths[0])
        assert not caught.value.lasting
        assert decoder.decode(paths[1]).shape == (3, 10, 12)


@pytest.mark.parametrize("how", ["shared", "no such memory"])
def test_files_asked_for_together_are_what_each_is_alone(child, monkeypatch, how):
    if how == "no such memory":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    names = ["a", "deadly", "b", "leaving", "none", "greedy", "once", "babbling"]
    paths = [child(name) for name in names]
    Path(paths[4]).unlink()
    with Decoder(DecodeSettings(resize=10)) as decoder:
        found = decoder.decode_all([*paths, Path(paths[0]).read_bytes()])
    whole = decode_image(paths[0], resize=10)
    for name, result in zip([*names, "a"], found, strict=True):
        if name in ("a", "b", "once", "babbling"):
            np.testing.assert_array_equal(result, whole)
    assert {
        name: str(each) for name, each in zip(names, found, strict=False) if not isinstance(each, np.ndarray)
    } == {
        "deadly": "the decoder dies of it (SIGSEGV)",
        "leaving": "the decoder dies of it (exit code 7)",
        "none": "No such file or directory",
        "greedy": "the decoder dies of it (SIGKILL)",
    }


def test_one_that_hangs_among_others_is_refused_alone(child):
    paths = [child(name) for name in ("a", "endless", "b")]
    with Decoder(DecodeSettings(), seconds=1) as decoder:
        first, second, third = decoder.decode_all(paths)
    assert first.shape == third.shape == (3, 40, 50)
    assert str(second) == "decoding takes longer than 1 s"
