"""`train`: from settings to a finished run, assembled of the parts below."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import Any

from torch import nn

from visus.amp import resolve_amp
from visus.assembling import (
    Assembly,
    begin,
    check_compile,
    check_shares,
    count_steps,
    model_args,
    new_model,
    with_some_rate,
)
from visus.auditing.short import short_audit
from visus.autotuning import with_batch_size, with_lr
from visus.checkpoint import (
    CHECKPOINT_KEY,
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
)
from visus.config import (
    TrainConfig,
    default_batch_size,
    plain_settings,
    read_config,
    remake_config,
    resolve_config,
    with_absolute_paths,
    write_config,
)
from visus.data.batching import EvaluationBatches
from visus.data.files import cache_in_use
from visus.data.foreign import Transform
from visus.data.images import ArrayImages
from visus.devices import (
    computing,
    default_threads,
    describe_device,
    noting_nondeterminism,
    own_device,
)
from visus.display import ONE_LINE, Display, plural
from visus.distillation import find_teacher
from visus.errors import CheckpointError, UnreadableError, UsageError, first_of
from visus.files import link, write_json
from visus.finishing import Run, finish, keep_profile
from visus.idle import refuse_idle, unreached
from visus.loop import fit
from visus.models.adapt import freezer
from visus.models.build import build_model
from visus.models.names import resolve_model
from visus.models.weights import is_file
from visus.objective import make_loss
from visus.ops.optim import make_optimizer
from visus.ops.schedules import make_schedule
from visus.preparing import prepare, prepare_again
from visus.probing import compute_features, fed_with_features, trains_head_alone
from visus.processes import AgreedStop, Processes, find_begun, joined, refuse_other_data
from visus.profiling import Profile
from visus.recording import RunRecorder, parse_interval
from visus.resuming import (
    begin_epoch_anew,
    data_has_changed,
    other_versions,
    refuse_changes,
    refuse_other_transform,
    setting_names,
    written_since,
)
from visus.run_files import checkpoint_document, new_folder, write_missing, write_split
from visus.runs import RunFolder, check_out, open_run
from visus.signals import StopSignal
from visus.state import restore
from visus.tensorfile import read_header
from visus.tracking import Send, check_tracker, open_tracker

_SHAPE_EPOCHS = frozenset(["batch_size", "accumulate"])
"""Settings without which a place in an epoch means something else."""


def train(config: TrainConfig, *, display: Display | None = None, transform: Transform | None = None) -> Run:
    """Train a model as `config` says, in a new folder, and evaluate it once on the test part where there is one.

    `transform`, such as a pipeline of `torchvision.transforms.v2`, takes the place of `augment`: it gets a training image, uint8
    `[C, h, w]`, and makes it as large as the model wants it. Random numbers that it draws are seeded for each image.
    Of several processes, as `torchrun` starts them, each calls this alike; those it has started again go on with their run.
    """
    parse_interval(config.checkpoint_every)
    if config.track:
        check_tracker(config.track)
    # What is refused is refused before images are read; of a layer that draws no weights.
    make_optimizer(nn.Linear(1, 1, device="meta"), with_some_rate(config))
    resolve_model(config.model)
    with joined() as processes:
        if processes.first:
            check_out(config.out)
        display = _display(display, processes)
        if begun := processes.from_first(find_begun(config.out, processes)):
            display.line("started again by torchrun")
            return _resume(open_run(begun), processes, display, transform)
        device = own_device(config.device, processes.local_rank, processes.local_size)
        if config.weights and is_file(*resolve_model(config.model), config.weights):
            config = dataclasses.replace(config, weights=str(_weights_file(config.weights)))
        if config.distill:
            teacher, digest = find_teacher(config.distill, config.distill_digest)
            config = dataclasses.replace(config, distill=teacher, distill_digest=digest)
        prepared = prepare(config, display, processes)
        refuse_other_data(processes, prepared.data.source, prepared.fingerprint)
        threads = default_threads(processes.local_size)
        asked = config
        config = processes.from_first(
            resolve_config(config, prepared.train, prepared.preprocessing, device, threads)
        )
        check_compile(config, device, processes)
        with computing(threads=config.threads, deterministic=config.deterministic):
            if asked.batch_size == "auto":
                config = with_batch_size(config, asked, prepared, device, processes, display)
            check_shares(config, len(prepared.train), processes)
            # The model is made before the folder, so that a mistyped name leaves nothing behind.
            model = new_model(config, prepared, device, display.line)
            state = begin(config, model, device, steps=count_steps(config, prepared))
            if config.lr == "auto":
                config = with_lr(config, prepared, state, device, processes, display, transform)
            loss = make_loss(config, prepared.train, prepared.preprocessing, device)
            run = RunFolder(processes.from_first(new_folder(config, prepared, processes)))
            with run.locked(needed=processes.first), closing(prepared):
                return _run(
                    Assembly(config, prepared, device, state, run, display, processes, loss, transform)
                )


def resume(
    path: str,
    *,
    display: Display | None = None,
    transform: Transform | None = None,
    allow_change: Collection[str] = (),
    **changes: Any,
) -> Run:
    """Go on with the run in the folder `path`; a `transform` that it had must be given again.

    Of its settings those in `resuming.FREE` may change, others, `data` and `classes` where `allow_change` names them; what is
    changed in the middle of an epoch begins that epoch anew where its batches are others.
    """
    with joined() as processes:
        display = _display(display, processes)
        allowed = setting_names(allow_change)
        return _resume(open_run(path), processes, display, transform, allowed, **changes)


def _resume(
    run: RunFolder,
    processes: Processes,
    display: Display,
    transform: Transform | None,
    allowed: Collection[str] = (),
    **changes: Any,
) -> Run:
    stored = read_config(run.config)
    config = with_absolute_paths(remake_config({**stored, **changes}))
    refuse_changes(remake_config(stored), config, allowed)
    refuse_idle(config, changes)
    device = own_device(config.device, processes.local_rank, processes.local_size)
    resolve_amp(config.amp, device)
    check_compile(config, device, processes)
    if others := other_versions(run):
        display.line(f"other versions than when the run began, so bits may differ: {'; '.join(others)}")
    with run.locked(needed=processes.first):
        begun = run.last.exists() or run.previous.exists()
        checkpoint = _last_checkpoint(run, display) if begun else None
        _refuse_other_checkpoints(run, checkpoint, processes)
        config = _own_threads(config, checkpoint, processes, display)
        with computing(threads=config.threads, deterministic=config.deterministic):
            if checkpoint:
                prepared = prepare_again(config, checkpoint.preprocessing, display, processes)
                # Its weights come from the checkpoint: those it started from may be gone.
                model = build_model(config.model, **model_args(config, prepared))
            else:
                display.line(f"{run.path} has no checkpoint yet; resumed from step 0")
                prepared = prepare(config, display, processes)
                model = new_model(config, prepared, device, display.line)
            refuse_other_data(processes, prepared.data.source, prepared.fingerprint)
            check_shares(config, len(prepared.train), processes)
            state = begin(config, model, device, steps=count_steps(config, prepared))
            loss = make_loss(config, prepared.train, prepared.preprocessing, device)
            assembly = Assembly(config, prepared, device, state, run, display, processes, loss, transform)
            if checkpoint:
                refuse_other_transform(run, checkpoint, transform)
                others_data = data_has_changed(run, checkpoint, prepared, allowed)
                if not others_data and (doubt := written_since(run, prepared.data)):
                    display.line(doubt)
                _continue(assembly, checkpoint, anew=others_data or _has_other_batches(config, checkpoint))
            if processes.first:
                if checkpoint and checkpoint.path != run.last:
                    # Or the damaged one would be the predecessor of the next.
                    link(run.previous, run.last)
                run.cut_back(state.epoch, checkpoint.document.get("records") if checkpoint else [])
                write_config(config, run.config)
                write_missing(assembly)
            with closing(prepared):
                return _run(assembly)


def _weights_file(given: str) -> Path:
    """The file to start from; of a run's folder its best checkpoint. One of ours is verified."""
    path = find_checkpoint(given)
    if path.suffix == ".safetensors" and CHECKPOINT_KEY in read_header(path):
        load_checkpoint(path)
    return path


