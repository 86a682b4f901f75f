"""The command line as a person or a script uses it: in a process of its own, with its exit codes."""

import csv
import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from visus import cli
from visus.config import TrainConfig

SMALL = ["train", "digits", "--model", "small", "--augment", "none", "--batch-size", "50", "--lr", "0.05"]


def visus(*arguments, **options):
    command = [sys.executable, "-m", "visus", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, and what it printed."""
    out = tmp_path_factory.mktemp("runs")
    done = visus(*SMALL, "--epochs", 10, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_help_is_quick_and_loads_no_torch():
    code = "import sys\nfrom visus.cli import app\ntry: app(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_flags_are_the_fields_of_the_settings():
    flags = set(inspect.signature(cli.train).parameters) - {
        "config",
        "resume",
        "allow_change",
        "no_report",
        "as_json",
        "quiet",
    }
    flags = flags - {"no_deterministic"} | {"deterministic"}
    assert flags == {field.name for field in dataclasses.fields(TrainConfig)}


def test_the_demo_reaches_97_percent_of_the_held_out_digits(tmp_path):
    (line,) = [
        each
        for each in Path(__file__).parents[1].joinpath("Makefile").read_text().split("\n")
        if "visus train" in each
    ]
    done = visus(*line.split()[1:], "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test"]["accuracy"] >= 0.97


def test_training_ends_with_one_document(finished):
    document, log = finished
    keys = "run epochs steps seconds images_per_second best final test checkpoints digest skipped findings skipped_steps"
    assert list(document) == keys.split()
    assert (document["epochs"], document["steps"]) == (10, 260)
    assert document["test"]["accuracy"] >= 0.95
    low, high = document["test"]["accuracy_ci95"]
    assert low < document["test"]["accuracy"] < high
    assert "dataSize: {'train': 1295, 'val': 143}" in log
    assert re.search(
        r"\nimages of 8x8, in memory\nstep: amp \w+, \d+ threads?, channels last, sgd, fused\n", log
    )
    assert "Epoch 10/10" in log
    for path in document["checkpoints"].values():
        assert Path(path).is_absolute()
        assert Path(path).exists()


def test_the_run_is_repeated_from_its_config(finished, tmp_path):
    document, _ = finished
    done = visus(
        "train", "--config", f"{document['run']}/config.yaml", "--out", tmp_path, "--json", "--quiet"
    )
    again = json.loads(done.stdout)
    assert done.stderr == ""
    assert again["digest"] == document["digest"]
    assert again["run"].startswith(str(tmp_path))


def test_evaluation_repeats_the_figures_of_training(finished):
    document, _ = finished
    val = json.loads(visus("evaluate", document["run"], "digits", "--split", "val", "--json").stdout)
    assert val["accuracy"] == document["best"]["accuracy"]
    test = json.loads(visus("evaluate", document["checkpoints"]["best"], "digits", "--json").stdout)
    assert (test["n"], test["accuracy"]) == (document["test"]["n"], document["test"]["accuracy"])
    assert sum(map(sum, test["confusion"])) == test["n"]
    last = json.loads(
        visus("evaluate", document["checkpoints"]["last"], "digits", "--split", "val", "--json").stdout
    )
    assert (last["accuracy"], last["loss"]) == (document["final"]["accuracy"], document["final"]["loss"])


def test_inspect_says_what_a_checkpoint_holds(finished):
    document, _ = finished
    found = json.loads(visus("inspect", document["checkpoints"]["last"], "--json").stdout)
    assert found["digest"] == document["digest"]
    assert (found["model"], found["epoch"], found["classes"]) == ("small", 10, list("0123456789"))


def test_resuming_a_finished_run_trains_nothing(finished):
    document, _ = finished
    done = visus("train", "--resume", document["run"], "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == document


@pytest.mark.parametrize("kind", ["SIGTERM", "SIGKILL"])
def test_a_run_that_is_killed_and_resumed_ends_in_the_same_bits(finished, tmp_path, kind):
    document, _ = finished
    command = [sys.executable, "-m", "visus", *SMALL, "--epochs", "10", "--out", str(tmp_path), "--name", "a"]
    process = subprocess.Popen([*command, "--checkpoint-every", "7steps"], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "a" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 4):
        time.sleep(0.005)
    process.send_signal(getattr(signal, kind))
    log = process.communicate()[1]
    if kind == "SIGTERM":
        assert process.returncode == 143
        assert f"go on with: visus train --resume {tmp_path / 'a'}" in log
    done = visus("train", "--resume", tmp_path / "a", "--json")
    assert "resumed from step" in done.stderr
    assert json.loads(done.stdout)["digest"] == document["digest"]
    assert json.loads(done.stdout)["best"] == document["best"]


def test_a_damaged_last_checkpoint_is_replaced_by_its_predecessor(finished, tmp_path):
    document, _ = finished
    visus(*SMALL, "--epochs", 9, "--out", tmp_path, "--name", "a", "--quiet", "--schedule", "constant")
    last = tmp_path / "a" / "last.safetensors"
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    done = visus("train", "--resume", tmp_path / "a", "--json")
    assert done.returncode == 0
    assert "going on from previous.safetensors" in done.stderr
    assert "resumed from step 208" in done.stderr
    assert visus("inspect", document["checkpoints"]["best"] + "x").returncode == 3


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["train"], 2, "expected DATA"),
        (["train", "digits", "--lr", "-1"], 2, "--lr: "),
        (["train", "digits", "--model", "smal"], 2, "unknown model 'smal'"),
        (["train", "digits", "--model", "small", "--optimizer", "sdg"], 2, "unknown optimizer"),
        (["train", "digits", "--augment", "much"], 2, "--augment: "),
        (["train", "digits", "--modle", "small"], 2, "--modle"),
        (["train", "digits", "--model", "small", "-b", "5000"], 2, "1295 training images"),
        (
            ["train", "digits", "--model", "small", "--img-size", "1000000"],
            2,
            "lower --batch-size or --img-size",
        ),
        (
            ["train", "digits", "--model", "small", "--optimizer", "sgdp"],
            2,
            "sgdp: has no learning rate of its own; give --lr",
        ),
        (["train", "digits", "--model", "small", "--img-size", "3"], 2, "small cannot take images of 3x3"),
        (["train", "digits", "--recipe", "fast", "--img-size", "7"], 2, "quick cannot take images of 7x7"),
        (["train", "digits", "--model", "alexnet", "--img-size", "20"], 2, "--img-size, such as 224"),
        (["train", "digits", "--ema-decay", "0.999"], 2, "give --ema, or leave it out"),
        (["train", "digits", "--checkpoint-every", "often"], 2, "often"),
        (["train", "digits", "--device", "7"], 2, "CUDA unavailable"),
        (["train", "no-such-folder"], 3, "no-such-folder"),
        (["train", "--resume", "no-such-run"], 2, "no-such-run"),
        (["evaluate", "no-such-file", "digits"], 3, "no-such-file"),
        (["predict", "no-such-file", "a.png"], 3, "no-such-file"),
        (["summary", "resnet81"], 2, "unknown model 'resnet81'"),
        (["summary", "resnet18", "--input-size", "3x32"], 2, "expected C,H,W"),
        (["summary", "small", "--fit", "lots"], 2, "as in 8GB"),
        (["summary", "small", "--fit", "1KB"], 2, "one image"),
        (["train", "digits", "--amp", "fp8"], 2, "--amp: "),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_use_is_one_sentence_and_a_code(tmp_path, arguments, code, sentence):
    done = visus(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not os.listdir(tmp_path)


def test_other_classes_are_refused(finished, tmp_path):
    document, _ = finished
    arrays = {"images": np.zeros((6, 8, 8), np.uint8), "labels": [0, 1, 2] * 2}
    np.savez(tmp_path / "a.npz", **arrays, classes=["0", "1", "zebra"])
    done = visus("evaluate", document["run"], tmp_path / "a.npz")
    assert done.returncode == 3
    assert "found others: zebra" in done.stderr


def test_some_of_the_classes_are_enough_and_go_by_name(finished, tmp_path):
    document, _ = finished
    archive = np.load(files("visus.data").joinpath("builtin/digits.npz"))
    names = ["9", "0", "4"]
    chosen = np.isin(archive["labels"], [9, 0, 4])
    labels = [names.index(str(label)) for label in archive["labels"][chosen]]
    np.savez(tmp_path / "a.npz", images=archive["images"][chosen], labels=labels, classes=names)
    done = visus("evaluate", document["run"], tmp_path / "a.npz", "--json")
    assert json.loads(done.stdout)["accuracy"] > 0.97
    assert "classes without an image here: 1, 2, 3, 5, 6, 7, 8" in done.stderr
    assert [each["n"] > 0 for each in json.loads(done.stdout)["per_class"]].count(True) == 3


def test_every_probability_is_written_and_adds_up(finished, tmp_path):
    document, _ = finished
    table, picture = tmp_path / "p.csv", tmp_path / "c.png"
    visus("evaluate", document["run"], "digits", "--predictions", tmp_path / "p.parquet")
    stored = Path(document["run"], "predictions.parquet")
    assert (tmp_path / "p.parquet").read_bytes() == stored.read_bytes()
    options = ["--predictions", table, "--picture", picture, "--ci", 0.8]
    done = visus("evaluate", document["run"], "digits", *options)
    assert done.returncode == 0, done.stderr
    assert f"{100 * document['test']['accuracy']:.2f}% (80 % interval" in done.stdout
    assert picture.stat().st_size > 10_000
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert sum(row["label"] == row["prediction"] for row in rows) / len(rows) == document["test"]["accuracy"]
    for row in rows:
        shares = {name: float(row[f"p_{name}"]) for name in "0123456789"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert max(shares, key=shares.get) == row["prediction"]


def test_the_run_folder_holds_what_the_contract_names(finished):
    document, _ = finished
    names = {path.name for path in Path(document["run"]).iterdir()}
    expected = (
        "config.yaml metrics.jsonl last.safetensors previous.safetensors best.safetensors split.csv loss.png"
    )
    expected += " accuracy.png loss_accuracy.png environment.json summary.json audit.json evaluation.json predictions.parquet"
    assert names == {
        *expected.split(),
        "run.lock",
        "confusion.png",
        "reliability.png",
        "report.html",
        "MODEL_CARD.md",
    }
    evaluation = json.loads(Path(document["run"], "evaluation.json").read_text())
    assert (evaluation["split"], evaluation["n"]) == ("test", document["test"]["n"])
    with Path(document["run"], "split.csv").open() as file:
        parts = Counter(row["split"] for row in csv.DictReader(file))
    assert parts == {"train": 1295, "val": 143, "test": 359}


def test_a_run_is_calibrated_and_compared_with_another(finished, tmp_path):
    document, _ = finished
    for name in ("a", "b"):
        shutil.copytree(document["run"], tmp_path / name)
    before = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    done = visus("calibrate", tmp_path / "b", "digits", "--picture", tmp_path / "c.png", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["n"] == 143
    assert found["temperature"] != 1
    assert (tmp_path / "c.png").stat().st_size > 10_000
    # A finished run that is resumed trains nothing and is evaluated anew.
    again = json.loads(visus("train", "--resume", tmp_path / "b", "--json").stdout)
    assert again["digest"] == document["digest"]
    after = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    assert (after["temperature"], after["accuracy"]) == (found["temperature"], before["accuracy"])
    assert after["loss"] != before["loss"]
    evaluated = json.loads(visus("evaluate", tmp_path / "b", "digits", "--json").stdout)
    assert {key: evaluated[key] for key in after} == after
    done = visus("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert done.returncode == 0, done.stderr
    (pair,) = json.loads(done.stdout)["pairs"]
    assert (pair["n"], pair["difference"], pair["mcnemar_p"], pair["flipped"]) == (359, 0, 1, [])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("data: digits\n")
    board = visus("compare", tmp_path)
    assert board.returncode == 1
    assert f"{tmp_path / 'c'}: expected predictions of a finished run" in board.stderr
    assert board.stdout.count("small") == 2


@pytest.mark.parametrize(("command", "flag"), [("calibrate", "--picture"), ("evaluate", "--reliability")])
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_done(
    finished, tmp_path, command, flag
):
    document, _ = finished
    before = Path(document["checkpoints"]["best"]).read_bytes()
    for name in ("c.foo", "nowhere/c.png"):
        done = visus(command, document["run"], "digits", flag, tmp_path / name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"visus: {tmp_path / name}: expected a ")
        assert done.stderr.count("\n") == 1
    assert Path(document["checkpoints"]["best"]).read_bytes() == before


def test_files_are_predicted_one_by_one_and_bad_ones_named(finished, tmp_path):
    document, _ = finished
    archive = np.load(files("visus.data").joinpath("builtin/digits.npz"))
    for index in range(40):
        Image.fromarray(archive["images"][index].squeeze()).save(tmp_path / f"{index:02} é.png")
    (tmp_path / "17 é.png").write_bytes(b"no image")
    done = visus("predict", document["run"], tmp_path, "--topk", 3, "--csv", tmp_path / "out.csv", "--json")
    assert done.returncode == 1
    rows = json.loads(done.stdout)
    assert [Path(row["path"]).name for row in rows] == [f"{index:02} é.png" for index in range(40)]
    assert set(rows[17]) == {"path", "error"}
    good = [row for row in rows if "top" in row]
    right = [
        row["top"][0]["class"] == str(archive["labels"][int(Path(row["path"]).name[:2])]) for row in good
    ]
    assert np.mean(right) > 0.9
    assert all(len(row["top"]) == 3 for row in good)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 41
    single = visus("predict", document["run"], tmp_path / "03 é.png", tmp_path / "missing.png")
    assert single.returncode == 1
    assert single.stdout.startswith(f"{tmp_path}/03 é.png: 3 ")
    assert "missing.png: No such file" in single.stderr


def test_a_name_that_moves_the_cursor_or_breaks_the_line_is_shown_and_written_as_it_is(finished, tmp_path):
    document, _ = finished
    names = ["a\nb.png", "red\x1b[31m.png", "\x9b1A bad.png"]
    for name in names[:2]:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    (tmp_path / names[2]).write_bytes(b"no image")
    done = visus(
        "predict", document["run"], *(tmp_path / name for name in names), "--csv", tmp_path / "p.csv"
    )
    assert done.returncode == 1
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [
        rf"{tmp_path}/a\x0ab.png",
        rf"{tmp_path}/red\x1b[31m.png",
    ]
    assert done.stderr.splitlines()[-1].startswith(rf"{tmp_path}/\x9b1A bad.png: ")
    assert not set("\x1b\x9b") & set(done.stdout + done.stderr)
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == names
    exact = visus("predict", document["run"], *(tmp_path / name for name in names), "--json")
    assert [Path(row["path"]).name for row in json.loads(exact.stdout)] == names
    (tmp_path / "none\n\x1b[2J").mkdir()
    refused = visus("predict", document["run"], tmp_path / "none\n\x1b[2J")
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert r"none\x0a\x1b[2J: expected images in this folder" in refused.stderr


def test_a_wanted_accuracy_and_a_method_of_intervals_are_asked_for(finished, tmp_path):
    document, _ = finished
    picture, table = tmp_path / "r.png", tmp_path / "p.csv"
    options = ["--ci-method", "exact", "--reliability", picture, "--predictions", table, "--json"]
    done = visus("evaluate", document["run"], "digits", "--wanted-accuracy", 0.95, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ci_method"] == "exact"
    interval = binomtest(round(found["accuracy"] * found["n"]), found["n"]).proportion_ci(method="exact")
    assert found["accuracy_ci95"] == pytest.approx(list(interval))
    with table.open() as file:
        rows = list(csv.DictReader(file))
    promised = found["abstention"]
    sure = [
        row for row in rows if max(float(row[f"p_{name}"]) for name in "0123456789") >= promised["threshold"]
    ]
    assert (len(sure), len(sure) / len(rows)) == (promised["n"], promised["coverage"])
    right = sum(row["label"] == row["prediction"] for row in sure) / len(sure)
    assert right == promised["accuracy"] > promised["at_least"] >= 0.95
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 500
    told = visus("evaluate", document["run"], "digits", "--wanted-accuracy", 1, "--ci-method", "bootstrap")
    assert "no confidence from which an accuracy of 100 % can be promised" in told.stderr
    assert "answering" not in told.stdout
    told = visus("evaluate", document["run"], "digits", "--wanted-accuracy", 0.5)
    assert "answering always (100.00% of the images), the accuracy is" in told.stdout


def test_with_tta_probabilities_are_means_over_an_image_and_its_mirror_image(finished, tmp_path):
    document, _ = finished
    archive = np.load(files("visus.data").joinpath("builtin/digits.npz"))
    images, labels = archive["images"][:40], archive["labels"][:40]
    written = {}
    for name, pixels, options in (
        ("plain", images, []),
        ("mirrored", images[:, :, ::-1], []),
        ("both", images, ["--tta", "--json"]),
    ):
        source, table = tmp_path / f"{name}.npz", tmp_path / f"{name}.csv"
        np.savez(source, images=pixels, labels=labels, classes=list("0123456789"))
        done = visus("evaluate", document["run"], source, "--predictions", table, *options)
        assert done.returncode == 0, done.stderr
        with table.open() as file:
            written[name] = np.array(
                [[float(row[f"p_{each}"]) for each in "0123456789"] for row in csv.DictReader(file)]
            )
    means = (written["plain"] + written["mirrored"]) / 2
    assert np.abs(written["both"] - written["plain"]).max() > 0.1
    np.testing.assert_allclose(written["both"], means, atol=1e-5)
    found = json.loads(done.stdout)
    assert found["tta"] is True
    assert found["accuracy"] == (means.argmax(axis=1) == labels).mean()
    assert "means over each image and its mirror image" in done.stderr


def test_a_loss_that_blows_up_names_the_step_and_what_to_try(tmp_path):
    done = visus(*SMALL[:-1], "1e30", "--out", tmp_path, "--epochs", "2")
    assert done.returncode == 3
    assert "not finite at step" in done.stderr
    assert "--clip-grad" in done.stderr


def test_what_cannot_change_on_resume_is_named(finished):
    document, _ = finished
    done = visus("train", "--resume", document["run"], "--lr", "0.5")
    assert done.returncode == 2
    assert "--lr cannot change" in done.stderr


def test_the_classic_summary_is_that_of_the_notes():
    done = visus("summary", "vgg11", "--input-size", "3,32,32", "--style", "classic")
    golden = Path(__file__).parent / "golden" / "summary_vgg11_classic.txt"
    assert done.stdout == golden.read_text()


def test_the_summary_is_one_document_with_the_keys_of_the_contract():
    done = visus("summary", "resnet18", "--num-classes", 10, "-b", 4, "--optimizer", "sgd", "--json")
    document = json.loads(done.stdout)
    keys = "layers total_params trainable_params input_mb forward_backward_mb params_mb total_mb flops peak_training_mb"
    assert set(keys.split()) <= set(document)
    assert {"name", "type", "output_shape", "params", "trainable"} <= set(document["layers"][0])
    assert document["total_params"] == 11_181_642
    assert document["input_mb"] == pytest.approx(4 * 3 * 224 * 224 * 4 / 2**20)


def test_the_largest_batch_fits_and_one_more_does_not():
    def run(*options):
        return json.loads(visus("summary", "small", "--input-size", "1,28,28", "--json", *options).stdout)

    found = run("--fit", "64MB")
    largest = found["largest_batch"]
    peaks = [run("-b", size, "--optimizer", "sgd")["peak_training_mb"] for size in (largest, largest + 1)]
    assert peaks[0] <= 64 < peaks[1]
    assert found["margin_mb"] == pytest.approx(64 - peaks[0])
    assert found["margin_percent"] == pytest.approx(100 * (64 - peaks[0]) / 64)
    said = visus("summary", "small", "--input-size", "1,28,28", "--fit", "64MB").stderr
    assert f"{largest}; predicted are {found['margin_mb']:,.1f} MiB less" in said


def test_the_help_tells_the_defaults_that_there_are():
    from visus.config import _DEFAULT_BATCH_SIZE
    from visus.ops.optim import _DEFAULTS as rates

    defaults = {
        each.name: getattr(each.default, "default", each.default) for each in dataclasses.fields(TrainConfig)
    }
    said = {
        name: format(default, "g") if isinstance(default, int | float) else default
        for name, default in defaults.items()
        if isinstance(default, str | int | float) and not isinstance(default, bool)
    }
    said["batch_size"] = str(_DEFAULT_BATCH_SIZE)
    for place, name in enumerate(("lr", "weight_decay")):
        said[name] = ", ".join(f"{each[place]:g} for {optimizer}" for optimizer, each in rates.items())
    assert said == cli._DEFAULTS
    shown = " ".join(visus("train", "--help").stdout.replace("│", " ").split())
    for each in ("--epochs <int> [default: (10)]", "Folder for runs. [default: (runs)]"):
        assert each in shown
    # A command's own default is the one that counts.
    assert "[default: runs/tune]" in " ".join(visus("tune", "--help").stdout.replace("│", " ").split())


def test_devices_are_listed():
    found = json.loads(visus("devices", "--json").stdout)[0]
    assert found["device"] == "cpu"
    assert set(found["amp"]) <= {"bf16", "fp16"}


def code_after(monkeypatch, error):
    """What a command ends with that meets `error`."""

    def fail():
        raise error

    monkeypatch.setattr(sys, "argv", ["visus", "devices"])
    monkeypatch.setattr("visus.devices.describe_devices", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_an_unforeseen_error_is_70_and_shows_where(monkeypatch, capsys):
    assert code_after(monkeypatch, KeyError("x")) == 70
    assert "a fault in visus" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_where_memory_runs_out_a_remedy_is_named(monkeypatch, capsys, error):
    assert code_after(monkeypatch, error) == 2
    assert "memory ran out; lower --batch-size or --img-size" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_yet_begins_again(finished, tmp_path):
    document, _ = finished
    shutil.copytree(document["run"], tmp_path / "a")
    for name in ("last", "previous", "best"):
        (tmp_path / "a" / f"{name}.safetensors").unlink()
    done = visus("train", "--resume", tmp_path / "a", "--json")
    assert "has no checkpoint yet; resumed from step 0" in done.stderr
    assert json.loads(done.stdout)["digest"] == document["digest"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--epochs", "3"], "10 epochs are done already"),
        (["--config", "config.yaml"], "keeps its own settings"),
    ],
)
def test_what_makes_no_sense_on_resume_is_refused(finished, options, sentence):
    document, _ = finished
    before = Path(document["run"], "config.yaml").read_bytes()
    done = visus("train", "--resume", document["run"], *options)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert Path(document["run"], "config.yaml").read_bytes() == before


def test_data_that_has_changed_is_refused_on_resume(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(60) % 3)
    options = ["--model", "small", "-b", 10, "--epochs", 1, "--amp", "off", "--out", tmp_path]
    run = json.loads(visus("train", tmp_path / "a.npz", *options, "--json").stdout)["run"]
    same = visus("train", "a.npz", "--resume", run, cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    by_another_path = visus("evaluate", run, f"{tmp_path}/../{tmp_path.name}/a.npz", "--split", "val")
    assert by_another_path.returncode == 0
    pixels[0, 0, 0] += 1
    np.savez(tmp_path / "b.npz", images=pixels, labels=np.arange(60) % 3)
    elsewhere = ["train", tmp_path / "b.npz", "--resume", run, "--epochs", 2]
    done = visus(*elsewhere)
    assert (done.returncode, "--allow-change data" in done.stderr) == (2, True)
    shutil.move(tmp_path / "b.npz", tmp_path / "a.npz")
    done = visus("train", "--resume", run, "--epochs", 2)
    assert done.returncode == 3
    assert (
        "the data has changed since the run began: images of the same names have another content"
        in done.stderr
    )
    done = visus("train", "--resume", run, "--epochs", 2, "--allow-change", "data", "--json")
    assert done.returncode == 0, done.stderr
    assert "epoch 2 begins anew" in done.stderr
    assert json.loads(done.stdout)["epochs"] == 2
    # From now on it is the data of the run.
    assert visus("train", "--resume", run, "--epochs", 3).returncode == 0


def test_what_may_change_is_named(finished, tmp_path):
    document, _ = finished
    mistyped = visus("train", "--resume", document["run"], "--allow-change", "batchsize")
    assert (mistyped.returncode, "batch_size" in mistyped.stderr) == (2, True)
    assert visus("train", "digits", "--allow-change", "lr").returncode == 2
    shutil.copytree(document["run"], tmp_path / "a")
    options = ["--lr", "0.01", "--batch-size", 100, "--epochs", 11]
    changed = ["--allow-change", "lr", "--allow-change", "batch-size"]
    done = visus("train", "--resume", tmp_path / "a", *options, *changed, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 11 * 13


def test_a_run_ends_with_its_report_and_writes_the_same_one_again(finished):
    document, shown = finished
    run = Path(document["run"])
    assert shown.splitlines()[-1] == f"Report: {run / 'report.html'}"
    page, card = (run / "report.html").read_bytes(), (run / "MODEL_CARD.md").read_bytes()
    text = page.decode()
    assert f"{100 * document['test']['accuracy']:.1f}" in text
    assert "data:image/png;base64," in text
    assert b"not in this report" not in page.lower()
    again = visus("train", "--resume", run, "--json")
    assert json.loads(again.stdout) == document
    assert (run / "report.html").read_bytes() == page
    assert (run / "MODEL_CARD.md").read_bytes() == card
    assert "report: mistakes explained" in visus("report", run).stderr
    done = visus("report", run, "--json", "--quiet")
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"report": str(run / "report.html")}
    assert (run / "report.html").read_bytes() == page


def test_a_report_on_a_folder_of_runs_is_one_on_each_of_them(finished, tmp_path):
    document, _ = finished
    for name in ("first", "second"):
        shutil.copytree(document["run"], tmp_path / "runs" / name)
    done = visus(
        "report",
        tmp_path / "runs",
        os.path.relpath(tmp_path / "runs" / "first"),
        "--output",
        tmp_path / "page.html",
        "--quiet",
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'page.html'}\n")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>Report on 2 runs</title>" in text
    (tmp_path / "nothing").mkdir()
    assert visus("report", tmp_path / "nothing").returncode == 2


def test_a_run_that_is_to_have_no_report_has_none(tmp_path):
    done = visus(*SMALL, "--epochs", 1, "--out", tmp_path, "--no-report", "--track", "tensorboard", "--json")
    run = Path(json.loads(done.stdout)["run"])
    assert not (run / "report.html").exists()
    assert not (run / "MODEL_CARD.md").exists()
    assert "Report" not in done.stderr
    # The tracker that was asked for has its events all the same.
    assert len(list((run / "tensorboard").glob("events.out.tfevents.*"))) == 1


def test_an_interrupt_is_said(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("visus.devices.describe_devices", interrupt)
    monkeypatch.setattr(sys, "argv", ["visus", "devices"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "visus: interrupted\n"


def test_the_version_is_said():
    done = subprocess.run(
        [sys.executable, "-m", "visus", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.count(".") == 2


def test_a_run_without_best_weights_is_told_of(finished, tmp_path):
    document, _ = finished
    shutil.copytree(document["run"], tmp_path / "run")
    command = [sys.executable, "-m", "visus", "evaluate", tmp_path / "run", "digits", "--json"]
    before = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "no epoch of this run is over" not in before.stderr
    (tmp_path / "run" / "best.safetensors").unlink()
    after = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "no epoch of this run is over; the weights after step" in after.stderr
