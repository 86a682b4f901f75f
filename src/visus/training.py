"""`train`: from settings to a finished run, assembled of the parts below."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from visus.amp import resolve_amp
from visus.assembling import begin, check_compile, count_steps, model_args, new_model, training_batches
from visus.auditing.short import short_audit
from visus.autotuning import with_batch_size, with_lr
from visus.checkpoint import (
    CHECKPOINT_KEY,
    Checkpoint,
    divide_logits,
    find_checkpoint,
    load_checkpoint,
    load_tensors,
    model_digest,
)
from visus.config import (
    TrainConfig,
    default_batch_size,
    make_config,
    plain_settings,
    read_config,
    resolve_config,
    with_absolute_paths,
    write_config,
)
from visus.data.batching import EvaluationBatches, TrainingBatches
from visus.data.foreign import Transform
from visus.data.listing import split_header, split_rows
from visus.devices import (
    computing,
    default_threads,
    describe_device,
    describe_devices,
    noting_nondeterminism,
    own_device,
)
from visus.display import Display
from visus.distillation import find_teacher
from visus.errors import CheckpointError, DataError, UnreadableError, UsageError
from visus.evaluation import Scores
from visus.files import link, write_json
from visus.loop import Loss, fit
from visus.models.adapt import freezer
from visus.models.build import build_model
from visus.models.lora import merge_lora
from visus.models.names import resolve_model
from visus.models.weights import is_file
from visus.objective import make_loss
from visus.ops.optim import resolve_optimizer
from visus.ops.schedules import make_schedule
from visus.plots import plot_confusion, plot_reliability
from visus.preparing import Prepared, prepare, prepare_again
from visus.probing import compute_features, fed_with_features, trains_head_alone
from visus.processes import AgreedStop, Processes, find_begun, joined, launch_id
from visus.profiling import Profile
from visus.recording import RunRecorder, parse_interval
from visus.resuming import (
    begin_epoch_anew,
    data_has_changed,
    other_versions,
    refuse_changes,
    refuse_other_transform,
    setting_names,
)
from visus.runs import History, RunFolder, check_out, create_run, open_run
from visus.signals import StopSignal
from visus.state import TrainingState, restore
from visus.tables import usual_suffix, writing_table
from visus.tensorfile import read_header
from visus.testing import Evaluation, score_split
from visus.tracking import Send, check_tracker, open_tracker

_SHAPE_EPOCHS = frozenset(["batch_size", "accumulate"])
"""Settings without which a place in an epoch means something else."""


@dataclass(frozen=True)
class Run:
    """What a run came to."""

    run: str
    epochs: int
    steps: int
    seconds: float
    """Of the training phases."""
    images_per_second: float
    best: dict[str, Any]
    final: dict[str, Any]
    test: dict[str, Any] | None
    checkpoints: dict[str, str]
    digest: str
    """Of the final weights."""
    skipped: int
    """Files that were left out."""
    findings: int
    skipped_steps: int = 0
    """Updates that were left out, since their loss or gradient was not finite."""
    failure: str | None = None
    """What could not be written, if anything."""

    def to_json(self) -> dict[str, Any]:
        """The document of `visus train --json`."""
        document = dataclasses.asdict(self)
        del document["failure"]
        return document


@dataclass(frozen=True)
class _Assembly:
    """All that a run is put together of."""

    config: TrainConfig
    prepared: Prepared
    device: torch.device
    state: TrainingState
    run: RunFolder
    display: Display
    processes: Processes
    loss: Loss
    transform: Transform | None = None

    @property
    def batches(self) -> TrainingBatches:
        """Those to train on."""
        return training_batches(
            self.config, self.prepared, self.processes.rank, self.processes.size, self.transform
        )


def train(config: TrainConfig, *, display: Display | None = None, transform: Transform | None = None) -> Run:
    """Train a model as `config` says, in a new folder, and evaluate it once on the test part where there is one.

    `transform`, such as a pipeline of `torchvision.transforms.v2`, takes the place of `augment`: it gets a training image, uint8
    `[C, h, w]`, and makes it as large as the model wants it. Random numbers that it draws are seeded for each image.
    Of several processes, as `torchrun` starts them, each calls this alike; those it has started again go on with their run.
    """
    parse_interval(config.checkpoint_every)
    if config.track:
        check_tracker(config.track)
    resolve_optimizer(config)
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
        prepared = _prepared_alike(prepare(config, display), processes)
        threads = default_threads(processes.local_size)
        asked = config
        config = processes.from_first(
            resolve_config(config, prepared.train, prepared.preprocessing, device, threads)
        )
        check_compile(config, device, processes)
        with computing(threads=config.threads, deterministic=config.deterministic):
            if asked.batch_size == "auto":
                config = with_batch_size(config, asked, prepared, device, processes, display)
            # The model is made before the folder, so that a mistyped name leaves nothing behind.
            model = new_model(config, prepared, device, display.line)
            state = begin(config, model, device, steps=count_steps(config, prepared))
            if config.lr == "auto":
                config = with_lr(config, prepared, state, device, processes, display, transform)
            loss = make_loss(config, prepared.train, prepared.preprocessing, device)
            run = RunFolder(processes.from_first(_new_folder(config, prepared, processes)))
            with run.locked(needed=processes.first), closing(prepared):
                return _run(
                    _Assembly(config, prepared, device, state, run, display, processes, loss, transform)
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
    config = with_absolute_paths(make_config(**{**stored, **changes}))
    refuse_changes(make_config(**stored), config, allowed)
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
                prepared = prepare_again(config, checkpoint.preprocessing, display)
                # Its weights come from the checkpoint: those it started from may be gone.
                model = build_model(config.model, **model_args(config, prepared))
            else:
                display.line(f"{run.path} has no checkpoint yet; resumed from step 0")
                prepared = prepare(config, display)
                model = new_model(config, prepared, device, display.line)
            _prepared_alike(prepared, processes)
            state = begin(config, model, device, steps=count_steps(config, prepared))
            loss = make_loss(config, prepared.train, prepared.preprocessing, device)
            assembly = _Assembly(config, prepared, device, state, run, display, processes, loss, transform)
            if checkpoint:
                refuse_other_transform(run, checkpoint, transform)
                others_data = data_has_changed(run, checkpoint, prepared, allowed)
                _continue(assembly, checkpoint, anew=others_data or _has_other_batches(config, checkpoint))
            if processes.first:
                if checkpoint and checkpoint.path != run.last:
                    # Or the damaged one would be the predecessor of the next.
                    link(run.previous, run.last)
                run.cut_back(state.epoch, checkpoint.document.get("records") if checkpoint else [])
                write_config(config, run.config)
                _write_missing(assembly)
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


def _prepared_alike(prepared: Prepared, processes: Processes) -> Prepared:
    """`prepared`; `DataError` where the processes do not have the same data."""
    found = processes.from_each(prepared.fingerprint)
    if differing := [str(rank) for rank, each in enumerate(found) if each != found[0]]:
        raise DataError(
            f"{prepared.data.source}: expected the same images in every process, found others in process "
            f"{', '.join(differing)} than in process 0; copy the data again"
        )
    return prepared


def _new_folder(config: TrainConfig, prepared: Prepared, processes: Processes) -> str:
    """The path of the run's folder, made by the first process."""
    if not processes.first:
        return ""
    run = create_run(config.out, config.name or "run")
    write_config(config, run.config)
    write_json(run.environment, _environment(config, prepared, processes))
    _write_split(prepared, run)
    return str(run.path)


