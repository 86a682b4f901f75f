"""The training loop, flat: take a batch, forward, loss, backward, step, record.

To train in an unusual way, copy `fit` and change it; what it calls is either public or below it. In shapes, `N` is the number of
images of a batch, `K` the number of classes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from visus.amp import autocast, make_scaler
from visus.checkpoint import iterate_parts
from visus.data.batching import Batch, TrainingBatches
from visus.devices import copy_to
from visus.display import Display, Progress
from visus.errors import DataError, Interrupted, NonFiniteError, UsageError
from visus.freed_memory import kept_freed_memory
from visus.models.adapt import train_mode
from visus.models.lora import merged
from visus.ops.averaging import TailAverage, recomputed_batchnorm
from visus.ops.batchnorm import GlobalBatchNorm
from visus.ops.losses import cross_entropy_sum
from visus.ops.metrics import correct_counts
from visus.ops.optim import complete_buffers, match_layout
from visus.ops.rng import derive_seed
from visus.processes import ALONE, AgreedStop, Processes
from visus.profiling import Profile
from visus.recording import RunRecorder
from visus.runs import History, Record, history_of
from visus.signals import StopSignal
from visus.state import TrainingState, pack, plain_values
from visus.validating import Validation, validate

Loss = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
TrainBatches = Callable[[int, int], Iterable[Batch]]
Pairs = Iterable[Any]


@kept_freed_memory()
def fit(
    model: nn.Module,
    train: TrainBatches | Pairs,
    val: Pairs | None = None,
    *,
    optimizer: Optimizer,
    epochs: int,
    patience: int | None = None,
    schedule: Callable[[int], float] = lambda _: 1.0,
    loss: Loss | None = None,
    device: str | torch.device = "cpu",
    amp: str = "off",
    accumulate: int = 1,
    clip_grad: float | None = None,
    on_nonfinite: str = "stop",
    seed: int = 0,
    state: TrainingState | None = None,
    recorder: RunRecorder | None = None,
    display: Display | None = None,
    stop: StopSignal | AgreedStop | None = None,
    freeze: Callable[[int], object] | None = None,
    processes: Processes = ALONE,
    batchnorm: str = "global",
    compile: bool = False,
    profile: Profile | None = None,
) -> History:
    """Train `model` to `epochs` epochs in all, or until `patience` epochs went by without a better validation accuracy.

    Returns the accuracies and losses of all epochs.

    `train` is a function `(epoch, start_batch) -> batches`, which makes a run resumable in mid-epoch, or any iterable of
    `(images [N, C, H, W], targets [N] or [N, K])`, such as a `DataLoader`; `val` is such an iterable. `schedule(step)` is the
    factor on the optimizer's learning rates for that update. `loss(logits, batch)` returns a sum and its normaliser, so that
    batches of unequal size or weight add up rightly; cross-entropy in float32 by default. `amp` is `off`, `bf16` or `fp16`. An
    update is made over `accumulate` batches. Where the loss is no longer a number, `on_nonfinite` says to `stop`, or to `skip` that
    update, which costs a wait for the device and a copy of the buffers at each. `seed` drives dropout, through torch's global
    generator. The model is moved to `device`, in channels-last layout. `state` continues a run, and is brought along; `recorder`
    writes a folder, `display` shows progress. `freeze` is called with the number of each epoch, from 0, before it begins, to set
    which parameters are trained; what is frozen stays in evaluation mode (see `train_mode`). Of several `processes`, each gets its
    share of every batch from `train`; batch norm takes the statistics of the whole batch where `batchnorm` is `global`, of the
    share where it is `local`. With `compile` it trains through `torch.compile`, for each size of batch anew; `profile` measures
    where the time goes.

    Raises `NonFiniteError` where the loss is no longer a number, `Interrupted` after a signal that `stop` caught.
    """
    device = torch.device(device)
    loss = loss or cross_entropy
    model.to(device).to(memory_format=torch.channels_last)
    match_layout(optimizer)
    state = state or TrainingState(model, optimizer, scaler=make_scaler(amp, device))
    precision = autocast(amp, device)
    together, local = (processes.size > 1 and batchnorm == each for each in ("global", "local"))
    normalising = GlobalBatchNorm() if together else contextlib.nullcontext()
    # Apple's GPUs have no float64.
    state.totals = state.totals.to(device, torch.float32 if device.type == "mps" else torch.float64)
    display = display or Display(quiet=True)
    # Validation runs the model as it is: its figures must come out again elsewhere.
    run_model = torch.compile(model, dynamic=False) if compile else model
    phase = profile.phase if profile else _ignore
    records = list(recorder.records) if recorder else []
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])

    if patience and val is None:
        raise UsageError("expected images to validate on, so that patience can run out; give `val`")
    while not _is_over(state, epochs, patience):
        epoch = state.epoch
        # Also where it is gone on with in its middle, an epoch is shown with the rate it began with.
        epoch_lr = _set_learning_rates(optimizer, schedule(state.step - state.epoch_step))
        display.epoch(epoch, epochs, epoch_lr, state.best_accuracy)
        bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        began = time.perf_counter() - state.epoch_seconds
        if freeze:
            freeze(epoch)
            complete_buffers(optimizer)
        train_mode(model)
        phase("data")
        for items in _in_groups(_batches(train, epoch, state.epoch_step * accumulate), accumulate):
            _set_learning_rates(optimizer, schedule(state.step))
            undo = _remember(state) if on_nonfinite == "skip" else None
            sums = torch.zeros_like(state.totals)
            for position, item in enumerate(items):
                phase("copy")
                batch = to_batch(item, device)
                phase("forward")
                _seed_generators(device, derive_seed(seed, "model", state.step, position, processes.rank))
                with precision, normalising:
                    logits = run_model(batch.images)
                batch_loss, batch_normaliser = loss(logits, batch)
                if position == 0:
                    divisor = batch_normaliser.detach().clone()
                    processes.add_up([divisor])
                phase("backward")
                torch.autograd.backward(state.scaler.scale(batch_loss / divisor))
                phase("metrics")
                (correct,) = correct_counts(logits.detach(), batch.targets)
                count = divisor.new_full((), len(batch))
                sums += torch.stack((batch_loss.detach(), batch_normaliser, correct, count))
            phase("exchange")
            processes.add_up([*gradients(model), sums])
            if local:
                # As in one process, all have the same statistics to validate with and to go on from.
                processes.average([each for each in model.buffers() if each.is_floating_point()])
            phase("optimizer")
            state.totals += sums
            if clip_grad or len(items) > 1:
                state.scaler.unscale_(optimizer)
            if len(items) > 1:
                torch._foreach_mul_(gradients(model), (divisor / sums[1]).to(divisor.dtype))
            if clip_grad:
                nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
            left_out = undo is not None and not _is_finite(state)
            if undo and left_out:
                undo()
                display.line(f"step {state.step} left out: its loss or gradient is not finite")
            # The scaler of fp16 leaves such a step out by itself, and wants to see it.
            if not left_out or state.scaler.is_enabled():
                state.scaler.step(optimizer)
            if state.average and not left_out:
                state.average.update(model, state.step)
            state.scaler.update()
            optimizer.zero_grad()
            # The first bad step is kept on the device and read at moments of our choice: no wait at every step.
            bad_step = torch.where((bad_step < 0) & ~state.totals[0].isfinite(), state.step, bad_step)
            state.step += 1
            state.epoch_step += 1
            state.epoch_seconds = time.perf_counter() - began

            phase("progress")
            if profile:
                profile.step()
            shown = display.due()
            teller = recorder if recorder and recorder.progress_due() else None
            if shown or teller:
                _stop_if_not_finite(bad_step, state, epoch_lr, train, accumulate)
                progress = _progress(state, _updates(train, accumulate), batch_loss, batch_normaliser)
                if shown:
                    display.progress(progress)
                if teller:
                    teller.write_progress(epoch, epochs, progress)
            if recorder and recorder.due(state.step):
                _stop_if_not_finite(bad_step, state, epoch_lr, train, accumulate)
                _stop_if_weights_not_finite(state, epoch_lr)
                phase("checkpoint")
                recorder.save_last(*pack(state))
            if stop and stop.received:
                _stop_if_not_finite(bad_step, state, epoch_lr, train, accumulate)
                _stop_if_weights_not_finite(state, epoch_lr)
                raise _interrupted(stop, state, recorder, records, processes)
            phase("data")
        if recorder:
            recorder.end_progress()
        if not state.epoch_step:
            raise DataError(
                "expected training images, found none in an epoch; a generator serves one epoch only, give a list"
            )
        _stop_if_not_finite(bad_step, state, epoch_lr, train, accumulate)
        _stop_if_weights_not_finite(state, epoch_lr)
        state.epoch_seconds = time.perf_counter() - began
        records.append(_training_record(state, epoch, epoch_lr))
        images = records[-1]["n"]
        _show(display, records[-1])

        phase("validation")
        if isinstance(state.average, TailAverage) and state.average.has_begun(state.step):
            with recomputed_batchnorm(state.average.module, model):
                for item in _batches(train, 0, 0):
                    with precision, normalising:
                        state.average.module(to_batch(item, device).images)
        if val is not None:
            began = time.perf_counter()
            scores = validate(state.weights, val, device=device, amp=amp, display=display)
            records.append(_validation_record(scores, epoch, epoch_lr, time.perf_counter() - began))
            _show(display, records[-1])
        improved = val is not None and (state.best_accuracy is None or scores.accuracy > state.best_accuracy)
        if improved:
            state.best_accuracy, state.best_epoch = scores.accuracy, epoch + 1
        _finish_epoch(state, images)
        over = _is_over(state, epochs, patience)
        phase("checkpoint")
        if recorder:
            recorder.write_metrics(records)
            if improved:
                display.line(f"Saving best model to {recorder.run.best}")
                recorder.save_best(
                    dict(iterate_parts({"model": merged(state.weights.state_dict())})), plain_values(state)
                )
            recorder.save_last(*pack(state))
            phase("curves")
            if over or recorder.curves_due():
                recorder.draw_curves(records)
        if stop and stop.received and not over:
            raise _interrupted(stop, state, recorder, records, processes)
    phase("checkpoint")
    if state.epoch < epochs:
        display.line(f"ended after epoch {state.epoch}: none was better since epoch {state.best_epoch}")
    if recorder:
        recorder.flush()
    return history_of(records)


def _is_over(state: TrainingState, epochs: int, patience: int | None) -> bool:
    """Whether all `epochs` are done, or the last `patience` of them were no better than the best."""
    waited = state.epoch - (state.best_epoch or 0)
    return state.epoch >= epochs or (patience is not None and waited >= patience)


def to_batch(item: Any, device: torch.device) -> Batch:
    """A batch, or any pair of images and targets, on `device`; images `[N, C, H, W]` in channels-last layout."""
    images, targets = item
    indices = item.indices if isinstance(item, Batch) else torch.full((len(images),), -1)
    return Batch(copy_to(images, device), copy_to(targets, device), indices)


def _ignore(_: str) -> None:
    """Nothing is measured."""


def cross_entropy(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss where none is given."""
    return cross_entropy_sum(logits, batch.targets)


