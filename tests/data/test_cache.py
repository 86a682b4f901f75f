"""A cache changes no pixel, serves later runs, and is never believed where it is damaged."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import visus
from visus.cli import app
from visus.config import make_config
from visus.data import keeping
from visus.data.batching import measure_preprocessing
from visus.data.cache import (
    CacheWriter,
    Stamps,
    growing_cache,
    list_caches,
    locked,
    read_cache,
    remove_caches,
    writing_cache,
)
from visus.data.counts import PixelCounts
from visus.data.decode import UndecodableError
from visus.data.decoder import Decoder
from visus.data.files import cache_in_use
from visus.data.keeping import decode_once
from visus.data.sources import open_source
from visus.data.stored import DamagedCacheError
from visus.display import Display
from visus.errors import DataError, UsageError
from visus.preparing import prepare
from visus.processes import Processes

PARTS = ("train", "val", "test")
MODES = {".jpg": ["RGB", "L", "CMYK"], ".png": ["RGBA", "1", "P"]}


def draw(path, number):
    random = np.random.default_rng(number)
    pixels = random.integers(0, 256, (*random.integers(20, 60, 2), 3), np.uint8)
    Image.fromarray(pixels).convert(MODES[path.suffix][number % 3]).save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images of several sizes, modes and formats in two classes, two broken ones; caches in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "a source"
    for part, count in (("train", 7), ("test", 3)):
        for kind in ("a", "b \udcff"):
            (root / part / kind).mkdir(parents=True)
            for number in range(count):
                suffix = "jpg" if number % 6 in (0, 1, 3) else "png"
                draw(root / part / kind / f"{number} é.{suffix}", 10 * (kind == "a") + number)
    (root / "train" / "a" / "broken.png").write_bytes(b"\x89PNG and no more")
    (root / "test" / "a" / "empty.png").touch()
    return root


@pytest.fixture
def asked(monkeypatch):
    """Of which files pixels are asked for in a child."""
    names = []
    decode = Decoder.decode_all

    def counted(self, sources):
        names.extend(each if isinstance(each, bytes) else Path(each).name for each in sources)
        return decode(self, sources)

    monkeypatch.setattr(Decoder, "decode_all", counted)
    return names


def opened(source, cache, *, said=None, memory_bytes=10**9, **options):
    options = {"resize": 16, "max_bad": 0.5, **options}
    say = None if said is None else said.append
    return decode_once(
        open_source(source, val_fraction=0.3), cache=cache, memory_bytes=memory_bytes, say=say, **options
    )


def content(data):
    """Everything that a run sees of the images."""
    return {
        name: [
            (path, label, part.images.read(place).shape, part.images.read(place).tobytes())
            for place, (path, label) in enumerate(zip(part.paths, part.labels.tolist(), strict=True))
        ]
        for name, part in zip(PARTS, (data.train, data.val, data.test), strict=True)
    } | {"skipped": data.skipped}


def the_file():
    (found,) = list_caches()
    return Path(found.path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("resize", "cache_size"), [(16, None), (None, None), (16, "full"), (16, 24)])
def test_the_pixels_are_the_same_in_memory_on_disk_and_without(folder, channels, resize, cache_size):
    options = {"channels": channels, "resize": resize, "cache_size": cache_size}
    found = {cache: opened(folder, cache, **options) for cache in ("ram", "disk", "off")}
    again = opened(folder, "disk", **options)
    assert content(found["ram"]) == content(found["disk"]) == content(found["off"]) == content(again)
    assert [each.path for each in again.skipped] == ["train/a/broken.png", "test/a/empty.png"]
    assert [cache_in_use(found[cache].train.images) for cache in found] == ["ram", "disk", "off"]
    assert again.val.images.size == found["off"].val.images.size
    for part, side in (
        (again.train, {"full": None, None: resize}.get(cache_size, cache_size)),
        (again.val, resize),
    ):
        for place, path in enumerate(part.paths):
            with Image.open(folder / path) as image:
                short = min(image.size)
            assert min(part.images.read(place).shape[1:]) == min(short, side or short)


def test_a_second_run_decodes_nothing_and_names_the_broken_again(folder, asked):
    first, said = content(opened(folder, "disk")), []
    assert len(asked) == 22
    asked.clear()
    assert content(opened(folder, "disk", said=said)) == first
    assert not asked
    (line,) = said
    assert line.startswith("cache: disk, 0.0 MB of decoded images in ")
    assert line.endswith(", from an earlier run")


def test_other_settings_and_other_parts_are_told_apart(folder, asked):
    opened(folder, "disk")
    asked.clear()
    opened(folder, "disk", resize=17)
    assert len(asked) == 22
    assert len(list_caches()) == 2
    asked.clear()
    # Another split has other images in its parts, and the same images in all.
    decode_once(open_source(folder, split_seed=5), cache="disk", resize=16, max_bad=0.5, memory_bytes=10**9)
    assert not asked


def test_only_what_has_changed_is_decoded_again(folder, asked):
    opened(folder, "disk")
    asked.clear()
    draw(folder / "train" / "a" / "1 é.jpg", 99)
    draw(folder / "train" / "a" / "broken.png", 50)
    draw(folder / "test" / "a" / "new.png", 51)
    (folder / "test" / "a" / "2 é.png").unlink()
    os.utime(folder / "train" / "a" / "3 é.jpg", ns=(1, 1))
    found = opened(folder, "disk")
    assert sorted(asked) == ["1 é.jpg", "3 é.jpg", "broken.png", "new.png"]
    assert content(found) == content(opened(folder, "off"))
    assert len(list_caches()) == 1
    asked.clear()
    opened(folder, "disk")
    assert not asked


def test_what_has_changed_is_added_to_the_file(folder, asked):
    mapped = opened(folder, "disk")
    path, first = the_file(), content(mapped)
    inode, before = path.stat().st_ino, path.read_bytes()
    draw(folder / "train" / "a" / "1 é.jpg", 99)
    (folder / "test" / "a" / "2 é.png").unlink()
    found = opened(folder, "disk")
    after = path.read_bytes()
    assert path.stat().st_ino == inode
    assert after.startswith(before)
    assert len(after) - len(before) < len(before)
    assert content(found) == content(opened(folder, "off"))
    assert not list(path.parent.glob("*.whole"))
    # A run that had it mapped goes on with what it had.
    assert mapped.train.images.decoded.path == path
    assert content(mapped) == first


def test_a_file_of_which_little_is_still_needed_is_written_anew(folder):
    opened(folder, "disk")
    path, lengths = the_file(), []
    for round in range(12):
        for number in range(7):
            draw(
                folder / "train" / "a" / f"{number} é.{'jpg' if number % 6 in (0, 1, 3) else 'png'}",
                99 + round,
            )
        assert content(opened(folder, "disk")) == content(opened(folder, "off"))
        lengths.append(path.stat().st_size)
    assert sorted(lengths) != lengths, "it was written anew"
    assert max(lengths) < 4 * lengths[0]


def killed_while_it_grows(folder, after):
    """A run that dies after so many images were added to the file."""
    code = (
        "import os, signal, sys\nfrom visus.data.cache import CacheWriter\n"
        "from visus.data.keeping import decode_once\nfrom visus.data.sources import open_source\n"
        "add, left = CacheWriter.add, [int(sys.argv[2])]\n"
        "def dying(self, *row):\n"
        "    if not left[0]: self._file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    left[0] -= 1; add(self, *row)\n"
        "CacheWriter.add = dying\n"
        "data = open_source(sys.argv[1], val_fraction=0.3)\n"
        "decode_once(data, cache='disk', resize=16, max_bad=0.5, memory_bytes=0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(after)], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("after", [0, 2])
def test_a_run_that_is_killed_while_the_file_grows_loses_nothing(folder, asked, after):
    opened(folder, "disk")
    path, (images,) = the_file(), [each.images for each in list_caches()]
    before = path.read_bytes()
    changed = [f"{number} é.png" for number in (2, 4, 5)]
    for name in changed:
        draw(folder / "train" / "a" / name, 99)
    killed_while_it_grows(folder, after)
    assert path.read_bytes().startswith(before)
    (listed,) = list_caches()
    assert (listed.source, listed.images) == (str(folder), images)
    expected, said = content(opened(folder, "off")), []
    asked.clear()
    assert content(opened(folder, "disk", said=said)) == expected
    assert sorted(asked) == changed
    assert not any("damaged" in each for each in said)
    assert not list(path.parent.glob("*.whole"))


def test_a_disk_that_fills_up_while_the_file_grows_loses_nothing(folder, asked, monkeypatch):
    opened(folder, "disk")
    path = the_file()
    before = path.read_bytes()
    draw(folder / "train" / "a" / "2 é.png", 99)

    def full(self, about):
        self._file.write(b"some of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "finish", full)
        expected, said = content(opened(folder, "off")), []
        assert content(opened(folder, "disk", said=said)) == expected
        assert "no cache can be written (No space left on device)" in said[0]
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.whole"))
    asked.clear()
    assert content(opened(folder, "disk")) == expected
    assert asked == ["2 é.png"]


def test_what_cannot_be_decoded_now_makes_no_file_grow(folder, asked, monkeypatch):
    decode, failing = Decoder.decode_all, {"5 é.png"}

    def now_and_then(self, sources):
        results = list(decode(self, sources))
        names = [Path(each).name for each in sources]
        passing = UndecodableError("no room at the moment", lasting=False)
        return [passing if name in failing else each for name, each in zip(names, results, strict=True)]

    monkeypatch.setattr(Decoder, "decode_all", now_and_then)
    opened(folder, "disk")
    path = the_file()
    before = path.read_bytes()
    for _ in range(3):
        assert "no room at the moment" in [each.reason for each in opened(folder, "disk").skipped]
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.whole"))
    failing.clear()
    assert content(opened(folder, "disk")) == content(opened(folder, "off"))
    assert path.read_bytes().startswith(before)


def test_what_was_added_is_listed_where_its_file_is(folder):
    opened(folder, "disk")
    draw(folder / "train" / "a" / "2 é.png", 99)
    draw(folder / "train" / "a" / "0 new.png", 99)
    found = opened(folder, "disk", resize=16)
    names = [path for part in (found.train, found.val, found.test) for path in part.paths]
    kept = read_cache(the_file(), 3)
    assert [each for each in kept.names if each not in kept.reasons] == names


def test_a_damaged_image_is_given_up_once_nobody_writes(folder):
    opened(folder, "disk")
    images = opened(folder, "disk").train.images
    path = the_file()
    with path.open("r+b") as file:
        file.write(bytes(images.decoded.nbytes))
    with locked(path, lambda: None):
        images.read(0)
        assert path.exists()
    images.read(0)
    assert not path.exists()


def test_where_locks_keep_nobody_away_nothing_is_cut_from_the_others(folder, monkeypatch):
    """As between hosts of some file systems: another wrote behind what this one did, and may have it mapped."""
    opened(folder, "disk")
    path = the_file()
    draw(folder / "train" / "a" / "2 é.png", 99)
    finish, lengths = CacheWriter.finish, []

    def interfered(self, about):
        finish(self, about)
        self._file.flush()
        with path.open("ab") as file:
            file.write(bytes(5000))
        lengths.append(path.stat().st_size)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CacheWriter, "finish", interfered)
    opened(folder, "disk")
    assert [path.stat().st_size] == lengths


def test_an_index_that_did_not_reach_the_disk_is_told_from_the_one_before(folder, asked):
    """As after a power cut: the file is as long as it was to be, but what was written last is not there."""
    opened(folder, "disk")
    path = the_file()
    length = path.stat().st_size
    draw(folder / "train" / "a" / "2 é.png", 99)
    opened(folder, "disk")
    whole = path.read_bytes()
    path.write_bytes(whole[:length] + bytes(len(whole) - length - 44) + whole[-44:])
    path.with_name(f"{path.name}.whole").write_text(str(length))
    expected = content(opened(folder, "off"))
    asked.clear()
    assert content(opened(folder, "disk")) == expected
    assert asked == ["2 é.png"]


def test_what_cannot_be_read_now_is_not_held_against_a_file(folder, asked):
    link = folder / "train" / "a" / "later.png"
    link.symlink_to(folder / "elsewhere")
    found = opened(folder, "disk")
    assert "No such file or directory" in [each.reason for each in found.skipped]
    draw(folder / "elsewhere.png", 4)
    (folder / "elsewhere.png").rename(folder / "elsewhere")
    asked.clear()
    assert "train/a/later.png" in content(opened(folder, "disk"))["train"][0][0] or asked == ["later.png"]
    assert asked == ["later.png"]


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_noticed_and_written_again(folder, share, asked):
    first, said = content(opened(folder, "disk")), []
    path = the_file()
    os.truncate(path, int(path.stat().st_size * share))
    asked.clear()
    assert content(opened(folder, "disk", said=said)) == first
    assert len(asked) == 22
    assert said[0] == f"cache: {path} is damaged; decoding again"
    asked.clear()
    opened(folder, "disk")
    assert not asked


@pytest.mark.parametrize("seed", range(12))
def test_no_changed_byte_changes_a_pixel(folder, seed, asked):
    first = content(opened(folder, "disk"))
    path = the_file()
    whole = bytearray(path.read_bytes())
    place = np.random.default_rng(seed).integers(len(whole))
    whole[place] ^= 1 << seed % 8
    path.write_bytes(whole)
    asked.clear()
    assert content(opened(folder, "disk")) == first
    # Either the index is damaged, and all was decoded again; or an image, and then the next run writes a new file.
    assert len(asked) == 22 or not path.exists()
    assert content(opened(folder, "disk")) == first
    assert path.exists()


def test_one_run_decodes_and_the_other_waits(folder, asked):
    first = content(opened(folder, "disk"))
    path, said, waiting = the_file(), [], threading.Event()
    path.unlink()
    asked.clear()

    def say(line):
        said.append(line)
        waiting.set()

    found = []
    data = open_source(folder, val_fraction=0.3)
    options = {"cache": "disk", "resize": 16, "max_bad": 0.5, "memory_bytes": 10**9}
    other = threading.Thread(target=lambda: found.append(decode_once(data, say=say, **options)))
    with locked(path, lambda: pytest.fail("nobody has it")):
        other.start()
        assert waiting.wait(60)
        assert said == ["cache: another process decodes these images; waiting for it"]
        assert not asked
    other.join()
    assert content(found[0]) == first
    assert len(asked) == 22


def test_runs_at_once_decode_once(folder, tmp_path):
    code = (
        "import sys\nfrom visus.data.keeping import decode_once\nfrom visus.data.decoder import Decoder\n"
        "from visus.data.sources import open_source\ndecode, asked = Decoder.decode_all, []\n"
        "Decoder.decode_all = lambda self, sources: asked.extend(sources) or decode(self, sources)\n"
        "decode_once(open_source(sys.argv[1]), cache='disk', resize=16, max_bad=0.5, memory_bytes=0)\n"
        "print(len(asked))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(int(run.communicate()[0]) for run in runs) == [0, 22]


def test_a_set_that_takes_too_much_of_the_disk_is_not_kept(folder, monkeypatch):
    first, said = content(opened(folder, "off")), []
    monkeypatch.setattr(keeping, "room_bytes", lambda _: 4000)
    assert content(opened(folder, "disk", said=said)) == first
    assert "cache: off, images are decoded each time: they take more than half of the free disk" in said[-1]
    assert not [each for each in (folder.parent / "cache").rglob("*") if each.suffix in (".images", ".tmp")]


def test_that_it_will_be_too_much_is_seen_early():
    pixels = np.zeros((1, 10, 10), np.uint8)
    writer = CacheWriter(BytesIO(), 20_000, 1000, 5000)
    with pytest.raises(OverflowError):
        for number in range(1000):
            writer.add(number, str(number), 5, 1, pixels)
    assert number == 99


@pytest.mark.parametrize(("first", "later"), [(5000, 5), (5, 5000)])
def test_a_class_of_other_images_does_not_make_all_too_much(first, later):
    """Large ones in large files come first, or flat drawings in files that tell nothing of their pixels."""
    sides = (100, 10) if first > later else (20, 20)
    writer = CacheWriter(BytesIO(), 1_500_000, 1100, 100 * first + 1000 * later)
    for number in range(1100):
        pixels = np.zeros((1, sides[number >= 100], sides[number >= 100]), np.uint8)
        writer.add(number, str(number), first if number < 100 else later, 1, pixels)


@pytest.mark.parametrize(
    ("memory_bytes", "room", "cache"),
    [(10**6, 10**6, "disk"), (10**6, 0, "ram"), (5000, 10**6, "disk"), (5000, 5000, "off")],
)
def test_what_is_kept_where_follows_its_measured_size(folder, monkeypatch, memory_bytes, room, cache):
    monkeypatch.setattr(keeping, "room_bytes", lambda _: room)
    said = []
    found = opened(folder, "auto", memory_bytes=memory_bytes, said=said)
    assert {cache_in_use(part.images) for part in (found.train, found.val, found.test)} == {cache}
    assert said[-1].startswith(f"cache: {cache}, ")
    assert len(said) == 1 + (cache != "disk")
    assert cache == "disk" or said[0].startswith(
        "cache: not on disk: they take more than half of the free disk"
    )
    assert content(found) == content(opened(folder, "off"))


def test_a_cache_that_is_there_is_used_by_those_that_begin_none(folder, asked, monkeypatch):
    assert cache_in_use(opened(folder, "found").train.images) == "ram"
    opened(folder, "auto")
    asked.clear()
    assert cache_in_use(opened(folder, "found").train.images) == "disk"
    assert not asked
    # One that would have to be written anew, where there is no room, is done without.
    monkeypatch.setattr(keeping, "room_bytes", lambda _: 0)
    draw(folder / "train" / "a" / "1 é.jpg", 99)
    assert cache_in_use(opened(folder, "found").train.images) == "ram"


def test_too_little_memory_is_said(folder):
    said = []
    assert content(opened(folder, "ram", memory_bytes=5000, said=said)) == content(opened(folder, "off"))
    assert said == [
        "cache: off, images are decoded each time: they take more than the memory there is "
        "(0.0 MB of memory may be used)"
    ]


@pytest.mark.parametrize("cache", ["auto", "ram", "disk", "off"])
def test_images_to_train_on_are_counted_as_they_are_decoded(folder, asked, cache):
    counts = PixelCounts(3, (12, 12))
    found = opened(folder, cache, counts=counts)
    assert counts.images == len(found.train)
    assert len(asked) == 22
    assert measure_preprocessing(found.train, (12, 12), counts=counts) == measure_preprocessing(
        opened(folder, "ram").train, (12, 12)
    )


@pytest.mark.parametrize(("memory_bytes", "cache"), [(10**6, "ram"), (5000, "off")])
def test_none_is_counted_twice_where_pixels_cannot_be_kept(folder, monkeypatch, memory_bytes, cache):
    monkeypatch.setattr(keeping, "room_bytes", lambda _: 5000)
    counts = PixelCounts(3, (12, 12))
    found = opened(folder, "auto", memory_bytes=memory_bytes, counts=counts)
    assert cache_in_use(found.train.images) == cache
    assert counts.images == len(found.train)
    assert measure_preprocessing(found.train, (12, 12)) == measure_preprocessing(
        found.train, (12, 12), counts=counts
    )


def test_of_a_cache_that_is_there_all_are_counted_again(folder):
    opened(folder, "disk")
    draw(folder / "train" / "a" / "1 é.jpg", 99)
    counts = PixelCounts(3, (12, 12))
    found = opened(folder, "disk", counts=counts)
    assert counts.images == 1
    expected = measure_preprocessing(opened(folder, "ram").train, (12, 12))
    assert measure_preprocessing(found.train, (12, 12), counts=counts) == expected


@pytest.mark.parametrize("how", ["a file in its place", "no space"])
def test_a_cache_that_cannot_be_written_is_done_without(folder, monkeypatch, how):
    first, said = content(opened(folder, "off")), []
    if how == "no space":

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(CacheWriter, "finish", full)
    else:
        (folder.parent / "taken").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "taken"))
    assert content(opened(folder, "disk", said=said)) == first
    reason = "No space left on device" if how == "no space" else "Not a directory"
    assert said == [f"cache: off, images are decoded each time: no cache can be written ({reason})"]
    assert not list(folder.parent.rglob("*.tmp"))


def test_an_interrupted_run_leaves_the_old_file(folder):
    opened(folder, "disk")
    path = the_file()
    before = path.read_bytes()
    draw(folder / "train" / "a" / "1 é.jpg", 99)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(folder, "disk", progress=interrupt)
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*"))
    # What a run left that was killed in the midst of it goes with the next one.
    (path.parent / f".{path.name}.0123abcd.tmp").write_bytes(b"much")
    assert content(opened(folder, "disk")) == content(opened(folder, "off"))
    assert not list(path.parent.glob(".*"))


def test_a_run_that_is_killed_leaves_nothing_that_is_believed(folder):
    code = (
        "import os, signal, sys\nfrom visus.data.keeping import decode_once\n"
        "from visus.data.sources import open_source\n"
        "def die(done, total):\n    if done == 10: os.kill(os.getpid(), signal.SIGKILL)\n"
        "data = open_source(sys.argv[1], val_fraction=0.3)\n"
        "decode_once(data, cache='disk', resize=16, max_bad=0.5, memory_bytes=0, progress=die)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    caches = folder.parent / "cache" / "visus" / "images"
    assert [each.suffix for each in caches.glob(".*")] == [".tmp"]
    assert not list_caches()
    assert content(opened(folder, "disk")) == content(opened(folder, "off"))
    assert not list(caches.glob(".*"))


def test_progress_counts_what_is_decoded(folder):
    seen = []
    opened(folder, "disk", progress=lambda *both: seen.append(both))
    assert seen == [(done, 22) for done in range(1, 23)]
    seen.clear()
    opened(folder, "disk", progress=lambda *both: seen.append(both))
    assert not seen


def test_a_zip_has_a_cache_like_a_folder(folder, tmp_path, asked):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for number in range(12):
            buffer = BytesIO()
            Image.new("RGB", (20, 30), (number * 20, 0, 0)).save(buffer, "png")
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", buffer.getvalue())
    found = {
        cache: decode_once(open_source(tmp_path / "all.zip"), cache=cache, resize=16, memory_bytes=10**9)
        for cache in ("ram", "disk")
    }
    asked.clear()
    again = decode_once(open_source(tmp_path / "all.zip"), cache="disk", resize=16, memory_bytes=10**9)
    assert not asked
    for each in (found["disk"], again):
        for part in ("train", "val"):
            for one, other in zip(
                getattr(each, part).images.decoded, getattr(found["ram"], part).images.decoded, strict=True
            ):
                np.testing.assert_array_equal(one, other)


def test_all_parts_share_one_mapping_and_another_process_maps_for_itself(folder):
    found = opened(folder, "disk")
    train, test = found.train.images.decoded, found.test.images.decoded
    assert np.shares_memory(train.blocks[0], test.blocks[0])
    assert np.shares_memory(train.blocks[0], train.subset(np.array([1])).blocks[0])
    packed = pickle.dumps(found.train.images)
    assert len(packed) < 4000
    assert len(packed) < train.nbytes
    copy = pickle.loads(packed)
    for place in range(len(copy)):
        np.testing.assert_array_equal(copy.read(place), found.train.images.read(place))


def test_images_can_be_changed_without_changing_the_cache(folder):
    images = opened(folder, "disk").train.images
    before = images.read(0)
    images.read(0)[:] = 0
    np.testing.assert_array_equal(images.read(0), before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_reading_a_whole_cache_takes_no_memory_of_its_own(tmp_path):
    path = tmp_path / "x.images"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 500, 700), np.uint8)
    with writing_cache(path, 10**9, (100, 100), {}) as writer:
        for number in range(100):
            writer.add(number, str(number), 1, 1, pixels)
    code = (
        "import sys\nfrom pathlib import Path\nfrom visus.data.cache import read_cache\n"
        "def own(): return int(Path('/proc/self/status').read_text().split('RssAnon:')[1].split()[0])\n"
        "images = read_cache(Path(sys.argv[1]), 3).images\nimages[0]\nbefore = own()\n"
        "for each in images: total = int(each.sum())\nprint(images.nbytes // 1024, own() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    whole, grown = map(int, done.stdout.split())
    assert whole > 100_000
    assert grown < whole / 8


sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))
names = st.text(st.characters(exclude_characters="\0", exclude_categories=()), min_size=1).filter(
    lambda name: _can_be_a_name(name)
)


def _can_be_a_name(name):
    try:
        return os.fsdecode(os.fsencode(name)) == name
    except UnicodeEncodeError:
        return False


@settings(deadline=None)
@given(st.dictionaries(names, st.one_of(sizes, st.text(max_size=9)), max_size=8), st.sampled_from([1, 3]))
def test_a_file_gives_what_was_written(tmp_path_factory, entries, channels):
    path = tmp_path_factory.mktemp("one") / "x.images"
    random = np.random.default_rng(len(entries))
    written = {
        name: each if isinstance(each, str) else random.integers(0, 256, (channels, *each), np.uint8)
        for name, each in entries.items()
    }
    with writing_cache(path, 10**6, (len(written), len(written)), {}) as writer:
        for number, (name, result) in enumerate(written.items()):
            writer.add(number, name, number, 10**18 + number, result)
    read = read_cache(path, channels)
    assert list(read.names) == list(written)
    numbers = np.arange(len(written))
    assert read.find(list(written), Stamps(numbers, 10**18 + numbers)).tolist() == numbers.tolist()
    others = read.find([*written, "other"], Stamps(np.full(len(written) + 1, -5), np.zeros(len(written) + 1)))
    assert (others == -1).all()
    for place, result in zip(read.places, written.values(), strict=True):
        assert (place < 0) == isinstance(result, str)
        if place >= 0:
            np.testing.assert_array_equal(read.images[place], result)
    assert read.reasons == {name: each for name, each in written.items() if isinstance(each, str)}


rounds = st.lists(
    st.tuples(
        st.dictionaries(names, st.one_of(sizes, st.text(max_size=9)), max_size=4),
        st.integers(0, 2**8 - 1),
        st.binary(max_size=99),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(rounds, st.sampled_from([1, 3]))
def test_a_file_that_grows_gives_what_was_kept_and_what_was_added(tmp_path_factory, rounds, channels):
    """In each round some are kept, others added, and then perhaps a process is killed as it adds more."""
    path, there = tmp_path_factory.mktemp("one") / "x.images", {}
    random = np.random.default_rng(len(rounds))
    with writing_cache(path, 10**6, (0, 0), {}):
        pass
    for added, chosen, torn in rounds:
        entries, whole = read_cache(path, channels), path.with_name(f"{path.name}.whole")
        kept = [place for place in range(len(entries.names)) if chosen >> place % 8 & 1]
        stay = {name: each for place, (name, each) in enumerate(there.items()) if place in kept}
        new = {
            name: each if isinstance(each, str) else random.integers(0, 256, (channels, *each), np.uint8)
            for name, each in added.items()
            if name not in stay
        }
        with growing_cache(path, entries.file_bytes, 10**6, (len(new), len(new)), {}) as writer:
            writer.keep(entries.subset(np.array(kept, dtype=np.int64)), np.arange(len(kept)))
            for rank, (name, each) in enumerate(new.items(), len(kept)):
                writer.add(rank, name, len(name), 7, each)
        # Where nothing is added nothing is written.
        there = {**stay, **new} if new else there
        if torn:
            if not whole.exists():
                whole.write_text(str(path.stat().st_size))
            path.write_bytes(path.read_bytes() + torn)
        found = read_cache(path, channels)
        assert list(found.names) == list(there)
        for name, place, each in zip(there, found.places, there.values(), strict=True):
            if isinstance(each, str):
                assert (place, found.reasons[name]) == (-1, each)
            else:
                np.testing.assert_array_equal(found.images[place], each)


def test_a_file_that_changed_since_it_could_be_used_is_named(folder):
    images = opened(folder, "off").train.images
    images.read(0)
    (images.root / images.paths[0]).write_bytes(b"no image any more")
    with pytest.raises(DataError, match=r"train/a/0 é.jpg: expected an image, found .*cannot identify"):
        images.read(0)


def test_the_command_line_lists_and_removes(folder, capfd):
    def run(*arguments):
        code = app(["cache", *arguments], standalone_mode=False)
        return code or 0, capfd.readouterr()

    assert run("ls") == (0, ("", "no caches\n"))
    opened(folder, "disk")
    opened(folder, "disk", resize=None, channels=1)
    code, shown = run("ls", "--json")
    grey, colour = json.loads(shown.out)
    assert code == 0
    assert colour["settings"]["resize"] == 16
    assert (grey["settings"]["resize"], grey["settings"]["channels"]) == (None, 1)
    assert {each["source"] for each in (grey, colour)} == {str(folder)}
    assert {each["images"] for each in (grey, colour)} == {20}
    lines = run("ls")[1].out.splitlines()
    assert "20 images, RGB, short side 16 (bilinear)" in lines[1]
    assert "20 images, grey, full size" in lines[0]
    os.truncate(grey["path"], 100)
    damaged = json.loads(run("ls", "--json")[1].out)[0]
    assert (damaged["source"], damaged["images"]) == (None, 0)
    assert "damaged" in run("ls")[1].out
    with pytest.raises(UsageError, match="elsewhere: no decoded images of it"):
        run("rm", "elsewhere")
    with locked(Path(colour["path"]), lambda: None):
        code, shown = run("rm", str(folder))
        assert code == 1
        assert shown.err.startswith("left, since a run is writing it: ")
    assert run("rm", str(folder))[0] == 0
    assert [each.source for each in list_caches()] == [None]
    assert run("rm", "all")[0] == 0
    assert not list(Path(grey["path"]).parent.iterdir())
    assert remove_caches("all") == ([], [])


def test_a_run_keeps_its_images_when_the_cache_is_removed(folder):
    found = opened(folder, "disk")
    before = content(found)
    remove_caches("all")
    assert content(found) == before


def test_a_file_that_is_none_of_ours_is_refused(tmp_path):
    path = tmp_path / "a.images"
    for made in (b"", b"x" * 1000, b"\0" * 44):
        path.write_bytes(made)
        with pytest.raises(DamagedCacheError):
            read_cache(path, 3)


def test_a_cache_changes_no_digest(folder, tmp_path):
    for number in range(7, 20):
        draw(folder / "train" / "a" / f"{number}.png", number)
        draw(folder / "train" / "b \udcff" / f"{number}.png", 30 + number)
    options = {"data": str(folder), "model": "small", "img_size": 12, "augment": "standard", "epochs": 1}
    options |= {"batch_size": 8, "threads": 1, "amp": "off", "max_bad": 0.2, "out": str(tmp_path / "runs")}
    digests = {}
    for size, caches in ((None, ("ram", "disk", "off")), ("full", ("disk", "off"))):
        runs = [
            visus.train(make_config(**options, cache=cache, cache_size=size, workers=number))
            for number, cache in enumerate(caches)
        ]
        assert [len({each.digest for each in runs}), {each.skipped for each in runs}] == [1, {2}]
        digests[size] = runs[0].digest
    assert digests[None] != digests["full"]


def test_processes_on_one_machine_share_the_memory_where_there_is_no_file(folder, monkeypatch):
    config = make_config(data=str(folder), img_size=12, augment="standard", batch_size=4, max_bad=0.2)
    monkeypatch.setattr(keeping, "room_bytes", lambda _: 0)
    quiet = Display(quiet=True)
    assert cache_in_use(prepare(config, quiet).train.images) == "ram"
    assert cache_in_use(prepare(config, quiet, Processes(local_size=10**7)).train.images) == "off"


def test_parts_that_are_not_asked_for_stay_in_the_cache(folder, asked):
    whole = open_source(folder)
    options = {"resize": 16, "max_bad": 0.5, "memory_bytes": 10**9, "cache": "disk"}
    alone = replace(whole, train=None, val=None)
    decode_once(alone, **options)
    first = len(asked)
    decode_once(replace(whole, test=None), **options)
    both = len(asked)
    assert both > first > 0
    for data in (alone, whole, replace(whole, test=None)):
        decode_once(data, **options)
    assert len(asked) == both
    # One that is gone does not, nor one that has changed.
    (folder / "test" / "a" / "0 é.jpg").unlink()
    draw(folder / "test" / "a" / "1 é.jpg", 77)
    draw(folder / "train" / "a" / "0 é.jpg", 78)
    (kept,) = list_caches()
    decode_once(replace(whole, test=None), **options)
    (fewer,) = list_caches()
    assert fewer.images == kept.images - 2


def test_what_is_evaluated_comes_from_the_cache_where_there_is_one(folder, tmp_path, asked):
    for number in range(7, 20):
        draw(folder / "train" / "a" / f"{number}.png", number)
        draw(folder / "train" / "b \udcff" / f"{number}.png", 30 + number)
    options = {"data": str(folder), "model": "small", "img_size": 12, "augment": "standard", "epochs": 1}
    options |= {"batch_size": 8, "threads": 1, "amp": "off", "max_bad": 0.2, "out": str(tmp_path / "runs")}
    run = visus.train(make_config(**options, cache="disk"))
    checkpoint = visus.load_checkpoint(Path(run.checkpoints["best"]))
    asked.clear()
    scores = visus.evaluate_checkpoint(checkpoint, str(folder)).scores
    assert not asked
    assert scores.accuracy == run.test["accuracy"]
    remove_caches("all")
    assert visus.evaluate_checkpoint(checkpoint, str(folder)).scores.loss == scores.loss
    assert not list_caches()
