"""What goes wrong around a run: it is killed, signalled, its disk is full or read-only, its checkpoints are damaged.

`benchmarks/killtest.py` and `benchmarks/chaos.py` do with processes, again and again, what is done here once and in order.
"""

import errno
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

import visus.loop
import visus.recording
from visus import cli, finishing, training
from visus.amp import usable_types
from visus.checkpoint import load_checkpoint
from visus.config import make_config
from visus.display import Display
from visus.errors import CheckpointError, NonFiniteError
from visus.ops.averaging import ExponentialAverage
from visus.recording import RunRecorder
from visus.runs import RunFolder

COMMON = {"model": "small", "augment": "light", "amp": "off", "threads": 1, "lr": 0.01, "batch_size": 30}
DURATIONS = ("seconds", "images_per_second")


class Killed(BaseException):
    """A process that is no more: nothing is written after it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """220 of the digits: 200 to train on, 7 batches an epoch."""
    archive = np.load(files("visus.data").joinpath("builtin/digits.npz"))
    path = tmp_path_factory.mktemp("data") / "some.npz"
    np.savez(path, images=archive["images"][:220], labels=archive["labels"][:220])
    return str(path)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """They take longer than these runs do, and are tested elsewhere."""
    monkeypatch.setattr(RunRecorder, "draw_curves", lambda self, records: None)
    monkeypatch.setattr(finishing, "plot_confusion", lambda *arguments, **options: None)


def config(data, out, **settings):
    options = {"epochs": 3, "checkpoint_every": "2steps", **COMMON, **settings}
    return make_config(data=data, out=str(out), name="run", **options)


def at_step(monkeypatch, step, act):
    """Call `act` where the loop asks after that step whether a checkpoint is due, everything before being written."""
    due = RunRecorder.due

    def ask(recorder, now):
        if now == step:
            recorder.flush()
            act()
        return due(recorder, now)

    monkeypatch.setattr(RunRecorder, "due", ask)


def kill():
    raise Killed


def kill_at(monkeypatch, step, run):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_step(patch, step, kill)
        run()


def metrics(run):
    records = RunFolder(run).records()
    return [{k: v for k, v in each.items() if k not in DURATIONS} for each in records]


def digests(run):
    folder = RunFolder(run)
    return {path.name: load_checkpoint(path).document["digest"] for path in (folder.last, folder.best)}


SETTINGS = [
    {"optimizer": "sgd"},
    {"optimizer": "adamw", "ema": True, "ema_decay": 0.9},
    {"optimizer": "sgd", "accumulate": 3, "clip_grad": 1.0},
    {"optimizer": "sgd", "ema": True, "schedule": "cosine", "warmup_epochs": 1.0},
    {"optimizer": "adamw", "schedule": "onecycle", "accumulate": 2},
    {"optimizer": "sgd", "schedule": "constant", "label_smoothing": 0.1},
    {"optimizer": "adamw", "schedule": "onecycle", "ema": True, "clip_grad": 0.5, "label_smoothing": 0.1},
    {"mixup": 0.4, "cutmix": 1.0, "erasing": 0.5, "augment": "rand", "accumulate": 2},
    {"amp": "bf16", "optimizer": "adamw", "ema": True, "augment": "trivial"},
    # Dropout and stochastic depth.
    pytest.param({"model": "efficientnet_b0", "accumulate": 2}, marks=pytest.mark.slow),
]
MATRIX = [
    dict(
        zip(("optimizer", "ema", "accumulate", "clip_grad", "schedule", "label_smoothing"), each, strict=True)
    )
    for each in itertools.product(
        ("sgd", "adamw"),
        (False, True),
        (1, 3),
        (None, 1.0),
        ("multistep", "cosine", "onecycle", "constant"),
        (0.0, 0.1),
    )
]


def check_that_a_killed_run_ends_as_the_whole_one(monkeypatch, tmp_path, data, settings, steps):
    whole = training.train(config(data, tmp_path / "whole", **settings))
    run = tmp_path / "killed" / "run"
    kill_at(monkeypatch, steps[0], lambda: training.train(config(data, tmp_path / "killed", **settings)))
    for step in steps[1:]:
        kill_at(monkeypatch, step, lambda: training.resume(str(run)))
    resumed = training.resume(str(run))
    assert resumed.digest == whole.digest
    assert digests(run) == digests(whole.run)
    assert metrics(run) == metrics(whole.run)
    assert (resumed.best, resumed.final, resumed.steps) == (whole.best, whole.final, whole.steps)
    assert set(os.listdir(run)) == set(os.listdir(whole.run))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_killed_run_ends_as_the_whole_one(monkeypatch, tmp_path, data, settings):
    if settings.get("amp") == "bf16" and "bf16" not in usable_types(torch.device("cpu")):
        pytest.skip("no bf16 here")
    middle = -(-7 // settings.get("accumulate", 1)) * 3 // 2
    check_that_a_killed_run_ends_as_the_whole_one(monkeypatch, tmp_path, data, settings, [middle])


@pytest.mark.slow
@pytest.mark.parametrize("settings", MATRIX, ids=str)
def test_a_run_that_is_killed_thrice_ends_as_the_whole_one(monkeypatch, tmp_path, data, settings):
    steps = [1, 5, 8] if settings["accumulate"] == 3 else [1, 9, 20]
    check_that_a_killed_run_ends_as_the_whole_one(monkeypatch, tmp_path, data, settings, steps)


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_an_epoch_that_is_gone_on_with_has_the_rate_it_began_with(monkeypatch, tmp_path, data, schedule):
    whole = training.train(config(data, tmp_path / "whole", schedule=schedule))
    kill_at(monkeypatch, 11, lambda: training.train(config(data, tmp_path / "killed", schedule=schedule)))
    training.resume(str(tmp_path / "killed" / "run"))
    assert metrics(tmp_path / "killed" / "run") == metrics(whole.run)


@pytest.mark.parametrize("name", ["split.csv", "environment.json"])
def test_a_run_that_is_killed_before_its_first_step_has_all_its_files_in_the_end(
    monkeypatch, tmp_path, data, name
):
    kill_at(monkeypatch, 1, lambda: training.train(config(data, tmp_path)))
    # As a process leaves it that is killed after it has written config.yaml.
    (tmp_path / "run" / name).unlink()
    training.resume(str(tmp_path / "run"))
    assert (tmp_path / "run" / name).exists()


def test_what_a_killed_write_leaves_is_gone_after_a_resume(monkeypatch, tmp_path, data):
    kill_at(monkeypatch, 5, lambda: training.train(config(data, tmp_path)))
    left = [
        ".last.safetensors.0123abcd.tmp",
        ".tmpDpDggw",
    ]  # ours, and the one that safetensors makes in our folder
    for name in left:
        (tmp_path / "run" / name).write_bytes(b"half a checkpoint")
    training.resume(str(tmp_path / "run"))
    assert not set(left) & set(os.listdir(tmp_path / "run"))


def test_a_metrics_line_that_was_cut_short_is_written_anew(monkeypatch, tmp_path, data):
    whole = training.train(config(data, tmp_path / "whole", schedule="constant"))
    run = tmp_path / "killed" / "run"
    kill_at(monkeypatch, 16, lambda: training.train(config(data, tmp_path / "killed", schedule="constant")))
    content = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(content + content[:40])
    training.resume(str(run))
    assert metrics(run) == metrics(whole.run)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_a_signal_in_mid_epoch_saves_and_says_how_to_go_on(monkeypatch, capsys, tmp_path, data, name, code):
    if not hasattr(signal, name):
        pytest.skip(f"no {name} here")
    flags = [part for key, value in COMMON.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    run = tmp_path / "a" / "run"
    command = ["visus", "train", data, *flags, "--epochs", "3", "--out", str(tmp_path / "a"), "--name", "run"]

    def visus(*arguments):
        monkeypatch.setattr(sys, "argv", list(arguments))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code

    with monkeypatch.context() as patch:
        at_step(patch, 10, lambda: os.kill(os.getpid(), getattr(signal, name)))
        assert visus(*command) == code
    log = capsys.readouterr().err
    resume = re.search(r"interrupted at step 10; go on with: (visus train --resume .*)", log)
    assert resume
    assert load_checkpoint(run / "last.safetensors").document["step"] == 10
    assert visus(*resume[1].split()) == 0
    assert "resumed from step 10" in capsys.readouterr().err
    whole = training.train(config(data, tmp_path / "whole", checkpoint_every="5m"))
    assert digests(run) == digests(whole.run)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A run of 21 steps whose predecessor is of step 20."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunRecorder, "draw_curves", lambda self, records: None)
        patch.setattr(finishing, "plot_confusion", lambda *arguments, **options: None)
        return training.train(config(data, out))


def flip(content, place):
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


DAMAGES = {
    "empty": lambda content: b"",
    "cut within the length of the header": lambda content: content[:5],
    "cut within the header": lambda content: content[:200],
    "cut in half": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "one byte long": lambda content: content + b"\0",
    "a bit of the length": lambda content: flip(content, 1),
    "a bit of the header": lambda content: flip(content, 100),
    "a bit of a tensor": lambda content: flip(content, -1000),
    "zeros, as a file that was never synced": lambda content: bytes(len(content)),
    "another file": lambda content: b"PK\x03\x04" + content,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_is_named_and_its_predecessor_used(tmp_path, finished, damage):
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    last = run / "last.safetensors"
    last.write_bytes(DAMAGES[damage](last.read_bytes()))
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        load_checkpoint(last)
    log = io.StringIO()
    resumed = training.resume(str(run), display=Display(log))
    assert re.search(r"last\.safetensors: .*; going on from previous\.safetensors", log.getvalue())
    assert "resumed from step 20" in log.getvalue()
    assert resumed.digest == finished.digest
    assert digests(run) == digests(finished.run)
    assert metrics(run) == metrics(finished.run)


def test_a_last_checkpoint_that_is_gone_is_replaced_by_its_predecessor(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    (run / "last.safetensors").unlink()
    assert training.resume(str(run)).digest == finished.digest


def test_where_both_are_damaged_nothing_is_guessed_or_overwritten(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    for name in ("last", "previous"):
        path = run / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(CheckpointError, match=r"previous\.safetensors") as caught:
        training.resume(str(run))
    assert caught.value.exit_code == 3
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def failing(monkeypatch, name, first=1, number=errno.ENOSPC):
    """Let the writes of the checkpoint `name` fail with the error `number`, from the `first` on (from 0)."""
    calls, save = itertools.count(), visus.recording.save_checkpoint

    def save_or_fail(path, *arguments, **options):
        if path.name == name and next(calls) >= first:
            raise OSError(number, os.strerror(number))
        return save(path, *arguments, **options)

    monkeypatch.setattr(visus.recording, "save_checkpoint", save_or_fail)


def test_a_best_checkpoint_that_could_not_be_written_is_said_in_the_end(monkeypatch, tmp_path, data):
    whole = training.train(config(data, tmp_path / "whole"))
    failing(monkeypatch, "best.safetensors")
    run = training.train(config(data, tmp_path / "disturbed"))
    assert run.digest == whole.digest
    assert run.best["epoch"] > 1
    assert load_checkpoint(run.checkpoints["best"]).document["epoch"] == 1
    assert run.failure


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_a_checkpoint_that_could_not_be_written_leaves_two_others(monkeypatch, tmp_path, data, number):
    failing(monkeypatch, "last.safetensors", first=3, number=number)
    found = training.train(config(data, tmp_path))
    assert os.strerror(number) in found.failure
    run = RunFolder(found.run)
    assert load_checkpoint(run.last).document["step"] == 6
    assert load_checkpoint(run.previous).document["step"] == 4
    assert not run.previous.samefile(run.last)


def test_metrics_lines_that_could_not_be_written_are_written_with_the_next(monkeypatch, tmp_path, data):
    write, failures = RunFolder.write_records, iter([False, True])

    def write_or_fail(self, records):
        if next(failures, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, records)

    monkeypatch.setattr(RunFolder, "write_records", write_or_fail)
    run = training.train(config(data, tmp_path))
    assert run.failure is None
    assert [each["epoch"] for each in metrics(run.run) if each["phase"] == "train"] == [1, 2, 3]


def killed_where_previous_is_kept(monkeypatch, run, **changes):
    """Resume, and die between the moment where `last` becomes `previous` and that where the new one takes its place."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        keep = RunRecorder._keep_previous

        def keep_and_die(recorder):
            keep(recorder)
            raise Killed

        patch.setattr(RunRecorder, "_keep_previous", keep_and_die)
        training.resume(str(run), **changes)


