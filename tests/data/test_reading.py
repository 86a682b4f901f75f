"""Batches from files: the same bits by any number of workers, from any kind of cache, from any place on, in any process."""

import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from visus.data import batching
from visus.data.ahead import both, in_order
from visus.data.batching import EvaluationBatches, TrainingBatches, measure_preprocessing
from visus.data.decode import DecodeSettings, UndecodableError
from visus.data.decoder import Decoder, _start
from visus.data.isolated import Decoders
from visus.data.keeping import decode_once
from visus.data.sources import open_source
from visus.errors import DataError, PeerLost
from visus.preprocessing import Preprocessing

RECORD = Preprocessing((24, 20), 3, (0.5,) * 3, (0.25,) * 3, 28)
TRANSFORM = v2.Compose([v2.RandomResizedCrop((24, 20)), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5)])
KINDS = {
    "none": {},
    "light": {"augment": "light"},
    "standard": {"augment": "standard"},
    "rand, mixed, erased": {"augment": "rand", "erasing": 0.4, "mixup": 0.3, "cutmix": 1.0},
    "foreign": {"transform": TRANSFORM},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("reading")
    random = np.random.default_rng(0)
    for number in range(13):
        path = root / "ab"[number % 2] / f"{number:02}.{'jpg' if number % 3 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        low = random.integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(low).resize((40 + number, 30), Image.Resampling.BICUBIC).save(path)
    return root


def kept(folder, cache):
    data = decode_once(open_source(folder, val_fraction=0), resize=28, memory_bytes=10**9, cache=cache)
    return data.train


@pytest.fixture(scope="module")
def parts(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield {cache: kept(folder, cache) for cache in ("ram", "disk", "off")}


def same(batches, others):
    for one, other in zip(batches, others, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.indices, other.indices)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_depend_neither_on_workers_nor_on_the_cache(parts, kind):
    expected = list(TrainingBatches(parts["ram"], RECORD, 4, seed=3, workers=0, **KINDS[kind])(1))
    for part in parts.values():
        for workers in (0, 1, 2, 4):
            batches = TrainingBatches(part, RECORD, 4, seed=3, workers=workers, **KINDS[kind])
            same(batches(1), expected)
            same(batches(1, 2), expected[2:])


@pytest.mark.parametrize("kind", ["standard", "rand, mixed, erased"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_batch(parts, kind, world_size):
    whole = list(TrainingBatches(parts["ram"], RECORD, 4, **KINDS[kind])(0))
    ranks = [
        list(
            TrainingBatches(
                parts["off"], RECORD, 4, rank=rank, world_size=world_size, workers=2, **KINDS[kind]
            )(0)
        )
        for rank in range(world_size)
    ]
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
        assert torch.equal(batch.targets, torch.cat([share.targets for share in shares]))


def test_evaluation_and_measuring_go_the_same_way(parts):
    expected = list(EvaluationBatches(parts["ram"], RECORD, 5, workers=0))
    record = measure_preprocessing(parts["ram"], (24, 20), workers=0)
    for part in parts.values():
        for workers in (0, 2):
            same(EvaluationBatches(part, RECORD, 5, workers=workers), expected)
            assert measure_preprocessing(part, (24, 20), workers=workers) == record
    shares = [list(EvaluationBatches(parts["off"], RECORD, 5, rank, 2, workers=1)) for rank in (0, 1)]
    same([shares[0][0], shares[1][0], shares[0][1]], expected)


def asked_of_children(monkeypatch):
    asked, decode = [], Decoder.decode_all
    monkeypatch.setattr(
        Decoder, "decode_all", lambda self, sources: asked.extend(sources) or decode(self, sources)
    )
    return asked


def test_what_is_skipped_is_not_decoded(parts, monkeypatch):
    asked = asked_of_children(monkeypatch)
    batches = TrainingBatches(parts["off"], RECORD, 4, workers=2)
    wanted = np.concatenate(list(batches.positions(0, 2)))
    assert len(list(batches(0, 2))) == 1
    names = {str(parts["off"].images.root / parts["off"].paths[position]) for position in wanted}
    assert set(asked) == names
    assert len(asked) == len(names)


@pytest.mark.parametrize("shared", [True, False])
def test_a_few_batches_are_read_ahead_and_no_more(parts, monkeypatch, shared):
    if not shared:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    asked = asked_of_children(monkeypatch)
    batches = TrainingBatches(parts["off"], RECORD, 2, workers=1)(0)
    next(batches)
    deadline = time.monotonic() + 20
    while len(asked) < 2 + 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    # The last share, of two images, may go beyond it by one.
    assert 2 + 4 <= len(asked) <= 2 + 5 - (not shared)
    batches.close()


def test_children_stay_from_epoch_to_epoch_and_end_when_told(folder, monkeypatch):
    started = []
    start = _start
    monkeypatch.setattr(
        "visus.data.decoder._start", lambda *given: started.append(start(*given)) or started[-1]
    )
    part = kept(folder, "off")
    for child in started:
        assert child.poll() is not None
    started.clear()
    batches = TrainingBatches(part, RECORD, 4, workers=2)
    for epoch in range(4):
        list(batches(epoch))
        list(EvaluationBatches(part, RECORD, 5, workers=2))
    assert 1 <= len(started) <= 2
    assert all(child.poll() is None for child in started)
    part.images.decoders.close()
    assert all(child.poll() is not None for child in started)
    with pytest.raises(DataError, match="decoding was stopped"):
        list(batches(0))


def test_children_end_when_nobody_has_them_any_more(folder, monkeypatch):
    started = []
    start = _start
    monkeypatch.setattr(
        "visus.data.decoder._start", lambda *given: started.append(start(*given)) or started[-1]
    )
    part = kept(folder, "off")
    started.clear()
    list(EvaluationBatches(part, RECORD, 5, workers=1))
    assert started[0].poll() is None
    del part
    assert started[0].poll() is not None


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_epochs_take_no_more_descriptors_or_threads(folder):
    part = kept(folder, "off")
    batches = TrainingBatches(part, RECORD, 4, workers=2)

    def held():
        """Descriptors but for those of each child, and threads, once those that were told to end have done so."""
        deadline = time.monotonic() + 60
        while (
            any("ThreadPool" in each.name for each in threading.enumerate()) and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        # The threads of an epoch that was left finish what they have begun, and those of the next do not wait for their children.
        children = len(part.images.decoders._all)
        assert children <= 4
        # Two pipes, and the memory that is shared.
        each = 2 + hasattr(os, "memfd_create")
        return len(list(Path("/proc/self/fd").iterdir())) - each * children, threading.active_count()

    list(batches(0))
    before = held()
    for epoch in range(5):
        for _ in islice(batches(epoch), 2):
            pass
        assert held() == before


def test_a_file_that_goes_bad_is_named_when_its_batch_is_due(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    part = kept(tmp_path / "copy", "off")
    batches = TrainingBatches(part, RECORD, 4, workers=2)
    bad = part.paths[next(batches.positions(0, 1))[0]]
    (tmp_path / "copy" / bad).write_bytes(b"\xff\xd8\xff and no more")
    read = batches(0)
    next(read)
    with pytest.raises(DataError, match=rf"{bad}: expected an image, found that it cannot be used"):
        next(read)
    for workers in (0, 1):
        with pytest.raises(DataError, match=bad):
            list(TrainingBatches(part, RECORD, 4, workers=workers)(0))


DYING = """
import os, signal
from visus.data import child
whole = child.read_image

def decode(source, **settings):
    if os.path.basename(source) == "04.jpg":
        if not os.path.exists({flag!r}):
            open({flag!r}, "w").close()
            os.kill(os.getpid(), signal.{signal})
        if {twice}:
            os.kill(os.getpid(), signal.{signal})
    return whole(source, **settings)

child.read_image = decode
child.main()
"""


@pytest.mark.parametrize("twice", [False, True])
def test_a_child_that_dies_is_replaced_and_its_file_named_if_it_was_that(
    parts, folder, tmp_path, monkeypatch, twice
):
    script = tmp_path / "child.py"
    script.write_text(DYING.format(flag=str(tmp_path / "flag"), signal="SIGSEGV", twice=twice))
    monkeypatch.setattr("visus.data.decoder._CHILD", [str(script)])
    part = replace(parts["off"], images=replace(parts["off"].images, decoders=Decoders()))
    batches = TrainingBatches(part, RECORD, 4, workers=2)
    if twice:
        with pytest.raises(DataError, match=r"04\.jpg: .*the decoder dies of it \(SIGSEGV\)"):
            list(batches(0))
    else:
        same(batches(0), TrainingBatches(parts["ram"], RECORD, 4)(0))
    assert (tmp_path / "flag").exists()


def test_that_no_child_can_start_is_said(parts, monkeypatch):
    monkeypatch.setattr("visus.data.decoder._CHILD", ["-c", "raise SystemExit(5)"])
    part = replace(parts["off"], images=replace(parts["off"].images, decoders=Decoders()))
    with pytest.raises(PeerLost, match="ends with 5") as error:
        list(TrainingBatches(part, RECORD, 4, workers=1)(0))
    assert error.value.exit_code == 3


def test_decoders_serve_many_threads_and_close_while_they_do(folder):
    paths = [str(path) for path in sorted(folder.rglob("*.*"))] * 4

    def decode(position):
        return decoders.decode_all([position], paths.__getitem__, DecodeSettings())[0]

    with Decoders() as decoders:
        found = [each.shape for each in in_order(decode, range(len(paths)), 3, 6)]
    assert found == found[:13] * 4
    decoders = Decoders()
    running = in_order(decode, range(len(paths)), 3, 6)
    next(running)
    decoders.close()
    last = list(running)[-1]
    assert isinstance(last, UndecodableError)
    assert "stopped" in str(last)


def test_another_process_has_children_of_its_own(parts):
    part = pickle.loads(pickle.dumps(parts["off"]))
    same(TrainingBatches(part, RECORD, 4, workers=1)(0), TrainingBatches(parts["ram"], RECORD, 4)(0))
    part.images.decoders.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_leaves_its_parents_children_alone(folder):
    code = f"""
import os, warnings
from visus.data.decode import DecodeSettings
from visus.data.decoder import Decoder
from visus.data.isolated import Decoders
path, how = {str(next(folder.rglob("*.png")))!r}, DecodeSettings()
decoders = Decoders()
def decode():
    return decoders.decode_all([0], lambda _: path, how)[0].tobytes()
before = decode()
pid = os.fork()
if not pid:
    code = 0 if decode() == before else 1
    decoders.close()
    os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
(child,) = decoders._all
assert child._process.poll() is None
assert decode() == before
print("whole")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "whole\n"


def test_work_is_done_in_order_a_little_ahead():
    begun = []

    def work(item):
        begun.append(item)
        if item == 7:
            raise KeyError(item)
        return item * item

    assert list(in_order(work, range(5), 0, 0)) == list(in_order(work, range(5), 3, 2)) == [0, 1, 4, 9, 16]
    results = in_order(work, range(20), 2, 3)
    with pytest.raises(KeyError):
        list(results)
    begun.clear()
    lazy = in_order(work, iter(range(7)), 0, 0)
    next(lazy)
    assert begun == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_large_images_are_normalised_where_they_are_cropped_to_the_same_bits(parts, monkeypatch, kind):
    expected = list(TrainingBatches(parts["ram"], RECORD, 4, seed=3, workers=0, **KINDS[kind])(1))
    evaluated = list(EvaluationBatches(parts["ram"], RECORD, 5, workers=0))
    monkeypatch.setattr(batching, "_LARGE", 0)
    for part in parts.values():
        for workers in (0, 3):
            batches = TrainingBatches(part, RECORD, 4, seed=3, workers=workers, **KINDS[kind])
            same(batches(1), expected)
            with torch.inference_mode():
                same(EvaluationBatches(part, RECORD, 5, workers=workers), evaluated)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches(1))


@pytest.mark.parametrize("kind", ["ram", "off"])
def test_batches_are_let_go_once_they_are_used(parts, monkeypatch, kind):
    monkeypatch.setattr(batching, "_LARGE", 0)
    used = []
    for batch in TrainingBatches(parts[kind], RECORD, 2, "standard", workers=1)(0):
        memory = batch.images.numpy()
        while memory.base is not None and isinstance(memory.base, np.ndarray):
            memory = memory.base
        used.append(weakref.ref(memory))
        del memory
    # The last one is still at hand.
    assert [each() for each in used[:-1]] == [None] * (len(used) - 1)


def test_both_give_all_and_keep_none():
    class Item:
        pass

    first, second = both(Item() for _ in range(5))
    taken = [weakref.ref(next(first)) for _ in range(3)]
    assert [each() is not None for each in taken] == [True] * 3
    assert [next(second) is each() for each in taken] == [True] * 3
    assert [each() for each in taken] == [None] * 3
    assert len(list(second)) == len(list(first)) == 2