def _display(given: Display | None, processes: Processes) -> Display:
    """What people see comes from the first process."""
    return given if given and processes.first else Display(quiet=True)


def _own_threads(
    config: TrainConfig, checkpoint: Checkpoint | None, processes: Processes, display: Display
) -> TrainConfig:
    """The threads of the run, unless it had another number of processes."""
    before = checkpoint.document.get("processes", 1) if checkpoint else processes.size
    if before == processes.size:
        return config
    display.line(f"{processes.size} processes go on with a run of {before}: bits may differ")
    return dataclasses.replace(config, threads=default_threads(processes.local_size))


def _last_checkpoint(run: RunFolder, display: Display) -> Checkpoint:
    """The last checkpoint, or the one before it where that is damaged."""
    try:
        return load_checkpoint(run.last)
    except UnreadableError:
        raise
    except CheckpointError as error:
        display.line(f"{error}; going on from {run.previous.name}")
        return load_checkpoint(run.previous)


def _refuse_other_checkpoints(run: RunFolder, checkpoint: Checkpoint | None, processes: Processes) -> None:
    """`CheckpointError` where the processes do not see the same one, as on a file system that is slow to tell."""
    found = processes.from_each(checkpoint and checkpoint.document["checksum"])
    if len(set(found)) > 1:
        raise CheckpointError(
            f"{run.path}: expected the same checkpoint in every process, found others; "
            "give a folder that all machines share"
        )