def _batches(train: TrainBatches | Pairs, epoch: int, start: int) -> Iterable[Any]:
    if callable(train):
        return train(epoch, start)
    if start:
        raise UsageError(
            "expected a function (epoch, start_batch) to go on in mid-epoch, found an iterable; start the epoch again"
        )
    return train


def _updates(train: TrainBatches | Pairs, accumulate: int) -> int | None:
    """Updates in an epoch, where the data can tell."""
    return math.ceil(len(train) / accumulate) if isinstance(train, Sized) else None


def _in_groups(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _set_learning_rates(optimizer: Optimizer, factor: float) -> float:
    """Set every group's rate to its own times `factor`; the first group's is returned, for people to see."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def _seed_generators(device: torch.device, seed: int) -> None:
    """Seed what dropout draws from; 1.4 us on the CPU, where `torch.manual_seed` costs over 160."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def gradients(model: nn.Module) -> list[Tensor]:
    """Those that the backward pass has left."""
    return [p.grad for p in model.parameters() if p.grad is not None]


def _remember(state: TrainingState) -> Callable[[], None]:
    """A function that undoes what a forward and a backward pass are about to change besides the gradients."""
    totals = state.totals.clone()
    buffers = [(buffer, buffer.clone()) for buffer in state.model.buffers()]

    def undo() -> None:
        state.totals.copy_(totals)
        state.skipped_steps += 1
        for buffer, before in buffers:
            buffer.copy_(before)

    return undo


def _is_finite(state: TrainingState) -> bool:
    """Whether the loss is, and (but where a scaler sees to them) the gradients are. Waits for the device."""
    finite = state.totals[0].isfinite()
    if (found := gradients(state.model)) and not state.scaler.is_enabled():
        finite = finite & torch.stack(torch._foreach_norm(found)).isfinite().all()
    return bool(finite)


def _stop_if_not_finite(
    bad_step: Tensor, state: TrainingState, lr: float, train: TrainBatches | Pairs, accumulate: int
) -> None:
    """Waits for the device. A gradient that is not finite is seen here by the loss of the step after it."""
    step = int(bad_step)
    if step < 0:
        return
    seen = ""
    if isinstance(train, TrainingBatches):
        first = (state.epoch_step - (state.step - step)) * accumulate
        places = itertools.chain(*itertools.islice(train.positions(state.epoch, first), accumulate))
        names = [train.split.paths[place] for place in places]
        seen = f"; its images: {', '.join(names[:10])}{f' and {len(names) - 10} more' * (len(names) > 10)}"
    raise NonFiniteError(
        f"the training loss is not finite at step {step} (epoch {state.epoch + 1}, learning rate {lr:g}); "
        f"try a lower --lr, --warmup-epochs 1, --clip-grad 1 or --amp off, or --on-nonfinite skip{seen}"
    )


def _stop_if_weights_not_finite(state: TrainingState, lr: float) -> None:
    """Waits for the device. A gradient may have spoilt them before any loss shows it, and such a checkpoint is of no use."""
    weights = [
        each.detach() for each in state.model.parameters() if each.is_floating_point() and each.numel()
    ]
    if weights and not torch.stack(torch._foreach_norm(weights, math.inf)).isfinite().all():
        raise NonFiniteError(
            f"the weights are not finite after step {state.step} (epoch {state.epoch + 1}, learning rate {lr:g}); "
            "try a lower --lr, --warmup-epochs 1, --clip-grad 1 or --amp off, or --on-nonfinite skip"
        )


def _interrupted(
    stop: StopSignal | AgreedStop,
    state: TrainingState,
    recorder: RunRecorder | None,
    records: list[Record],
    processes: Processes,
) -> Interrupted:
    """Save what there is, and say how to go on."""
    if recorder:
        recorder.save_last(*pack(state))
        recorder.flush()
        recorder.end_progress()
        if records:
            recorder.draw_curves(records)
    # The end of one process ends all: not before the first has saved.
    path = processes.from_first(recorder.run.path if recorder else None)
    how = f"; go on with: visus train --resume {path}" if path else ""
    return Interrupted(f"interrupted at step {state.step}{how}", stop.exit_code)


def _finish_epoch(state: TrainingState, images: int) -> None:
    """Move the epoch's counts to those of the run."""
    state.images += images
    state.seconds += state.epoch_seconds
    state.epoch += 1
    state.epoch_step = 0
    state.epoch_seconds = 0.0
    state.totals.zero_()


def _training_record(state: TrainingState, epoch: int, lr: float) -> Record:
    loss, normaliser, correct, images = state.totals.tolist()
    if not images:
        raise NonFiniteError(f"no step of epoch {epoch + 1} had a finite loss and gradient; try a lower --lr")
    return {
        "epoch": epoch + 1,
        "phase": "train",
        "loss": loss / normaliser,
        "accuracy": correct / images,
        "n": int(images),
        "lr": lr,
        "seconds": state.epoch_seconds,
        "images_per_second": images / state.epoch_seconds,
    }


def _validation_record(scores: Validation, epoch: int, lr: float, seconds: float) -> Record:
    if not math.isfinite(scores.loss):
        raise NonFiniteError(
            f"the validation loss is not finite after epoch {epoch + 1} (learning rate {lr:g}); try a lower --lr"
        )
    return {
        "epoch": epoch + 1,
        "phase": "val",
        "loss": scores.loss,
        "accuracy": scores.accuracy,
        "n": scores.n,
        "lr": lr,
        "seconds": seconds,
        "images_per_second": scores.n / seconds,
    }


def _show(display: Display, record: Record) -> None:
    correct = round(record["accuracy"] * record["n"])
    loss = math.nan if record["loss"] is None else record["loss"]
    speed = record["images_per_second"]
    display.phase(record["phase"], loss, correct, record["n"], record["seconds"], speed)


def _progress(state: TrainingState, updates: int | None, loss: Tensor, normaliser: Tensor) -> Progress:
    """Waits for the device."""
    total, weight, correct, images = state.totals.tolist()
    return Progress(
        iteration=state.epoch_step,
        iterations=updates,
        seconds=state.epoch_seconds,
        loss=float(loss.detach()) / float(normaliser),
        mean_loss=total / weight if weight else math.nan,
        correct=int(correct),
        n=int(images),
    )
