"""What `auto` stands for: the largest batch that the device takes, predicted and then tried; the learning rate of a range test."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from visus.assembling import (
    begin,
    choose_trained,
    model_args,
    new_model,
    training_batches,
    with_some_rate,
)
from visus.config import TrainConfig, default_batch_size, plain_settings, remake_config, resolve_config
from visus.data.batching import batch_sizes
from visus.data.foreign import Transform
from visus.devices import available_memory_bytes, computing, default_threads, select_device
from visus.display import Display
from visus.errors import UsageError
from visus.loop import fit
from visus.model_summary import largest_batch
from visus.models.build import build_model
from visus.objective import make_loss
from visus.preparing import Prepared, prepare
from visus.processes import ALONE, Processes
from visus.ranging import RangeTest, range_test
from visus.state import TrainingState

_USED = 0.9
"""Share of the free memory that a step may take by the prediction; the rest is for what no prediction knows."""
_LARGEST = 1024
_STEPS_PER_EPOCH = 10
_TRIAL_SECONDS = 600
_SMALLEST = 2


def find_batch_size(
    config: TrainConfig,
    prepared: Prepared,
    device: torch.device,
    processes: Processes,
    say: Callable[[str], object],
) -> int:
    """Images per forward pass of all processes together: a power of two for each, at most 1,024, that was tried on `device`.

    Larger ones than leave ten updates in an epoch are not considered. Each trial runs in a child process, which may die of it.
    `UsageError` where not even two images for each process fit.
    """
    most = max(_SMALLEST, len(prepared.train) // _STEPS_PER_EPOCH // config.accumulate)
    predicted = _predict(config, prepared, device, processes)
    size = _power_of_two(min(predicted, _LARGEST, most // processes.size))
    say(
        f"batch size: {predicted} images are predicted to fit on {device}; powers of two up to {_LARGEST} are tried that leave "
        f"{_STEPS_PER_EPOCH} updates in an epoch"
    )
    while size >= _SMALLEST:
        if reason := _try(config, prepared, device, size):
            say(f"batch size: {size} images do not fit ({reason})")
            size //= 2
            continue
        say(
            f"batch size: {size} for each process, as tried"
            if processes.size > 1
            else f"batch size: {size}, as tried"
        )
        return size * processes.size
    raise UsageError(
        f"--batch-size auto: expected room for {_SMALLEST} images on {device}, found too little memory; "
        "lower --img-size, or take a smaller model"
    )


def with_batch_size(
    config: TrainConfig,
    asked: TrainConfig,
    prepared: Prepared,
    device: torch.device,
    processes: Processes,
    display: Display,
) -> TrainConfig:
    """`config`, made of what was `asked`, with the batch size that the first process finds."""
    found = find_batch_size(config, prepared, device, processes, display.line) if processes.first else 0
    size = processes.from_first(found)
    batch_sizes(len(prepared.train), size)
    return dataclasses.replace(config, batch_size=size, val_batch_size=asked.val_batch_size or size)


def find_lr(config: TrainConfig, *, display: Display | None = None) -> RangeTest:
    """The learning rate that a range test finds for the run that `config` describes, without one; nothing is written.

    Raises what `train` raises before its first step, and `UsageError` where the loss falls at no rate.
    """
    display = display or Display(quiet=True)
    device = select_device(config.device)
    prepared = prepare(dataclasses.replace(config, lr=None), display)
    config = resolve_config(
        dataclasses.replace(config, lr="auto"),
        prepared.train,
        prepared.preprocessing,
        device,
        default_threads(1),
    )
    with computing(threads=config.threads, deterministic=config.deterministic):
        state = begin(config, new_model(config, prepared, device, display.line), device)
        return range_test_of(config, prepared, state, device)


def range_test_of(
    config: TrainConfig,
    prepared: Prepared,
    state: TrainingState,
    device: torch.device,
    processes: Processes = ALONE,
    transform: Transform | None = None,
) -> RangeTest:
    """What a range test finds for the run that begins with `state`, which stays as it is.

    Of several processes one alone does it, its batches accumulated to those of them all.
    """
    share = -(-default_batch_size(config, prepared.train) // processes.size)
    accumulate = config.accumulate * processes.size
    batches = training_batches(dataclasses.replace(config, batch_size=share), prepared, transform=transform)
    return range_test(
        state.model,
        batches,
        optimizer=state.optimizer,
        loss=make_loss(config, prepared.train, prepared.preprocessing, device),
        device=device,
        amp=config.amp,
        accumulate=accumulate,
        clip_grad=config.clip_grad,
        seed=config.seed,
    )


def with_lr(
    config: TrainConfig,
    prepared: Prepared,
    state: TrainingState,
    device: torch.device,
    processes: Processes,
    display: Display,
    transform: Transform | None,
) -> TrainConfig:
    """`config` with the rate that the first process finds, which the optimizer of `state` is given, too."""
    found = 0.0
    if processes.first:
        found = range_test_of(config, prepared, state, device, processes, transform).lr
    rate = processes.from_first(found)
    display.line(f"learning rate: {rate:g}, by a range test")
    before = state.optimizer.param_groups[0]["lr"]
    for group in state.optimizer.param_groups:
        # Of the first group exactly the rate.
        group["lr"] = rate * (group["lr"] / before)
    return dataclasses.replace(config, lr=rate)


def _predict(config: TrainConfig, prepared: Prepared, device: torch.device, processes: Processes) -> int:
    """The largest batch of one process by the prediction of its memory."""
    free = available_memory_bytes() // processes.local_size
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    shape = (prepared.train.images.channels, *prepared.preprocessing.size)
    known = config.optimizer if config.optimizer in ("sgd", "adamw") else "adamw"
    model = build_model(config.model, **model_args(config, prepared))
    choose_trained(model, config)
    amp: Any = config.amp
    return largest_batch(model, shape, int(_USED * free), optimizer=known, amp=amp)


def _try(config: TrainConfig, prepared: Prepared, device: torch.device, size: int) -> str | None:
    """Make two updates on `size` images in a child process; what it died of, if it did.

    `UsageError` where it refuses the settings, whatever the size.
    """
    settings = plain_settings(dataclasses.replace(with_some_rate(config), batch_size=size, weights=None))
    trial = {
        "config": settings,
        "model_args": model_args(config, prepared),
        "shape": [size, prepared.train.images.channels, *prepared.preprocessing.size],
        "device": str(device),
    }
    try:
        subprocess.run(
            [sys.executable, "-m", "visus.autotuning"],
            input=json.dumps(trial).encode(),
            capture_output=True,
            timeout=_TRIAL_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        if error.returncode == UsageError.exit_code:
            raise UsageError(f"--batch-size auto: {said[-1]}") from None
        return said[-1][:200] if said else f"the trial was ended by signal {-error.returncode}"
    except subprocess.TimeoutExpired:
        return f"two updates took more than {_TRIAL_SECONDS} s"
    return None


def _run_trial(trial: dict[str, Any]) -> None:
    # Where memory runs out, this process is to end and not the one that waits for it.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    config, device = remake_config(trial["config"]), torch.device(trial["device"])
    torch.set_num_threads(config.threads or torch.get_num_threads())
    state = begin(config, build_model(config.model, **trial["model_args"]), device)
    size = trial["shape"][0]
    batch = (torch.zeros(trial["shape"]), torch.arange(size) % trial["model_args"]["num_classes"])
    # With gradients that wait for a second batch, where batches are accumulated.
    accumulate = min(2, config.accumulate)
    fit(
        state.model,
        [batch] * (2 * accumulate),
        optimizer=state.optimizer,
        epochs=1,
        device=device,
        amp=config.amp,
        accumulate=accumulate,
        clip_grad=config.clip_grad,
        state=state,
    )


def _power_of_two(number: int) -> int:
    """The largest that is not above `number`; 0 for less than one."""
    return 1 << number.bit_length() - 1 if number > 0 else 0


if __name__ == "__main__":
    try:
        _run_trial(json.loads(sys.stdin.buffer.read()))
    except UsageError as refused:
        sys.stderr.write(f"{refused}\n")
        sys.exit(UsageError.exit_code)
