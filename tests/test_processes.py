"""One, two and three processes on the CPU: the same training, the same figures, and an end for all when one dies."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visus.assembling import check_shares
from visus.checkpoint import load_checkpoint
from visus.config import make_config
from visus.errors import UsageError
from visus.processes import Processes
from visus.runs import RunFolder, open_run

SCRIPT = Path(__file__).with_name("several_processes.py")
SMALL = ["train", "digits", "--model", "small", "-b", "50", "--amp", "off", "--threads", "1"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def start(size, file, *cases):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, SCRIPT, size, port, file, *cases]
    return subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False, timeout=200)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one, two, three and four processes found, by their number."""
    folder = tmp_path_factory.mktemp("found")
    cases = ["training", "tail_average", "evaluation", "normalisation"]
    others = {2: ["local_batchnorm", "local_statistics", "repeated", "unused_and_frozen"], 3: ["stopped"]}
    results = {}
    for size in (1, 2, 3, 4):
        done = start(
            size, folder / f"{size}.pt", *(cases if size < 4 else ["evaluation"]), *others.get(size, [])
        )
        assert (folder / f"{size}.pt").exists(), done.stderr
        results[size] = torch.load(folder / f"{size}.pt", weights_only=False)
    return results


@pytest.mark.parametrize("case", ["training", "tail_average"])
@pytest.mark.parametrize("size", [2, 3])
def test_training_is_that_of_one_process(found, size, case):
    ours, expected = found[size][case], found[1][case]
    torch.testing.assert_close(ours["weights"], expected["weights"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours["average"], expected["average"], rtol=1e-4, atol=1e-4)
    assert ours["history"]["acc"] == expected["history"]["acc"]
    for phase in ("train", "val"):
        assert ours["history"]["loss"][phase] == pytest.approx(expected["history"]["loss"][phase], rel=1e-5)


def test_batch_norm_by_shares_is_something_else(found):
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            found[2]["local_batchnorm"]["weights"], found[1]["training"]["weights"], rtol=1e-2, atol=1e-3
        )


def test_batch_norm_by_shares_leaves_all_with_the_same_statistics(found):
    first, second = found[2]["local_statistics"]
    assert first == second


@pytest.mark.parametrize("size", [2, 3])
def test_batch_norm_over_all_images_is_that_of_one_process(found, size):
    torch.testing.assert_close(found[size]["normalisation"], found[1]["normalisation"])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_scores_are_those_of_one_process_to_the_last_digit(found, size):
    assert found[size]["evaluation"] == found[1]["evaluation"] * size


def test_the_same_number_of_processes_gives_the_same_bits(found):
    assert len({digest for process in found[2]["repeated"] for digest in process}) == 1


def test_what_is_not_used_or_not_trained_stays_as_it_is(found):
    names = ["unused.weight", "unused.bias", "frozen.weight", "frozen.bias"]
    assert found[2]["unused_and_frozen"] == names


def test_a_signal_to_one_process_stops_all_after_the_same_step(found):
    (step, code), *others = found[3]["stopped"]
    assert (step in (3, 4), code) == (True, 143)
    assert others == [(step, code)] * 2


@pytest.mark.parametrize(
    ("size", "images", "refused"), [(1, 6, False), (3, 12, False), (3, 11, True), (4, 12, True)]
)
def test_a_share_of_one_image_has_no_batch_norm_of_its_own(size, images, refused):
    processes = Processes(0, size)
    whole = make_config(data="digits", batch_size=6)
    check_shares(whole, images, processes)
    local = dataclasses.replace(whole, batchnorm="local")
    with (
        pytest.raises(UsageError, match=r"--batchnorm local: .* found a batch of")
        if refused
        else nullcontext()
    ):
        check_shares(local, images, processes)


def test_the_end_of_one_process_is_said_and_ends_the_others(tmp_path):
    done = start(3, tmp_path / "none.pt", "one_dies")
    first, dying, third = re.findall(r"\((\d+), (-?\d+)\)", done.stdout)
    assert dying[1] == "-9"
    assert "0" not in (first[1], third[1])
    assert done.stderr.count(f"process 1 (pid {dying[0]} on") == 2
    assert "ended before its time" in done.stderr


def command(*arguments, out, processes=None, restarts=0):
    launcher = [*TORCHRUN, f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "-m", "visus"]
    return [
        *(launcher if processes else [sys.executable, "-m", "visus"]),
        *map(str, arguments),
        "--out",
        str(out),
    ]