def test_a_damaged_last_checkpoint_never_becomes_the_previous_one(monkeypatch, tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    last = run / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    killed_where_previous_is_kept(monkeypatch, run)
    assert training.resume(str(run)).digest == finished.digest


def test_a_last_checkpoint_that_is_not_for_this_version_is_not_passed_over(monkeypatch, tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    content = (run / "last.safetensors").read_bytes()
    (run / "last.safetensors").write_bytes(content.replace(b'\\"format\\":1', b'\\"format\\":2'))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(CheckpointError, match="written by a newer visus"):
        training.resume(str(run))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_change_that_begins_an_epoch_anew_does_so_again_after_a_kill(monkeypatch, tmp_path, data):
    kill_at(monkeypatch, 10, lambda: training.train(config(data, tmp_path, checkpoint_every="5steps")))
    run = tmp_path / "run"
    twice = tmp_path / "twice"
    shutil.copytree(run, twice)
    changes = {"batch_size": 20, "checkpoint_every": "5m", "allow_change": ["batch-size"]}
    whole = training.resume(str(run), **changes)
    kill_at(monkeypatch, 11, lambda: training.resume(str(twice), **changes))
    again = training.resume(str(twice))
    assert (again.digest, again.steps) == (whole.digest, whole.steps)
    assert metrics(twice) == metrics(run)


def test_metrics_that_were_lost_come_from_the_checkpoint(monkeypatch, tmp_path, data, finished):
    for lost in (None, b"", b'{"epoch": 1\nnonsense\n'):
        run = tmp_path / f"run {lost}"
        shutil.copytree(finished.run, run)
        (run / "metrics.jsonl").unlink()
        if lost is not None:
            (run / "metrics.jsonl").write_bytes(lost)
        resumed = training.resume(str(run))
        assert metrics(run) == metrics(finished.run)
        assert [list(each) for each in metrics(run)] == [list(each) for each in metrics(finished.run)]
        assert resumed.final == finished.final


def test_a_best_checkpoint_that_could_not_be_written_is_tried_again(monkeypatch, tmp_path, data):
    whole = training.train(config(data, tmp_path / "whole"))
    save, failures = visus.recording.save_checkpoint, iter([True])

    def save_or_fail(path, taken, document, **options):
        last_best = path.name == "best.safetensors" and document["epoch"] == whole.best["epoch"]
        if last_best and next(failures, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(path, taken, document, **options)

    monkeypatch.setattr(visus.recording, "save_checkpoint", save_or_fail)
    run = training.train(config(data, tmp_path / "disturbed"))
    assert next(failures, None) is None
    assert run.failure is None
    assert digests(run.run) == digests(whole.run)


def test_the_predecessor_stays_where_the_new_one_cannot_be_synced(monkeypatch, tmp_path, data):
    fsync, big = os.fsync, itertools.count()

    def fail_for_checkpoints(descriptor):
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if ".last.safetensors." in path and next(big) >= 4:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_checkpoints)
    run = RunFolder(training.train(config(data, tmp_path)).run)
    steps = [load_checkpoint(path).document["step"] for path in (run.last, run.previous)]
    assert steps[0] > steps[1]


def test_weights_that_are_not_finite_are_never_a_checkpoint(monkeypatch, tmp_path, data):
    def spoil(self, model, *arguments):
        next(model.parameters()).data.fill_(float("nan"))

    with monkeypatch.context() as patch, pytest.raises(NonFiniteError, match=r"weights .* step 10"):
        patch.setattr(
            ExponentialAverage, "update", lambda self, model, step: step == 9 and spoil(self, model)
        )
        training.train(config(data, tmp_path, checkpoint_every="1step", ema=True))
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").document["step"] == 9


def test_nothing_is_written_any_more_once_a_run_has_ended(monkeypatch, tmp_path, data):
    save = visus.recording.save_checkpoint

    def save_slowly(path, *arguments, **options):
        time.sleep(0.5)
        return save(path, *arguments, **options)

    monkeypatch.setattr(visus.recording, "save_checkpoint", save_slowly)

    def fail():
        monkeypatch.setattr(visus.loop, "_stop_if_not_finite", refuse)

    def refuse(*arguments, **options):
        raise NonFiniteError("as it happens")

    due = RunRecorder.due
    monkeypatch.setattr(RunRecorder, "due", lambda self, step: (step == 3 and fail()) or due(self, step))
    with pytest.raises(NonFiniteError):
        training.train(config(data, tmp_path))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    time.sleep(1)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    assert "last.safetensors" in before
    assert not [name for name in before if name.endswith(".tmp")]


@pytest.mark.skipif(os.name != "posix", reason="no permission bits")
def test_checkpoints_may_be_read_by_whom_the_other_files_may(finished):
    run = RunFolder(finished.run)
    assert run.best.stat().st_mode == run.config.stat().st_mode


SAVING = """
import sys, torch
from visus.files import write_json
from visus.recording import RunRecorder
from visus.runs import RunFolder

recorder = RunRecorder(RunFolder(sys.argv[1]), keep="all")
for step in (1, 2):
    plain = {"epoch": 0, "step": step, "best_accuracy": None}
    recorder.save_best({"model.weight": torch.full((9,), float(step))}, plain)
    recorder.save_last({"model.weight": torch.full((9,), float(step))}, plain)
recorder.flush()
write_json(recorder.run.summary, {"step": 2})
"""
CALLS = "write,pwrite64,writev,pwritev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,link,linkat"


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """The system calls of a process that saves twice, in their order, each thread apart; and the run's folder."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    folder = tmp_path_factory.mktemp("trace")
    run, calls = folder / "run", folder / "calls"
    run.mkdir()
    calls.mkdir()
    command = [
        "strace",
        "-ff",
        "-y",
        "-s",
        "0",
        "-e",
        "signal=none",
        "-e",
        f"trace={CALLS}",
        "-o",
        calls / "t",
    ]
    if subprocess.run([*command[:-1], calls / "u", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here")
    subprocess.run([*command, sys.executable, "-c", SAVING, run], check=True, capture_output=True)
    return [path.read_text().splitlines() for path in calls.glob("t.*")], run


def renames(trace):
    """Of each rename in the run's folder: source, target, the calls before it and those after it, in its thread."""
    threads, run = trace
    for lines in threads:
        for number, line in enumerate(lines):
            paths = re.findall(r'"([^"]+)"', line)
            if re.match("rename", line) and paths[1].startswith(f"{run}/") and line.endswith("= 0"):
                yield Path(paths[0]), Path(paths[1]), lines[:number], lines[number + 1 :]


def published(trace):
    """The renames that put a file where readers look."""
    return [each for each in renames(trace) if not each[1].name.startswith(".")]


def test_every_file_is_synced_before_it_takes_its_place(trace):
    targets = [target.name for _, target, _, _ in published(trace)]
    numbered = ["step-1.safetensors", "step-2.safetensors"]
    named = ["best.safetensors", "best.safetensors", "last.safetensors", "last.safetensors"]
    assert sorted(targets) == sorted([*named, *numbered, "previous.safetensors", "summary.json"])
    for source, _, before, _ in published(trace):
        # safetensors writes to a temporary file of its own and renames it to ours.
        names = {source, *(origin for origin, target, _, _ in renames(trace) if target == source)}
        about = [line for line in before if any(f"{name}>" in line for name in names)]
        assert re.match(r"(fsync|fdatasync)\(", about[-1])
        assert about[-1].rstrip().endswith("= 0")


def test_its_folder_is_synced_after_that_and_before_anything_else(trace):
    for _, target, _, after in published(trace):
        assert re.match(r"fsync\(\d+<(.*)>\)", after[0])[1] == str(target.parent)


def test_the_best_is_there_before_the_last_that_speaks_of_it(trace):
    targets = [target.name for _, target, _, _ in published(trace)]
    assert targets.index("best.safetensors") < targets.index("last.safetensors")


DISTURBED = """
import json, subprocess, sys
from pathlib import Path
import visus.display
from visus import cli, training
from visus.checkpoint import load_checkpoint
from visus.recording import RunRecorder
from visus.runs import RunFolder

out, how, begin, end = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
run = RunFolder(out / "run")

def fill():
    with (out / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass

def make_read_only():
    subprocess.run(["mount", "--bind", run.path, run.path], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", run.path], check=True)

start, stop = {
    "full": (fill, lambda: (out / "ballast").unlink()),
    "read-only": (make_read_only, lambda: subprocess.run(["umount", run.path], check=True)),
}[how]

class Disturbing(visus.display.Display):
    def epoch(self, epoch, *arguments):
        super().epoch(epoch, *arguments)
        recorder.flush()
        if epoch == begin:
            start()
        if epoch == end:
            stop()

class Known(RunRecorder):
    def __init__(self, *arguments, **options):
        global recorder
        super().__init__(*arguments, **options)
        recorder = self

visus.display.Display, training.RunRecorder = Disturbing, Known
sys.argv = ["visus", "train", *sys.argv[5:], "--out", str(out), "--name", "run"]
try:
    cli.main()
except SystemExit as end:
    code = end.code
steps = {}
for path in (run.last, run.previous, run.best):
    if path.exists():
        steps[path.name] = load_checkpoint(path).document["step"]
epochs = [record["epoch"] for record in run.records() if record["phase"] == "val"]
left = [path.name for path in run.path.glob(".*")]
print(json.dumps({"code": code, "steps": steps, "epochs": epochs, "left": left}))
"""


def disturbed(tmp_path, data, how, begin, end=99):
    """A run of 4 epochs of 7 steps in a file system of 30 MB, disturbed from epoch `begin` (from 0) until `end`."""
    mounted = 'mount -t tmpfs -o size=30m tmpfs . && cd . && exec "$@"'
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, "sh"]
    if subprocess.run([*namespace, "true"], cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here without privileges (unshare, mount)")
    flags = [part for key, value in COMMON.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    flags += ["--epochs", "4", "--checkpoint-every", "3steps", "--keep", "all", "--schedule", "constant"]
    script = [sys.executable, "-c", DISTURBED, tmp_path, how, str(begin), str(end), data, *flags]
    done = subprocess.run([*namespace, *script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_disk_that_fills_up_in_mid_training_costs_nothing_that_was_there(tmp_path, data):
    found, log = disturbed(tmp_path, data, "full", 1)
    assert found["code"] == 1
    assert re.search(r"last\.safetensors: could not be written \(.*No space left on device", log)
    assert "Epoch 4/4" in log
    assert found["steps"]["last.safetensors"] == 7
    assert set(found["steps"]) == {"last.safetensors", "previous.safetensors", "best.safetensors"}
    assert found["left"] == []


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_beginning_is_no_fault_of_ours(tmp_path, data):
    found, log = disturbed(tmp_path, data, "full", 0)
    assert "Epoch 4/4" in log
    assert found["code"] == 1


def test_a_folder_that_becomes_read_only_costs_nothing_that_was_there(tmp_path, data):
    found, log = disturbed(tmp_path, data, "read-only", 1)
    assert re.search(r"last\.safetensors: could not be written \(Read-only file system", log)
    assert "Epoch 4/4" in log
    assert (found["steps"]["last.safetensors"], found["steps"]["previous.safetensors"]) == (7, 6)
    assert found["code"] == 1, log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason"), [("full", "No space left on device"), ("read-only", "Read-only file system")]
)
def test_a_folder_that_can_be_written_to_again_has_everything_in_it(tmp_path, data, how, reason):
    found, log = disturbed(tmp_path, data, how, 1, 3)
    assert reason in log
    assert found["steps"]["last.safetensors"] == 28
    assert found["epochs"] == [1, 2, 3, 4]