def _write_missing(assembly: _Assembly) -> None:
    """What a process that was killed at its beginning had not written yet; and what it had begun goes."""
    run, prepared = assembly.run, assembly.prepared
    run.remove_leftovers()
    if not run.environment.exists():
        write_json(run.environment, _environment(assembly.config, prepared, assembly.processes))
    if not run.split.exists():
        _write_split(prepared, run)


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


def _continue(assembly: _Assembly, checkpoint: Checkpoint, *, anew: bool) -> None:
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
            _write_split(assembly.prepared, run)
    display.line(f"resumed from step {state.step}")
    if checkpoint.config.get("epochs") != config.epochs and config.schedule != "constant":
        display.line(
            f"the {config.schedule} schedule is reckoned anew for {config.epochs} epochs; the past stays as it was"
        )


def _run(assembly: _Assembly) -> Run:
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
        recording = RunRecorder(run, _document(assembly), every=every, keep=keep, warn=display.line)
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
            _keep_profile(profiling, run, recorder, display)
        result = _finish(assembly, recorder, history, inexact, findings) if recorder else None
    return processes.from_first(result)  # type: ignore[return-value]


def _audit(assembly: _Assembly) -> int:
    """Look at the data, once for each run, and say what is wrong with it: how many findings there are."""
    run, display = assembly.run, assembly.display
    with suppress(OSError, ValueError, KeyError, TypeError):
        return len(json.loads(run.audit.read_text(encoding="utf-8"))["findings"])
    found = short_audit(assembly.prepared.data, assembly.config.val)
    for line in (*found.notes, *found.summary()):
        display.line(f"audit: {line}")
    try:
        write_json(run.audit, found.to_json())
    except OSError as error:
        display.line(f"{run.audit}: could not be written ({error.strerror})")
    return len(found.findings)