def ranks(name):
    """The processes of a run by rank; 0 may be there twice, as the launcher has the same arguments."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = folder.joinpath("cmdline").read_bytes().split(b"\0")
            variables = folder.joinpath("environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(name).encode() in arguments and any(each.startswith(b"RANK=") for each in variables):
            rank = next(each for each in variables if each.startswith(b"RANK="))
            found[int(rank.removeprefix(b"RANK="))] = int(folder.name)
    return found


def kill_one(process, out, name):
    """Kill process 1 after the first epoch."""
    metrics = out / name / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.02)
    os.kill(ranks(out)[1], 9)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_a_run_of_two_that_lost_one_goes_on_with_one(tmp_path):
    options = [*SMALL, "--epochs", "40", "--name", "a"]
    process = subprocess.Popen(
        command(*options, out=tmp_path, processes=2), stderr=subprocess.PIPE, text=True
    )
    kill_one(process, tmp_path, "a")
    assert "process 1 (pid" in process.communicate(timeout=30)[1]
    resumed = [sys.executable, "-m", "visus", "train", "--resume", tmp_path / "a", "--json"]
    done = subprocess.run(resumed, capture_output=True, text=True, check=True)
    assert "1 processes go on with a run of 2" in done.stderr
    assert json.loads(done.stdout)["steps"] == 40 * 26


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_processes_whose_launcher_was_killed_end_with_a_checkpoint(tmp_path):
    options = [*SMALL, "--epochs", "4000", "--name", "a"]
    said = tmp_path / "said.txt"
    with said.open("w") as stream:
        launcher = subprocess.Popen(command(*options, out=tmp_path, processes=2), stderr=stream)
    metrics = tmp_path / "a" / "metrics.jsonl"
    while not metrics.exists():
        assert launcher.poll() is None
        time.sleep(0.02)
    left = list(ranks(tmp_path).values())
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 30
    while ranks(tmp_path):
        assert time.monotonic() < deadline, ranks(tmp_path)
        time.sleep(0.1)
    assert len(left) == 2
    step = int(re.search(r"interrupted at step (\d+)", said.read_text())[1])
    assert load_checkpoint(tmp_path / "a" / "last.safetensors").document["step"] == step
    assert open_run(tmp_path / "a").is_free()


def stop_after(command, run, epochs):
    """Begin, send SIGTERM once so many epochs are done, and wait for the end; what was said."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (run.metrics.exists() and len(run.records()) >= 2 * epochs):
        time.sleep(0.02)
    # Into the next epoch.
    time.sleep(0.1)
    process.terminate()
    said = process.communicate(timeout=120)[1]
    # torchrun itself ends with 1 after a signal.
    assert process.returncode in (143, 1), said
    assert "visus: interrupted at step" in said
    return said


@pytest.mark.slow
def test_a_run_of_one_goes_on_with_four_and_back(tmp_path):
    options = [*SMALL, "--epochs", "6", "--lr", "0.001", "--checkpoint-every", "1steps"]
    subprocess.run(command(*options, "--name", "whole", "--quiet", out=tmp_path), check=True)
    run = RunFolder(tmp_path / "a")
    stop_after(command(*options, "--name", "a", out=tmp_path), run, 1)
    resumed = ["-m", "visus", "train", "--resume", run.path, "--json"]
    said = stop_after([*TORCHRUN, "--nproc-per-node=4", *resumed], run, 3)
    assert "4 processes go on with a run of 1" in said
    step = load_checkpoint(run.last).document["step"]
    assert 3 * 26 <= step < 6 * 26
    done = subprocess.run([sys.executable, *resumed], capture_output=True, text=True, check=True)
    assert "1 processes go on with a run of 4" in done.stderr
    assert f"resumed from step {step}" in done.stderr
    assert json.loads(done.stdout)["steps"] == 6 * 26
    for found, whole in zip(run.records(), RunFolder(tmp_path / "whole").records(), strict=True):
        assert [found[key] for key in ("epoch", "phase", "n", "lr")] == [
            whole[key] for key in ("epoch", "phase", "n", "lr")
        ]
        # Sums in another order.
        assert found["loss"] == pytest.approx(whole["loss"], rel=1e-3)


