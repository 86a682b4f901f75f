"""A search: it ends where it was asked to, goes on with what was killed, and is shared by processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from listening import Listening
from PIL import Image

from visus.checkpoint import load_checkpoint
from visus.errors import UsageError, VisusError
from visus.testing import evaluate_checkpoint
from visus.tuning import Span, read_space, tune

optuna = pytest.importorskip("optuna")

SPACE = {
    "lr": Span(0.01, 0.5, log=True),
    "batch_size": Span(50, 150, step=50),
    "schedule": ["onecycle", "constant"],
}
SETTINGS = {
    "data": "digits",
    "model": "small",
    "augment": "none",
    "epochs": 1,
    "amp": "off",
    "threads": 1,
    "split_seed": 0,
}


def test_a_search_ends_after_its_trials_and_says_what_was_best(tmp_path):
    settings = {**SETTINGS, "epochs": 2, "out": str(tmp_path / "study")}
    found = tune(settings, SPACE, trials=2)
    assert [each.number for each in found.trials] == [0, 1]
    assert {each.state for each in found.trials} == {"complete"}
    assert found.best.accuracy == max(each.accuracy for each in found.trials)
    best = json.loads((Path(found.best.run) / "summary.json").read_text())
    assert best["best"]["accuracy"] == found.best.accuracy
    assert found.test == best["test"]
    assert set(found.best.settings) == set(SPACE)
    assert 0.01 <= found.best.settings["lr"] <= 0.5
    assert found.best.settings["batch_size"] in (50, 100, 150)
    low, high = found.accuracy_ci95
    assert low < found.best.accuracy < high
    assert json.loads(json.dumps(found.to_json()))["best"]["number"] == found.best.number
    assert str(found).splitlines()[0].split() == [
        "trial",
        "state",
        "accuracy",
        "batch_size",
        "lr",
        "schedule",
    ]

    # The same call trains nothing more; one for another trial goes on.
    assert tune(settings, SPACE, trials=2).trials == found.trials
    more = tune(settings, SPACE, trials=3)
    assert more.trials[:2] == found.trials
    assert len(more.trials) == 3

    with pytest.raises(UsageError, match="searches another space"):
        tune(settings, {"lr": [0.1, 0.2]}, trials=4)
    (tmp_path / "study" / "study.db").unlink()
    with pytest.raises(UsageError, match=r"expected study\.db beside its trials"):
        tune(settings, SPACE, trials=4)


def write_grouped(folder, *, tested, together):
    """A table of forty images to train on, thirty to validate on, and, where `tested`, thirty to test, each part in groups of
    `together`."""
    parts = ["train"] * 40 + ["val"] * 30 + ["test"] * (30 if tested else 0)
    rows = []
    for place, part in enumerate(parts):
        bright = place % 2 * 60
        pixels = np.random.default_rng(place).integers(bright, bright + 190, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
        group = f"{part}-{(place - parts.index(part)) // together}"
        rows.append([f"{place}.png", "cat" if place % 2 else "dog", part, group])
    with (folder / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split", "group"], *rows])
    return str(folder / "t.csv")


@pytest.mark.parametrize("tested", [True, False])
def test_the_interval_of_the_best_counts_groups_of_images(tmp_path, tested):
    table = write_grouped(tmp_path, tested=tested, together=5)
    settings = {**SETTINGS, "data": table, "device": "cpu", "out": str(tmp_path / "study")}
    found = tune(settings, {"lr": [0.05]}, trials=1)
    best = load_checkpoint(Path(found.best.run) / "best.safetensors")
    scores = evaluate_checkpoint(best, table, part="val", device="cpu").scores
    assert (scores.groups, scores.accuracy) == (6, found.best.accuracy)
    assert (found.groups, tuple(found.accuracy_ci95)) == (6, scores.accuracy_ci95)
    assert found.to_json()["groups"] == 6
    assert "of the validation images (95 % interval over 6 groups " in str(found)
    assert ("on the 30 test images: " in str(found)) == tested
    if tested:
        assert found.test["groups"] == 6
        assert "% (over 6 groups " in str(found)


def test_a_validation_part_of_one_group_is_said(tmp_path):
    table = write_grouped(tmp_path, tested=False, together=40)
    said = Listening()
    settings = {**SETTINGS, "data": table, "device": "cpu", "out": str(tmp_path / "study")}
    found = tune(settings, {"lr": [0.05]}, trials=1, display=said)
    assert found.groups is None
    assert said.lines[-1] == (
        "validation: all images are of one group: intervals are over images, and hold for others of that group only"
    )


def test_searches_of_one_seed_try_the_same(tmp_path):
    found = [tune({**SETTINGS, "out": str(tmp_path / name)}, SPACE, trials=1) for name in ("a", "b")]
    other = tune({**SETTINGS, "seed": 1, "out": str(tmp_path / "c")}, SPACE, trials=1)
    assert found[0].trials[0].settings == found[1].trials[0].settings != other.trials[0].settings
    assert found[0].best.accuracy == found[1].best.accuracy


def test_trials_that_fall_behind_are_ended_and_failures_are_none(tmp_path, monkeypatch):
    # Each trial is worse than the one before; a rate beyond reason ends in numbers that are none.
    rates = iter([0.1, 0.1, 0.1, 0.1, 0.1, 1e-9, 1e30, 0.1])
    monkeypatch.setattr("visus.tuning._suggest", lambda trial, space: {"lr": next(rates)})
    monkeypatch.setattr("visus.tuning._UNPRUNED", 2)
    found = tune({**SETTINGS, "epochs": 3, "out": str(tmp_path)}, {"lr": [0.1]}, trials=7)
    states = [each.state for each in found.trials]
    assert states[5:] == ["pruned", "failed", "complete"]
    assert found.trials[6].accuracy is None
    assert found.best.number not in (5, 6)


def test_a_killed_search_goes_on_with_the_trial_that_was_under_way(tmp_path, monkeypatch):
    out = tmp_path / "study"
    command = "from visus.tuning import Span, tune; import sys, json; tune(json.loads(sys.argv[1]), {'lr': [0.1, 0.05]}, trials=2)"
    settings = {**SETTINGS, "epochs": 30, "out": str(out)}
    process = subprocess.Popen([sys.executable, "-c", command, json.dumps(settings)])
    deadline = time.monotonic() + 120
    while not (out / "trial-0" / "last.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len((out / "trial-0" / "metrics.jsonl").read_text().splitlines()) // 2
    assert 1 <= done < 30

    monkeypatch.setattr("visus.tuning._SETTLED_SECONDS", 0.0)
    found = tune(settings, {"lr": [0.1, 0.05]}, trials=1)
    assert [each.state for each in found.trials] == ["complete"]
    assert len((out / "trial-0" / "metrics.jsonl").read_text().splitlines()) == 60
    assert sorted(os.listdir(out)) == ["study.db", "study.lock", "trial-0"]


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path):
    out = tmp_path / "study"
    settings = {**SETTINGS, "out": str(out)}
    command = (
        "from visus.tuning import Span, tune; import sys, json; "
        "tune(json.loads(sys.argv[1]), {'lr': Span(0.01, 0.5, log=True)}, trials=4)"
    )
    both = [subprocess.Popen([sys.executable, "-c", command, json.dumps(settings)]) for _ in range(2)]
    assert [process.wait(timeout=240) for process in both] == [0, 0]
    found = tune(settings, {"lr": Span(0.01, 0.5, log=True)}, trials=4)
    # One may have begun a trial while the other ended the fourth.
    assert 4 <= len(found.trials) <= 5
    assert len({each.settings["lr"] for each in found.trials}) == len(found.trials)
    assert {each.state for each in found.trials} == {"complete"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 3", "lr: expected a list of values, or low and high"),
        ("lr: {low: 1}", "lr: expected a list of values"),
        ("- a", "expected a list of values"),
        ("", "expected a list of values"),
        ("lr: [", "cannot be read as a space"),
        ("lr: []", "lr: expected a list of values"),
        ("lr: {low: 1, high: 0.1}", "high must not be below low"),
        ("lr: {low: 0, high: 1, log: true}", "log needs a low above 0"),
        ("epochs: {low: 1, high: 9, log: true, step: 2}", "log and step do not go together"),
        ("lr: {low: .nan, high: 1}", "lr: expected a list of values"),
    ],
)
def test_a_space_that_is_none_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_space(path)


def test_a_trial_whose_settings_are_refused_has_failed_and_another_takes_its_place(tmp_path, monkeypatch):
    values = iter([{"label_smoothing": 0.1}, {"batch_size": 100}, {"batch_size": 9999}, {"batch_size": 50}])
    monkeypatch.setattr("visus.tuning._suggest", lambda trial, space: next(values))
    said = Listening()
    settings = {**SETTINGS, "loss": "focal", "out": str(tmp_path)}
    found = tune(settings, {"label_smoothing": [0.0, 0.1]}, trials=2, display=said)
    assert [each.state for each in found.trials] == ["failed", "complete", "failed", "complete"]
    assert "--loss focal and --label-smoothing" in said.lines[0]
    assert "found 9999" in said.lines[2]


def test_where_all_fails_the_search_ends(tmp_path):
    said = Listening()
    settings = {**SETTINGS, "loss": "focal", "out": str(tmp_path)}
    found = tune(settings, {"label_smoothing": [0.1]}, trials=2, display=said)
    assert ([each.state for each in found.trials], found.best) == (["failed", "failed"], None)
    assert "all 2 trials have failed" in said.lines[-1]


def test_what_is_wrong_with_all_trials_ends_the_search(tmp_path):
    settings = {**SETTINGS, "data": str(tmp_path / "nowhere"), "out": str(tmp_path / "study")}
    with pytest.raises(VisusError, match="nowhere"):
        tune(settings, {"lr": [0.1]}, trials=3)
    study = optuna.load_study(study_name="visus", storage=f"sqlite:///{tmp_path / 'study' / 'study.db'}")
    assert [each.state.name for each in study.trials] == ["FAIL"]


def test_a_span_of_a_whole_number_is_of_whole_numbers(tmp_path):
    space = {"batch_size": Span(90, 110), "accumulate": Span(1, 3, log=True)}
    found = tune({**SETTINGS, "out": str(tmp_path)}, space, trials=2)
    for each in found.trials:
        assert {type(value) for value in each.settings.values()} == {int}
        assert 90 <= each.settings["batch_size"] <= 110


def test_what_is_searched_must_exist_and_not_be_given(tmp_path):
    with pytest.raises(UsageError, match="learning_rate"):
        tune({**SETTINGS, "out": str(tmp_path)}, {"learning_rate": [0.1]}, trials=1)
    with pytest.raises(UsageError, match="epochs is searched and given"):
        tune({**SETTINGS, "out": str(tmp_path)}, {"epochs": [1, 2]}, trials=1)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"lr": [0.1, float("inf")]}, "lr: expected numbers to search, found inf"),
        ({"lr": [float("nan")]}, "lr: expected numbers to search, found nan"),
        ({"batch_size": Span(1.5, 3)}, "batch_size: expected whole numbers to search, found 1.5"),
        ({"epochs": [1, 2.5]}, "epochs: expected whole numbers to search, found 2.5"),
    ],
)
def test_what_no_trial_could_take_is_refused_before_the_study_begins(tmp_path, space, sentence):
    settings = {name: value for name, value in SETTINGS.items() if name not in space}
    with pytest.raises(UsageError, match=sentence):
        tune({**settings, "out": str(tmp_path / "study")}, space, trials=1)
    assert not (tmp_path / "study").exists()