def _say_inexact(assembly: _Assembly, recorder: RunRecorder, operations: set[str]) -> None:
    """Tell, and keep in `environment.json`, what makes this run differ from its repetition."""
    names, path = sorted(operations), assembly.run.environment
    assembly.display.line(f"not the same bits each time: no deterministic kernel for {', '.join(names)}")

    def add() -> None:
        environment = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, environment | {"not_deterministic": names})

    recorder.attempt(path, add)


def _keep_profile(profiling: Profile, run: RunFolder, recorder: RunRecorder, display: Display) -> None:
    """Say where the time went, and keep it, with a trace."""
    if not profiling.steps:
        return
    recorder.attempt(run.profile, lambda: write_json(run.profile, profiling.to_json()))
    recorder.attempt(run.trace, lambda: profiling.write_trace(run.trace))
    display.line(f"{profiling}\nTrace for ui.perfetto.dev: {run.trace}")


def _finish(
    assembly: _Assembly, recorder: RunRecorder, history: History, inexact: set[str], findings: int
) -> Run:
    """What comes after training, in the first process."""
    run, display = assembly.run, assembly.display
    if inexact:
        _say_inexact(assembly, recorder, inexact)
    # Before the best weights take the place of the final ones.
    digest = model_digest(assembly.state.model.state_dict())
    scores = _test(assembly, recorder)
    result = _result(assembly, scores, recorder, history, digest, findings)
    recorder.attempt(run.summary, lambda: write_json(run.summary, result.to_json()))
    display.line(
        f"Best model: {run.best}\nFinal model: {run.last}\nCurves: {run.path / 'loss_accuracy.png'}\n"
        f"Confusion matrix: {run.path / 'confusion.png'}"
    )
    return result


def _test(assembly: _Assembly, recorder: RunRecorder) -> Scores:
    """Evaluate the best weights once: on the test part, or where there is none on the validation part.

    Where the best could not be written, those of the last epoch.
    """
    config, prepared, display = assembly.config, assembly.prepared, assembly.display
    data, run, model = prepared.data, assembly.run, assembly.state.weights
    part = data.test or prepared.val
    temperature = 1.0
    if run.best.exists():
        merge_lora(model)
        best = load_checkpoint(run.best)
        load_tensors(model, best.model_tensors, run.best)
        if (temperature := best.temperature) != 1:
            divide_logits(model, temperature)
    began = time.perf_counter()
    table = run.path / f"predictions{usual_suffix()}"
    options: Any = {
        "batch_size": config.val_batch_size,
        "device": assembly.device,
        "amp": config.amp,
        "workers": config.workers,
    }
    try:
        scores = score_split(model, part, prepared.preprocessing, predictions=table, **options)
    except (OSError, UsageError) as error:
        display.line(f"{table}: could not be written ({error})")
        scores = score_split(model, part, prepared.preprocessing, **options)
    for other in {run.path / "predictions.csv", run.path / "predictions.parquet"} - {table}:
        other.unlink(missing_ok=True)
    found = Evaluation(part.name, scores, (), (), prepared.tested, temperature)
    recorder.attempt(run.evaluation, lambda: write_json(run.evaluation, found.to_json()))
    picture = run.path / "confusion.png"
    recorder.attempt(
        picture, lambda: plot_confusion(scores.confusion, data.classes, picture, warn=display.line)
    )
    reliability = run.path / "reliability.png"
    recorder.attempt(reliability, lambda: plot_reliability({part.name: scores.reliability}, reliability))
    low, high = scores.accuracy_ci95
    display.line(
        f"Accuracy of the best model on the {scores.n} {part.name} images: {100 * scores.accuracy:.2f}% "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f}; {time.perf_counter() - began:.2f}s)"
    )
    return scores