def test_two_processes_learn_from_a_hugging_face_data_set_what_one_does(tmp_path):
    datasets = pytest.importorskip("datasets")
    random = np.random.default_rng(0)
    labels = [number % 2 for number in range(60)]
    images = [
        Image.fromarray(random.integers(90 * label, 166 + 90 * label, (8, 8, 3), np.uint8))
        for label in labels
    ]
    datasets.Dataset.from_dict({"image": images, "label": labels}).save_to_disk(tmp_path / "set")
    options = ["train", tmp_path / "set", "--model", "small", "-b", "9", "--epochs", "2", "--lr", "0.001"]
    options += ["--cache", "off", "--workers", "1", "--amp", "off", "--threads", "1", "--quiet", "--json"]
    found = {}
    for processes in (None, 2):
        out = tmp_path / f"runs of {processes}"
        launched = command(*options, "--name", "a", out=out, processes=processes)
        done = subprocess.run(launched, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[processes] = RunFolder(out / "a").records()
    assert [each["n"] for each in found[None]] == [54, 6] * 2
    for one, two in zip(found[None], found[2], strict=True):
        assert [two[key] for key in ("epoch", "phase", "n", "accuracy")] == [
            one[key] for key in ("epoch", "phase", "n", "accuracy")
        ]
        # Sums in another order.
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_run_of_one_goes_on_with_two(tmp_path):
    options = [*SMALL, "--epochs", "2", "--name", "a", "--quiet"]
    subprocess.run(command(*options, out=tmp_path), check=True)
    resumed = ["-m", "visus", "train", "--resume", tmp_path / "a", "--epochs", "3", "--json"]
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", *resumed], capture_output=True, text=True, check=True
    )
    assert "2 processes go on with a run of 1" in done.stderr
    assert json.loads(done.stdout)["steps"] == 3 * 26


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_what_torchrun_starts_again_goes_on_in_the_same_folder(tmp_path):
    options = [*SMALL, "--epochs", "40", "--name", "a", "--json"]
    launched = command(*options, out=tmp_path, processes=2, restarts=1)
    process = subprocess.Popen(launched, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kill_one(process, tmp_path, "a")
    output, log = process.communicate(timeout=200)
    assert process.returncode == 0, log
    assert "started again by torchrun" in log
    assert json.loads(output)["epochs"] == 40
    assert os.listdir(tmp_path) == ["a"]


def test_visus_starts_processes_itself_and_ends_with_their_code(tmp_path):
    code = "import sys; from visus.launching import launch; sys.exit(launch(2, sys.argv[1:]))"
    launched = [sys.executable, "-c", code, *SMALL, "--epochs", "1", "--out", tmp_path, "--json"]
    done = subprocess.run(launched, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 1
    assert "of each batch 25 in each of 2 processes" in done.stderr
    refused = subprocess.run([*launched, "--optimizer", "sdg"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("unknown optimizer") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGUSR1", 143), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_to_visus_stops_the_processes_it_started_with_a_checkpoint(tmp_path, name, code):
    launch = "import sys; from visus.launching import launch; sys.exit(launch(2, sys.argv[1:]))"
    options = [*SMALL, "--epochs", "500", "--name", "a", "--out", tmp_path]
    process = subprocess.Popen([sys.executable, "-c", launch, *options], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "a" / "metrics.jsonl"
    while process.poll() is None and not metrics.exists():
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    log = process.communicate(timeout=60)[1]
    assert process.returncode == code, log
    step = int(re.search(r"visus: interrupted at step (\d+); go on with: visus train --resume", log)[1])
    assert load_checkpoint(tmp_path / "a" / "last.safetensors").document["step"] == step


@pytest.fixture(scope="module")
def to_evaluate(tmp_path_factory):
    """A run, and 45 images of several sizes to evaluate it on, one of them damaged, in a table with groups."""
    folder = tmp_path_factory.mktemp("evaluated")
    subprocess.run(
        command(*SMALL, "--val-batch-size", "10", "--epochs", "1", "--name", "a", "--quiet", out=folder),
        check=True,
    )
    rows = ["path,label,patient"]
    for place in range(45):
        pixels = np.random.default_rng(place).integers(0, 256, (8 + place % 5, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
        rows.append(f"{place}.png,{place % 10},{place // 3}")
    (folder / "7.png").write_bytes(b"damaged")
    table = folder / "table.csv"
    table.write_text("\n".join(rows), encoding="utf-8")
    return folder / "a", table


def evaluate(run, table, size, *options):
    """What `visus evaluate` says in `size` processes, and the table that it writes."""
    written = table.parent / f"{size}.csv"
    launched = [*TORCHRUN, f"--nproc-per-node={size}"] if size > 1 else [sys.executable]
    evaluating = [*launched, "-m", "visus", "evaluate", run, table, "--predictions", written, *options]
    done = subprocess.run(evaluating, capture_output=True, text=True, check=False)
    return done, written


def test_several_processes_evaluate_as_one_does(to_evaluate):
    alone, written = evaluate(*to_evaluate, 1, "--groups", "patient", "--json")
    assert alone.returncode == 1, alone.stderr
    for size in (2, 3):
        several, also_written = evaluate(*to_evaluate, size, "--groups", "patient", "--json")
        # torchrun would start again whatever does not end with 0.
        assert several.returncode == 0, several.stderr
        assert json.loads(several.stdout) == json.loads(alone.stdout)
        assert also_written.read_bytes() == written.read_bytes()
        assert several.stderr.count("skipped 7.png") == 1
