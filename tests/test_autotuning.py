"""What `auto` stands for: found before the run begins, written down, and of no influence on anything else."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import torch

from visus import cli
from visus.autotuning import _power_of_two, _predict, _try, find_batch_size, find_lr
from visus.config import make_config, read_config, resolve_config, write_config
from visus.display import Display
from visus.errors import DataError, UsageError
from visus.preparing import prepare
from visus.processes import ALONE
from visus.training import resume, train

CPU = torch.device("cpu")
SETTINGS = {"data": "digits", "model": "small", "epochs": 1, "amp": "off", "threads": 1, "augment": "none"}


@pytest.fixture(scope="module")
def prepared():
    return prepare(make_config(**SETTINGS), Display(quiet=True))


def resolved(prepared, **settings):
    config = make_config(**{**SETTINGS, **settings})
    return resolve_config(config, prepared.train, prepared.preprocessing, CPU, 1)


def test_a_run_with_auto_is_the_run_with_what_was_found(tmp_path):
    lines = []
    display = Display(quiet=True)
    display.line = lines.append
    found = train(
        make_config(**SETTINGS, batch_size="auto", lr="auto", out=str(tmp_path / "auto")), display=display
    )
    stored = read_config(tmp_path / "auto" / "digits-small" / "config.yaml")
    # A tenth of 1,295 images, and a power of two.
    assert stored["batch_size"] == stored["val_batch_size"] == "128"
    assert 1e-4 < float(stored["lr"]) < 1.0
    assert any(line == "batch size: 128, as tried" for line in lines)
    assert any(line == f"learning rate: {float(stored['lr']):g}, by a range test" for line in lines)

    again = train(
        make_config(**SETTINGS, batch_size=128, lr=float(stored["lr"]), out=str(tmp_path / "given"))
    )
    assert again.digest == found.digest
    # A run that is resumed keeps what was found.
    assert resume(str(tmp_path / "auto" / "digits-small")).digest == found.digest


def test_find_lr_is_what_train_finds_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_lr(make_config(**SETTINGS, batch_size=100))
    assert list(tmp_path.iterdir()) == []
    run = train(make_config(**SETTINGS, batch_size=100, lr="auto"))
    assert float(read_config(tmp_path / "runs" / "digits-small" / "config.yaml")["lr"]) == found.lr
    assert run.epochs == 1


def test_what_find_lr_refuses_would_change_nothing():
    idle = {"epochs": 3, "patience": 1, "schedule": "cosine", "warmup_epochs": 1.0, "val_batch_size": 7}
    idle |= {"ema": True, "ema_decay": 0.5, "on_nonfinite": "skip"}
    assert set(idle) <= set(cli._UNTESTED)
    found, again = (
        find_lr(make_config(**{**SETTINGS, **more, "batch_size": 100, "val_fraction": 0.8}))
        for more in ({}, idle)
    )
    assert again == found


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--epochs 10", "--epochs is not for a range test, which has an end of its own; leave it out"),
        ("--patience 2", "--patience is not for a range test, which"),
        ("--schedule multistep", "--schedule is not for a range test, in which the rate only rises"),
        ("--milestones 5,8", "--milestones is not"),
        ("--gamma 0.1", "--gamma is not"),
        ("--warmup-epochs 0", "--warmup-epochs is not"),
        ("--ema", "--ema is not for a range test, which keeps no weights"),
        ("--ema-decay 0.9", "--ema-decay is not"),
        ("--swa", "--swa is not"),
        ("--val-batch-size 9", "--val-batch-size is not"),
        ("--on-nonfinite skip", "--on-nonfinite is not"),
        ("--compile", "--compile is not"),
        ("--track wandb", "--track is not"),
        ("--no-report", "--no-report is not"),
        ("-b auto", "--batch-size auto is not for a range test, which tries no batches; give a number"),
        ("--momentum 0.9 --optimizer adamw", "--momentum is not for --optimizer adamw"),
    ],
)
def test_flags_that_mean_nothing_to_find_lr_are_refused_where_they_are_given_by_hand(flags, sentence):
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}") as caught:
        cli.app(["find-lr", "no-such-folder", *flags.split()], standalone_mode=False)
    assert caught.value.exit_code == 2


def test_find_lr_takes_the_settings_of_a_run_and_its_help_has_no_flag_that_it_refuses(tmp_path, capsys):
    settings = tmp_path / "config.yaml"
    write_config(make_config(data="no-such-folder", epochs=3, ema=True, schedule="cosine"), settings)
    with pytest.raises(DataError, match="no-such-folder"):
        cli.app(["find-lr", "--config", str(settings)], standalone_mode=False)
    cli.app(["find-lr", "--help"], standalone_mode=False)
    shown = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert "--weights" in shown
    assert not shown & {f"--{name.replace('_', '-')}" for name in cli._UNTESTED}


def test_what_does_not_fit_is_halved_until_it_does(prepared, monkeypatch):
    tried = []

    def fits_up_to_20(config, prepared, device, size):
        tried.append(size)
        return "out of memory" if size > 20 else None

    monkeypatch.setattr("visus.autotuning._try", fits_up_to_20)
    lines = []
    assert find_batch_size(resolved(prepared), prepared, CPU, ALONE, lines.append) == 16
    assert tried == [128, 64, 32, 16]
    assert lines[1:4] == [f"batch size: {size} images do not fit (out of memory)" for size in (128, 64, 32)]

    monkeypatch.setattr("visus.autotuning._try", lambda *_: "out of memory")
    with pytest.raises(UsageError, match="expected room for 2 images"):
        find_batch_size(resolved(prepared), prepared, CPU, ALONE, lines.append)


def test_the_prediction_bounds_what_is_tried(prepared, monkeypatch):
    monkeypatch.setattr("visus.autotuning.available_memory_bytes", lambda: 40 * 2**20)
    tried = []
    monkeypatch.setattr("visus.autotuning._try", lambda *given: tried.append(given[-1]))
    config = resolved(prepared, model="resnet18")
    with pytest.raises(UsageError, match=r"needs .* MiB, found 36 MiB"):
        find_batch_size(config, prepared, CPU, ALONE, lambda _: None)
    small = find_batch_size(resolved(prepared), prepared, CPU, ALONE, lambda _: None)
    assert tried == [small]


def test_what_is_frozen_leaves_room_for_more_images(prepared, monkeypatch):
    monkeypatch.setattr("visus.autotuning.available_memory_bytes", lambda: 2**30)

    def predicted(model="resnet18", **settings):
        return _predict(resolved(prepared, model=model, **settings), prepared, CPU, ALONE)

    assert predicted(freeze="backbone") > 2 * predicted()
    assert predicted(freeze="gradual:1", epochs=2) == predicted()
    large = dataclasses.replace(
        prepared, preprocessing=dataclasses.replace(prepared.preprocessing, size=(32, 32))
    )
    vit = {"model": "timm/vit_tiny_patch16_224", "img_size": 32}
    assert _predict(resolved(prepared, **vit, lora=2), large, CPU, ALONE) > _predict(
        resolved(prepared, **vit), large, CPU, ALONE
    )


def test_a_trial_is_real(prepared):
    config = resolved(prepared, accumulate=2, ema=True, clip_grad=1.0)
    assert _try(config, prepared, CPU, 8) is None
    assert _try(config, prepared, torch.device("meta"), 8) is not None
    broken = dataclasses.replace(config, model="resnet1")
    with pytest.raises(UsageError, match=r"--batch-size auto: .*resnet1"):
        _try(broken, prepared, CPU, 8)


def test_an_optimizer_without_a_rate_of_its_own_is_given_one(tmp_path):
    settings = {**SETTINGS, "optimizer": "sgdp"}
    given = train(make_config(**settings, lr=0.05, batch_size="auto", out=str(tmp_path / "a")))
    assert read_config(tmp_path / "a" / "digits-small" / "config.yaml")["batch_size"] == "128"
    found = train(make_config(**settings, lr="auto", batch_size=128, out=str(tmp_path / "b")))
    rate = float(read_config(tmp_path / "b" / "digits-small" / "config.yaml")["lr"])
    again = train(make_config(**settings, lr=rate, batch_size=128, out=str(tmp_path / "c")))
    assert again.digest == found.digest != given.digest


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_trial_that_runs_out_of_memory_is_a_reason_and_no_crash():
    trial = {
        "config": {**SETTINGS, "model": "resnet18", "lr": 0.1},
        "model_args": {"num_classes": 10, "in_channels": 3},
        "shape": [4096, 3, 224, 224],
        "device": "cpu",
    }
    limited = f"ulimit -v 6000000; exec {sys.executable} -m visus.autotuning"
    done = subprocess.run(["bash", "-c", limited], input=json.dumps(trial).encode(), capture_output=True)
    assert done.returncode != 0
    assert b"can't allocate memory" in done.stderr or b"MemoryError" in done.stderr


def test_powers_of_two():
    assert [_power_of_two(n) for n in (-1, 0, 1, 2, 3, 4, 127, 128)] == [0, 0, 1, 2, 2, 4, 64, 128]