def _result(
    assembly: _Assembly,
    scores: Scores,
    recorder: RunRecorder,
    history: History,
    digest: str,
    findings: int,
) -> Run:
    run, state, data = assembly.run, assembly.state, assembly.prepared.data
    test = {"n": scores.n, "accuracy": scores.accuracy, "accuracy_ci95": list(scores.accuracy_ci95)}
    return Run(
        run=str(run.path),
        epochs=state.epoch,
        steps=state.step,
        seconds=state.seconds,
        images_per_second=state.images / state.seconds,
        best={"epoch": state.best_epoch, "accuracy": state.best_accuracy},
        final={"loss": history["loss"]["val"][-1], "accuracy": history["acc"]["val"][-1]},
        test=test if data.test else None,
        checkpoints={"best": str(run.best), "last": str(run.last)},
        digest=digest,
        skipped=len(data.skipped),
        findings=findings,
        skipped_steps=state.skipped_steps,
        failure=recorder.failure,
    )


def _introduction(assembly: _Assembly, iterations: dict[str, int]) -> list[str]:
    """What people see first: what was understood, and the sizes."""
    config, prepared = assembly.config, assembly.prepared
    height, width = prepared.preprocessing.size
    sizes = {"train": len(prepared.train), "val": len(prepared.val)}
    batch_size = default_batch_size(config, prepared.train)
    batch_sizes = {"train": batch_size, "val": config.val_batch_size}
    return [
        describe_device(assembly.device),
        *prepared.data.notes,
        f"dataSize: {sizes}",
        f"batchSize: {batch_sizes}{_per_process(batch_size, assembly.processes)}",
        f"iterNum: {iterations}",
        f"amp: {config.amp}, threads: {config.threads}, images of {height}x{width}",
        f"run: {assembly.run.path}",
    ]


def _per_process(batch_size: int, processes: Processes) -> str:
    if processes.size == 1:
        return ""
    least, more = divmod(batch_size, processes.size)
    shares = f"{least} or {least + 1}, as it is no multiple of their number" if more else str(least)
    return f", of each batch {shares} in each of {processes.size} processes"


def _document(assembly: _Assembly) -> dict[str, Any]:
    """What a checkpoint says besides its tensors and the state."""
    config, prepared = assembly.config, assembly.prepared
    return {
        "model": config.model,
        "model_args": model_args(config, prepared),
        "classes": list(prepared.data.classes),
        "preprocess": prepared.preprocessing.to_json(),
        "config": plain_settings(config),
        "data": prepared.fingerprint,
        "processes": assembly.processes.size,
        "transform": assembly.transform is not None,
    }


def _write_split(prepared: Prepared, run: RunFolder) -> None:
    """Which image is in which part."""
    with writing_table(run.split, split_header(prepared.data)) as write:
        write(split_rows(prepared.data))


def _environment(config: TrainConfig, prepared: Prepared, processes: Processes) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in ("visus", "torch", "torchvision", "timm", "numpy", "pillow")},
        "devices": [dataclasses.asdict(each) for each in describe_devices()],
        "seed": config.seed,
        "data": prepared.fingerprint,
        "processes": processes.size,
        "launch": launch_id(),
        "not_deterministic": [],
    }
