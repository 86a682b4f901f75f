"""Folders of images whose runs are killed, and go on with another number of workers and another cache, to the same bits."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_folders import make_folder

from visus import finishing, training
from visus.checkpoint import load_checkpoint
from visus.config import make_config, write_config
from visus.recording import RunRecorder
from visus.runs import RunFolder, open_run

DURATIONS = ("seconds", "images_per_second")
WAYS = list(itertools.product(("off", "ram", "disk"), (0, 2, 4)))


DYING = """
import os, signal, sys
from pathlib import Path
from visus import training
from visus.config import make_config, read_config
from visus.recording import RunRecorder

RunRecorder.due = lambda recorder, step: step < 8 or os.kill(os.getpid(), signal.SIGKILL)
training.train(make_config(**read_config(Path(sys.argv[1]))))
"""


class Killed(BaseException):
    """A process that is no more."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 24 images of several sizes, one of them broken."""
    return make_folder(tmp_path_factory.mktemp("images"), 48)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr(RunRecorder, "draw_curves", lambda self, records: None)
    monkeypatch.setattr(finishing, "plot_confusion", lambda *arguments, **options: None)


def config(folder, out, cache, workers):
    options = {"model": "small", "img_size": 16, "augment": "standard", "mixup": 0.2, "erasing": 0.3}
    options |= {"amp": "off", "threads": 1, "lr": 0.01, "batch_size": 8, "epochs": 3, "max_bad": 0.5}
    options |= {"checkpoint_every": "1steps", "cache": cache, "workers": workers}
    return make_config(data=str(folder), out=str(out), name="run", **options)


def killed_at(monkeypatch, step, begin):
    due = RunRecorder.due

    def kill(recorder, now):
        if now == step:
            recorder.flush()
            raise Killed
        return due(recorder, now)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunRecorder, "due", kill)
        begin()


def outcome(run):
    found = RunFolder(run)
    records = [{k: v for k, v in each.items() if k not in DURATIONS} for each in found.records()]
    return [load_checkpoint(path).document["digest"] for path in (found.last, found.best)], json.dumps(
        records
    )


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunRecorder, "draw_curves", lambda self, records: None)
        patch.setattr(finishing, "plot_confusion", lambda *arguments, **options: None)
        return outcome(training.train(config(folder, tmp_path_factory.mktemp("whole"), "ram", 1)).run)


def check(monkeypatch, tmp_path, folder, whole, ways, steps):
    (cache, workers), *others = ways
    killed_at(monkeypatch, steps[0], lambda: training.train(config(folder, tmp_path, cache, workers)))
    run = str(tmp_path / "run")
    for (cache, workers), step in zip(others[:-1], steps[1:], strict=True):
        change = {"cache": cache, "workers": workers}
        killed_at(monkeypatch, step, lambda change=change: training.resume(run, **change))
    cache, workers = others[-1]
    resumed = training.resume(run, cache=cache, workers=workers)
    assert resumed.skipped == 1
    assert outcome(run) == whole


def test_a_streamed_run_goes_on_with_other_workers_and_from_a_cache(monkeypatch, tmp_path, folder, whole):
    ways = [("off", 2), ("off", 0), ("off", 4), ("disk", 1)]
    check(monkeypatch, tmp_path, folder, whole, ways, [3, 9, 14])


@pytest.mark.parametrize(("first", "second"), [(("off", 2), ("disk", 0)), (("ram", 0), ("off", 2))], ids=str)
def test_what_the_system_kills_goes_on_in_any_other_way(tmp_path, folder, whole, first, second):
    write_config(config(folder, tmp_path, *first), tmp_path / "config.yaml")
    killed = subprocess.run(
        [sys.executable, "-c", DYING, tmp_path / "config.yaml"], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = RunFolder(tmp_path / "run")
    # Of the last step before that the checkpoint may not be whole.
    assert 0 < load_checkpoint(run.last).document["step"] < 8
    training.resume(str(run.path), cache=second[0], workers=second[1])
    assert outcome(run.path) == whole


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), list(itertools.product(WAYS, WAYS)), ids=str)
def test_any_way_goes_on_in_any_other(monkeypatch, tmp_path, folder, whole, first, second):
    check(monkeypatch, tmp_path, folder, whole, [first, second], [7])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
@pytest.mark.parametrize("processes", [1, 2])
def test_the_processes_that_decode_end_with_those_that_train(folder, tmp_path, processes):
    options = (
        f"train {folder} --model small --img-size 16 -b 8 --epochs 5000 --cache off --workers 2 --max-bad 0.5"
    )
    options += f" --amp off --threads 1 --checkpoint-every 2steps --out {tmp_path} --name run"
    launcher = f"-m torch.distributed.run --standalone --nproc-per-node={processes} -m visus"
    command = [sys.executable, *(launcher if processes > 1 else "-m visus").split(), *options.split()]
    run = tmp_path / "run"
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    while not (run / "previous.safetensors").exists():
        assert process.poll() is None, (tmp_path / "said.txt").read_text()
        time.sleep(0.05)
    everybody = descendants(process.pid)
    decoding = [each for each in everybody if "visus.data.child" in arguments(each)]
    assert len(decoding) == 2 * processes
    # Those that train, and who started them; nobody can do anything about it any more.
    for each in everybody - set(decoding):
        os.kill(each, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    # A process takes a moment to die.
    while not open_run(run).is_free() or any(map(arguments, everybody)):
        assert time.monotonic() < deadline, [arguments(each) for each in everybody]
        time.sleep(0.05)


def descendants(pid):
    """A process and all that it started, by their numbers."""
    children = " ".join(each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/children"))
    return {pid}.union(*(descendants(int(child)) for child in children.split()))


def arguments(pid):
    """What a process was started with; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
