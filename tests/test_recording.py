"""A run that writes its folder, is stopped, and goes on from there."""

import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch

import visus.recording
from visus.checkpoint import load_checkpoint, model_digest
from visus.data.batching import EvaluationBatches, TrainingBatches, measure_preprocessing
from visus.data.sources import open_source
from visus.display import Progress
from visus.errors import Interrupted, UsageError
from visus.loop import fit
from visus.models.small import SmallNet
from visus.recording import RunRecorder, parse_interval
from visus.runs import create_run, read_history
from visus.state import TrainingState, restore

DATA = open_source("digits")
TRAIN = DATA.train.subset(torch.arange(150).numpy())
RECORD = measure_preprocessing(TRAIN)
BATCHES = TrainingBatches(TRAIN, RECORD, 30, "light")
VAL = EvaluationBatches(DATA.val, RECORD, 60)


def begin():
    torch.manual_seed(0)
    model = SmallNet(10, 1)
    return TrainingState(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))


def train(state, recorder, **options):
    return fit(
        state.model,
        BATCHES,
        VAL,
        optimizer=state.optimizer,
        epochs=3,
        state=state,
        recorder=recorder,
        **options,
    )


class StopAt:
    exit_code = 130

    def __init__(self, state, step):
        self.state, self.step = state, step

    @property
    def received(self):
        return self.state.step >= self.step


def digest(path):
    return load_checkpoint(path).document["digest"]


def without_durations(run):
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in run.records()]


def test_a_run_leaves_metrics_checkpoints_and_curves(tmp_path):
    state, recorder = begin(), RunRecorder(create_run(tmp_path, "a"))
    history = train(state, recorder)
    run = recorder.run
    names = {"metrics.jsonl", "best.safetensors", "last.safetensors", "previous.safetensors"}
    assert set(os.listdir(run.path)) == names | {"loss.png", "accuracy.png", "loss_accuracy.png"}
    last, best = load_checkpoint(run.last), load_checkpoint(run.best)
    assert last.document["digest"] == model_digest(state.model.state_dict())
    assert (last.document["epoch"], last.document["step"]) == (3, 15)
    assert best.document["accuracy"] == max(history["acc"]["val"])
    assert not any(name.startswith("optimizer") for name in best.tensors)
    run.config.write_text("")
    assert read_history(run.path) == history


@pytest.mark.parametrize("step", [2, 5, 8, 14])
def test_a_run_goes_on_from_its_folder_to_the_same_bits(tmp_path, step):
    whole = RunRecorder(create_run(tmp_path, "whole"))
    train(begin(), whole)
    recorder, state = RunRecorder(create_run(tmp_path, "a")), begin()
    with pytest.raises(Interrupted, match=f"at step {step}; go on with: visus train --resume") as caught:
        train(state, recorder, stop=StopAt(state, step))
    assert caught.value.exit_code == 130

    resumed = begin()
    checkpoint = load_checkpoint(recorder.run.last)
    restore(resumed, checkpoint.tensors, checkpoint.document["state"], checkpoint.path)
    recorder.run.cut_back(resumed.epoch)
    again = RunRecorder(recorder.run)
    train(resumed, again)
    assert digest(again.run.last) == digest(whole.run.last)
    assert without_durations(again.run) == without_durations(whole.run)
    assert digest(again.run.best) == digest(whole.run.best)


def test_checkpoints_are_written_by_step(tmp_path, monkeypatch):
    steps = []
    recorder = RunRecorder(create_run(tmp_path, "a"), every="2steps")
    monkeypatch.setattr(recorder, "save_last", lambda tensors, plain: steps.append(plain["step"]))
    train(begin(), recorder)
    assert steps == [2, 4, 5, 6, 8, 10, 10, 12, 14, 15]


