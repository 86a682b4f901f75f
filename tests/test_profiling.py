"""Where the time went: every phase, their sum, and a trace of a few steps."""

import json
import time

import pytest
import torch

from visus.config import make_config
from visus.display import Display
from visus.profiling import PHASES, Profile
from visus.training import train


def test_time_goes_to_the_phase_that_is_under_way():
    with Profile(torch.device("cpu")) as profile:
        profile.phase("data")
        time.sleep(0.05)
        profile.phase("forward")
        time.sleep(0.15)
        profile.phase("data")
        time.sleep(0.02)
    assert profile.seconds["data"] >= 0.07
    assert profile.seconds["forward"] >= 0.15
    assert set(profile.seconds) == {"data", "forward"}


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        ({"data": 3.0, "forward": 1.0, "backward": 1.5}, "data"),
        ({"data": 2.0, "forward": 1.0, "backward": 1.5}, "model"),
        ({"validation": 2.0, "forward": 1.0}, "validation"),
        ({"checkpoint": 2.0, "curves": 2.0, "forward": 3.0}, "rest"),
    ],
)
def test_what_takes_most_limits_the_run(seconds, limit):
    profile = Profile(torch.device("cpu"))
    profile.seconds.update(seconds)
    word, sentence = profile.limit()
    assert word == limit
    share = {"data": 55, "model": 56, "validation": 67, "rest": 57}[limit]
    assert sentence.startswith(f"{share} % of the time goes to ")


def test_a_profiled_run_says_where_its_time_went_and_has_the_same_weights(tmp_path):
    settings = {
        "data": "digits",
        "model": "small",
        "epochs": 2,
        "amp": "off",
        "threads": 1,
        "out": str(tmp_path),
    }
    lines = []
    display = Display(quiet=True)
    display.line = lines.append
    profiled = train(make_config(**settings, profile=True), display=display)
    plain = train(make_config(**settings))
    assert profiled.digest == plain.digest

    folder = tmp_path / "digits-small"
    found = json.loads((folder / "profile.json").read_text())
    assert found["steps"] == profiled.steps == 26
    assert found["limit"] in ("model", "data", "rest", "validation")
    assert [each["phase"] for each in found["phases"]] == list(PHASES)
    assert sum(each["share"] for each in found["phases"]) == pytest.approx(1)
    assert found["seconds"] == pytest.approx(sum(each["seconds"] for each in found["phases"]))
    # What the loop counts as training, with validation and all, is what was measured; nothing is counted twice.
    assert profiled.seconds < found["seconds"]

    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    ours = [each["name"] for each in events if each.get("name", "").startswith("visus: ")]
    assert ours.count("visus: backward") >= 10
    assert any(each.get("name") == "aten::convolution" for each in events)
    assert any("where the time went, 26 steps" in line for line in lines)
