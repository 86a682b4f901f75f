"""Image files that two processes train on: the same bits whatever the cache and the workers, and what one process finds."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_folders import make_folder

from visus.checkpoint import load_checkpoint
from visus.runs import RunFolder

SCRIPT = Path(__file__).with_name("file_processes.py")
DURATIONS = ("seconds", "images_per_second")
WAYS = [f"2,{cache},{workers}" for cache, workers in itertools.product(("ram", "disk", "off"), (0, 2))]
# Decoded in the process itself and by others, kept and not, in one file of both and in a copy for each.
FEW = ["2,ram,0", "2,disk,2", "2,off,2"]


def train(folder, out, ways):
    command = [sys.executable, SCRIPT, folder, out, *ways]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return {way: RunFolder(next((out / way).iterdir())) for way in ways}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 19 images of several sizes, and a broken one: 34 to train on, in batches of 8, the last of them of 2."""
    return make_folder(tmp_path_factory.mktemp("images"), 39)


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    return train(folder, tmp_path_factory.mktemp("runs"), ["1,ram,0", *FEW])


def outcome(run):
    records = [{k: v for k, v in each.items() if k not in DURATIONS} for each in run.records()]
    checkpoints = [load_checkpoint(path).document for path in (run.last, run.best)]
    return [each["digest"] for each in checkpoints], checkpoints[0]["processes"], records


def test_two_processes_end_in_the_same_bits_whatever_the_cache_and_the_workers(runs):
    first, *others = (outcome(runs[way]) for way in FEW)
    assert first[1] == 2
    assert others == [first] * (len(FEW) - 1)


def test_two_processes_find_what_one_does(runs):
    alone, two = (load_checkpoint(runs[way].last).model_tensors for way in ("1,ram,0", FEW[0]))
    torch.testing.assert_close(dict(two), dict(alone), rtol=1e-3, atol=1e-4)
    for ours, expected in zip(runs[FEW[0]].records(), runs["1,ram,0"].records(), strict=True):
        assert (ours["phase"], ours["n"], ours["lr"]) == (expected["phase"], expected["n"], expected["lr"])
        # Sums in another order.
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert sum(record["n"] for record in runs[FEW[0]].records() if record["phase"] == "train") == 2 * 34


@pytest.mark.slow
def test_every_cache_with_any_workers_is_the_same_to_two_processes(folder, runs, tmp_path):
    found = train(folder, tmp_path, WAYS)
    assert [outcome(run) for run in found.values()] == [outcome(runs[FEW[0]])] * len(WAYS)