def _has_other_batches(config: TrainConfig, checkpoint: Checkpoint) -> bool:
    """Whether a place in an epoch means something else than in `checkpoint`; `config.yaml` may have been ahead of it already."""
    now = plain_settings(config)
    return any(now.get(name) != checkpoint.config.get(name) for name in _SHAPE_EPOCHS)


def _continue(assembly: Assembly, checkpoint: Checkpoint, *, anew: bool) -> None:
    """Bring the state of `assembly` to where `checkpoint` stands, or with `anew` to the beginning of that epoch."""
    config, run, display, state = assembly.config, assembly.run, assembly.display, assembly.state
    restore(state, checkpoint.tensors, checkpoint.document.get("state", {}), checkpoint.path)
    if state.epoch > config.epochs:
        raise UsageError(
            f"--epochs {config.epochs}: {state.epoch} epochs are done already; ask for more, or leave it out"
        )
    if anew:
        begin_epoch_anew(state, -(-len(assembly.batches) // config.accumulate))
        display.line(f"the batches are others than before: epoch {state.epoch + 1} begins anew")
        if assembly.processes.first:
            write_split(assembly.prepared, run)
    display.line(f"resumed from step {state.step}")
    if checkpoint.config.get("epochs") != config.epochs and config.schedule != "constant":
        display.line(
            f"the {config.schedule} schedule is reckoned anew for {config.epochs} epochs; the past stays as it was"
        )


def _run(assembly: Assembly) -> Run:
    config, prepared, state = assembly.config, assembly.prepared, assembly.state
    run, display, processes = assembly.run, assembly.display, assembly.processes
    batches = assembly.batches
    val_batches = EvaluationBatches(
        prepared.val,
        prepared.preprocessing,
        config.val_batch_size or 0,
        processes.rank,
        processes.size,
        config.workers,
    )
    for line in _introduction(assembly, {"train": len(batches), "val": len(val_batches)}):
        display.line(line)
    findings = _audit(assembly) if processes.first else 0
    features = None
    if trains_head_alone(config):
        features = compute_features(
            state.model, config, batches, val_batches, device=assembly.device, say=display.line
        )
    feeding = fed_with_features(state.model, state.weights) if features else nullcontext()
    recording: AbstractContextManager[RunRecorder | None] = nullcontext()
    if processes.first:
        every, keep = config.checkpoint_every, config.keep
        recording = RunRecorder(run, checkpoint_document(assembly), every=every, keep=keep, warn=display.line)
    tracking: AbstractContextManager[Send | None] = nullcontext()
    if config.track and processes.first:
        tracking = open_tracker(config.track, run, plain_settings(config), display.line)
    profiling = Profile(assembly.device) if config.profile and processes.first else None
    updates = -(-len(batches) // config.accumulate)
    with noting_nondeterminism() as inexact:
        with (
            StopSignal() as stop,
            tracking as track,
            recording as recorder,
            profiling or nullcontext(),
            feeding,
        ):
            if recorder:
                recorder.track = track
            history = fit(
                state.model,
                *(features or (batches, val_batches)),
                optimizer=state.optimizer,
                epochs=config.epochs,
                patience=config.patience,
                schedule=make_schedule(config, epochs=config.epochs, steps_per_epoch=updates),
                loss=assembly.loss,
                device=assembly.device,
                amp=config.amp,
                accumulate=config.accumulate,
                clip_grad=config.clip_grad,
                on_nonfinite=config.on_nonfinite,
                seed=config.seed,
                state=state,
                recorder=recorder,
                display=display,
                stop=AgreedStop(stop, processes),
                freeze=None if config.lora else freezer(state.model, config.freeze, display.line),
                processes=processes,
                batchnorm=config.batchnorm,
                compile=config.compile,
                profile=profiling,
            )
        if profiling and recorder:
            keep_profile(profiling, run, recorder, display)
        result = finish(assembly, recorder, history, inexact, findings) if recorder else None
    return processes.from_first(result)  # type: ignore[return-value]


def _audit(assembly: Assembly) -> int:
    """Look at the data, once for each run, and say what is wrong with it: how many findings there are."""
    run, display = assembly.run, assembly.display
    with suppress(OSError, ValueError, KeyError, TypeError):
        return len(json.loads(run.audit.read_text(encoding="utf-8"))["findings"])
    found = short_audit(assembly.prepared.data, assembly.config.val)
    for line in (*found.notes, *found.summary()):
        display.line(f"audit: {line}".translate(ONE_LINE))
    try:
        write_json(run.audit, found.to_json())
    except OSError as error:
        display.line(f"{run.audit}: could not be written ({error.strerror})")
    else:
        if found.findings:
            display.line(f"audit: every finding: {run.audit}")
    return len(found.findings)


def _introduction(assembly: Assembly, iterations: dict[str, int]) -> list[str]:
    """What people see first: what was understood, and the sizes."""
    config, prepared = assembly.config, assembly.prepared
    height, width = prepared.preprocessing.size
    unseen = prepared.val.absent_classes
    sizes = {"train": len(prepared.train), "val": len(prepared.val)}
    batch_size = default_batch_size(config, prepared.train)
    batch_sizes = {"train": batch_size, "val": config.val_batch_size}
    return [
        describe_device(assembly.device),
        *prepared.data.notes,
        f"dataSize: {sizes}",
        f"batchSize: {batch_sizes}{_per_process(batch_size, assembly.processes)}",
        f"iterNum: {iterations}",
        f"images of {height}x{width}{_workers(assembly)}",
        _step(assembly),
        *unreached(config, count_steps(config, prepared)),
        *([f"classes without an image to validate on: {first_of(unseen)}"] if unseen else []),
        f"run: {assembly.run.path}",
    ]


def _workers(assembly: Assembly) -> str:
    """How many decode or read files; what is in memory needs none."""
    if isinstance(assembly.prepared.train.images, ArrayImages):
        return ", in memory"
    return f", cache: {cache_in_use(assembly.prepared.train.images)}, workers: {assembly.config.workers}"


def _step(assembly: Assembly) -> str:
    """What a step is made of, as it was chosen for this machine or asked for."""
    config = assembly.config
    fused = ", fused" if assembly.state.optimizer.defaults.get("fused") else ""
    compiled = ", compiled" if config.compile else ""
    threads = plural(config.threads or 1, "thread")
    return f"step: amp {config.amp}, {threads}, channels last, {config.optimizer}{fused}{compiled}"


def _per_process(batch_size: int, processes: Processes) -> str:
    if processes.size == 1:
        return ""
    least, more = divmod(batch_size, processes.size)
    shares = f"{least} or {least + 1}, as it is no multiple of their number" if more else str(least)
    return f", of each batch {shares} in each of {processes.size} processes"
