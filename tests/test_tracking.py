"""What trackers were sent, read back from where they keep it."""

import json
import math
import struct
import time

import pytest
from made_runs import make_run, records

from visus.errors import UsageError
from visus.runs import RunFolder
from visus.tracking import check_tracker, open_tracker, scalars

SETTINGS = {"model": "small", "lr": 0.1, "milestones": [1, 2]}


@pytest.fixture
def run(tmp_path):
    return RunFolder(make_run(tmp_path / "run", ["x", "y"]))


def track(name, run, epochs, *, begin=1, warn=pytest.fail):
    """As the loop does: all records so far, after each epoch from `begin` on."""
    with open_tracker(name, run, SETTINGS, warn) as send:
        for epoch in range(begin, epochs + 1):
            send(list(records(epoch, 60, 0.1)))


def read_events(run):
    """The scalars in the run's event files: by name, (epoch, value)."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(run.path / "tensorboard"), {reading.SCALARS: 0})
    events.Reload()
    return {
        name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]
    }


def expected(epochs):
    found = {}
    for record in records(epochs, 60, 0.1):
        for name, value in scalars(record).items():
            found.setdefault(name, []).append((record["epoch"], pytest.approx(value)))
    return found


def test_tensorboard_reads_back_every_figure(run):
    pytest.importorskip("tensorboard")
    track("tensorboard", run, 3)
    assert read_events(run) == expected(3)
    assert len(expected(3)) == 7


def test_a_run_that_is_resumed_has_each_epoch_once_in_tensorboard(run):
    pytest.importorskip("tensorboard")
    track("tensorboard", run, 3)
    # Killed after its third epoch and cut back to the second.
    track("tensorboard", run, 4, begin=3)
    assert read_events(run) == expected(4)


# SQLAlchemy's, of how MLflow asks it.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_mlflow_keeps_metrics_and_settings(run, tmp_path, monkeypatch):
    # Asked for when it is imported.
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow")
    # Its own default is such a file in the folder where it is started.
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    track("mlflow", run, 2)
    track("mlflow", run, 4, begin=3)
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("visus").experiment_id])
    assert found.data.params["model"] == "small"
    for name, values in expected(4).items():
        history = client.get_metric_history(found.info.run_id, name)
        assert [(each.step, each.value) for each in history] == values


def test_wandb_takes_a_run_offline(run, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    track("wandb", run, 3)
    (store,) = (run.path / "wandb").glob("offline-run-*/run-*.wandb")
    rows = []
    for message in written(store, Record.FromString):
        if message.WhichOneof("record_type") == "history":
            values = {
                each.key or each.nested_key[0]: json.loads(each.value_json) for each in message.history.item
            }
            rows.append({key: value for key, value in values.items() if not key.startswith("_")})
    assert rows == [
        {name: dict(values)[epoch] for name, values in expected(3).items()} for epoch in (1, 2, 3)
    ]


def written(store, read):
    """The records of a wandb file, once the last is there: a process of wandb's own writes it, and may still be at it."""
    for _ in range(300):
        found = [read(data) for data in log_entries(store.read_bytes())]
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.1)
    raise AssertionError(f"{store} has no end")


def log_entries(content):
    """The entries of a wandb file: LevelDB's log format, in blocks of 32 KiB, behind a header of 7 bytes."""
    place, parts = 7, []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        # 1 is a whole entry, 2, 3 and 4 are its first, a middle and its last part.
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def test_a_tracker_that_fails_is_said_once_and_stops_nothing(run, monkeypatch):
    pytest.importorskip("tensorboard")
    said = []
    (run.path / "tensorboard").write_text("in the way")
    track("tensorboard", run, 3, warn=said.append)
    assert len(said) == 1
    assert "takes no more metrics" in said[0]


def test_a_mistyped_tracker_is_named_and_a_missing_one_says_what_to_install(monkeypatch):
    with pytest.raises(UsageError, match="expected one of tensorboard, mlflow, wandb"):
        check_tracker("tensorbord")
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UsageError, match=r"pip install 'visus\[track\]'"):
        check_tracker("wandb")


def test_what_is_no_number_is_not_sent():
    (first, *_) = records(1, 60, 0.1)
    assert "loss/train" not in scalars({**first, "loss": None})
    assert "loss/train" not in scalars({**first, "loss": math.inf})
    assert set(scalars(first)) == {"loss/train", "accuracy/train", "images_per_second/train", "lr"}