def test_how_far_the_epoch_is_can_be_read_while_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(visus.recording, "_PROGRESS_SECONDS", 0.0)
    recorder = RunRecorder(create_run(tmp_path, "a"))
    seen = []

    def schedule(step):
        if recorder.run.progress.exists():
            seen.append(json.loads(recorder.run.progress.read_text()))
        return 1.0

    train(begin(), recorder, schedule=schedule)
    places = [(each["epoch"], each["epochs"], each["iteration"], each["iterations"]) for each in seen]
    assert list(dict.fromkeys(places)) == [(e, 3, i, 5) for e in (1, 2, 3) for i in range(1, 5)]
    assert [each["n"] for each in seen[-2:]] == [90, 120]
    assert {tuple(each) for each in seen} == {
        ("epoch", "epochs", "iteration", "iterations", "seconds", "loss", "correct", "n")
    }
    assert not recorder.run.progress.exists()


def test_a_failure_to_tell_of_progress_is_none_of_the_runs_business(tmp_path, monkeypatch):
    warnings = []
    with RunRecorder(create_run(tmp_path, "a"), warn=warnings.append) as recorder:
        recorder.write_progress(0, 3, Progress(1, 5, 1.0, math.inf, math.nan, 1, 30))
        assert json.loads(recorder.run.progress.read_text())["loss"] is None
        before = recorder.run.progress.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", refuse)
            recorder.write_progress(0, 3, Progress(2, 5, 1.0, 0.5, 0.5, 1, 60))
            patch.setattr(Path, "unlink", refuse)
            recorder.end_progress()
        assert recorder.run.progress.read_bytes() == before
    assert not recorder.run.progress.exists()
    assert warnings == []
    assert recorder.failure is None


def refuse(*_, **__):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_what_a_killed_run_told_of_its_epoch_is_gone_when_it_goes_on(tmp_path):
    run = create_run(tmp_path, "a")
    run.progress.write_text("{}")
    run.remove_leftovers()
    assert not run.progress.exists()


def test_a_full_disk_does_not_end_the_run_and_loses_nothing(tmp_path, monkeypatch):
    warnings = []
    recorder = RunRecorder(create_run(tmp_path, "a"), warn=warnings.append)
    state = begin()
    fit(state.model, BATCHES, VAL, optimizer=state.optimizer, epochs=1, state=state, recorder=recorder)
    good = recorder.run.last.read_bytes()

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(visus.recording, "save_checkpoint", full)
        fit(state.model, BATCHES, VAL, optimizer=state.optimizer, epochs=2, state=state, recorder=recorder)
    assert recorder.run.last.read_bytes() == good
    assert "No space left on device" in recorder.failure
    assert any("last.safetensors" in warning for warning in warnings)
    train(state, recorder)
    assert recorder.failure is None
    assert load_checkpoint(recorder.run.last).document["epoch"] == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5m", (300, None)),
        ("30s", (30, None)),
        ("0.5h", (1800, None)),
        ("500steps", (None, 500)),
        ("1step", (None, 1)),
    ],
)
def test_intervals(text, expected):
    assert parse_interval(text) == expected


@pytest.mark.parametrize("text", ["", "5", "m", "-1s", "0s", "5 m", "five"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(UsageError, match="interval"):
        parse_interval(text)


def test_metrics_are_one_json_object_a_line(tmp_path):
    recorder = RunRecorder(create_run(tmp_path, "a"))
    train(begin(), recorder)
    lines = recorder.run.metrics.read_text().splitlines()
    assert [(json.loads(line)["epoch"], json.loads(line)["phase"]) for line in lines][:3] == [
        (1, "train"),
        (1, "val"),
        (2, "train"),
    ]


def test_checkpoints_are_due_by_time_and_again_soon_after_a_failure(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(visus.recording.time, "monotonic", lambda: now[0])
    recorder, tensors = RunRecorder(create_run(tmp_path, "a"), every="5m"), {"model.x": torch.zeros(1)}
    plain = {"epoch": 0, "step": 1, "best_accuracy": None}

    def due_after(seconds):
        now[0] += seconds
        return recorder.due(1)

    assert not due_after(299)
    assert due_after(1)
    recorder.save_last(tensors, plain)
    recorder.flush()
    assert not due_after(299)
    assert due_after(1)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(visus.recording, "save_checkpoint", full)
    recorder.save_last(tensors, plain)
    recorder.flush()
    assert not due_after(9)
    assert due_after(1)
