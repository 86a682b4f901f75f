"""`train`: from settings to a finished run, assembled of the parts below."""

from __future__ import annotations

import dataclasses
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from visus.amp import make_scaler, resolve_amp
from visus.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, load_tensors
from visus.config import (
    LARGEST_SMALL_SIZE,
    TrainConfig,
    make_config,
    plain_settings,
    read_config,
    resolve_config,
    with_absolute_paths,
    write_config,
)
from visus.data.batching import EvaluationBatches, TrainingBatches, measure_preprocessing
from visus.data.files import decode_once, small_size
from visus.data.images import Data, Split
from visus.data.listing import fingerprint, split_rows
from visus.data.sources import open_source
from visus.devices import (
    available_memory_bytes,
    computing,
    describe_device,
    describe_devices,
    select_device,
)
from visus.display import Display
from visus.errors import CheckpointError, DataError, UsageError
from visus.evaluation import Scores
from visus.files import write_json
from visus.loop import TrainingState, fit, restore
from visus.models.build import build_model
from visus.models.names import resolve_model
from visus.models.weights import pretrained_preprocessing
from visus.ops.averaging import ExponentialAverage
from visus.ops.losses import cross_entropy_sum
from visus.ops.optim import make_optimizer, resolve_optimizer
from visus.ops.rng import derive_seed
from visus.ops.schedules import make_schedule
from visus.plots import plot_confusion
from visus.preprocessing import Interpolation, Preprocessing
from visus.recording import RunRecorder, parse_interval
from visus.runs import RunFolder, create_run, open_run
from visus.signals import StopSignal
from visus.tables import writing_table
from visus.testing import score_split

_LARGE_SIZE = 224
_RESIZE_RATIO = 256 / 224
"""Of the short side that images are shrunk to, to the crop that the model takes: as ImageNet's models are evaluated."""
_MAY_CHANGE = {"epochs", "device", "checkpoint_every"}
"""On resume: none of these changes what a step computes."""


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
    digest: str | None
    """Of the final weights."""
    skipped: int
    findings: int
    failure: str | None = None
    """What could not be written, if anything."""

    def to_json(self) -> dict[str, Any]:
        """The document of `visus train --json`."""
        document = dataclasses.asdict(self)
        del document["failure"]
        return document


def train(config: TrainConfig, *, display: Display | None = None) -> Run:
    """Train a model as `config` says, in a new folder, and evaluate it once on the test part where there is one."""
    display = display or Display(quiet=True)
    parse_interval(config.checkpoint_every)
    resolve_optimizer(config)
    resolve_model(config.model)
    device = select_device(config.device, batch_size=config.batch_size)
    if config.weights not in (None, "default"):
        config = dataclasses.replace(config, weights=str(find_checkpoint(config.weights)))
    data, preprocessing = _open(config, display)
    config = resolve_config(config, _train_part(data), preprocessing, device)
    with computing(threads=config.threads, deterministic=config.deterministic):
        # The model is made before the folder, so that a mistyped name leaves nothing behind.
        state = _begin(config, _new_model(config, data), device)
        run = create_run(config.out, config.name or "run")
        write_config(config, run.config)
        write_json(run.environment, _environment(config, data))
        _write_split(data, run)
        with run.locked():
            return _run(config, data, device, state, preprocessing, run, display)


def resume(path: str, *, display: Display | None = None, **changes: Any) -> Run:
    """Go on with the run in the folder `path`; of its settings `epochs`, `device` and `checkpoint_every` may change."""
    display = display or Display(quiet=True)
    run = open_run(path)
    stored = read_config(run.config)
    config = with_absolute_paths(make_config(**{**stored, **changes}))
    _refuse_changes(make_config(**stored), config)
    device = select_device(config.device)
    resolve_amp(config.amp, device)
    with run.locked(), computing(threads=config.threads, deterministic=config.deterministic):
        if run.last.exists() or run.previous.exists():
            checkpoint = _last_checkpoint(run, display)
            preprocessing = checkpoint.preprocessing
            data = _open_parts(config)
            data = _decode(data, config, preprocessing.resize, preprocessing.interpolation, display)
            # Its weights come from the checkpoint: those it started from may be gone.
            state = _begin(config, build_model(config.model, **_model_args(config, data)), device)
            _continue(config, checkpoint, run, state, data, display)
        else:
            display.line(f"{run.path} has no checkpoint yet; resumed from step 0")
            data, preprocessing = _open(config, display)
            state = _begin(config, _new_model(config, data), device)
            run.cut_back(0)
        write_config(config, run.config)
        return _run(config, data, device, state, preprocessing, run, display)


def _open(config: TrainConfig, display: Display) -> tuple[Data, Preprocessing]:
    """The data, files decoded once, and what happens to an image before the model sees it."""
    data = _open_parts(config)
    part = _train_part(data)
    pretrained = pretrained_preprocessing(config.model, config.weights) if config.weights else None
    size, resize = _geometry(config, part, pretrained)
    interpolation: Interpolation = pretrained.interpolation if pretrained else "bilinear"
    data = _decode(data, config, resize, interpolation, display)
    if pretrained is None:
        return data, measure_preprocessing(_train_part(data), size, resize)
    record = pretrained.for_channels(part.images.channels)
    return data, dataclasses.replace(record, size=size, resize=resize)


def _open_parts(config: TrainConfig) -> Data:
    data = open_source(
        config.data, val=config.val, val_fraction=config.val_fraction, split_seed=config.split_seed
    )
    if data.train is None or data.val is None or not len(data.val):
        raise DataError(
            f"{data.source}: expected images to train and to validate on, found too few; raise --val-fraction"
        )
    return data


def _train_part(data: Data) -> Split:
    assert data.train is not None
    return data.train


def _val_part(data: Data) -> Split:
    assert data.val is not None
    return data.val


def _geometry(
    config: TrainConfig, part: Split, pretrained: Preprocessing | None
) -> tuple[tuple[int, int], int | None]:
    """Height and width that the model takes, and the short side that images are shrunk to before they are cropped."""
    own = part.images.size or small_size(part.images, LARGEST_SMALL_SIZE)
    # The side that a run has stored as its own must mean the same when the run is repeated.
    asked = (config.img_size, config.img_size) if config.img_size else None
    if pretrained and asked in (None, pretrained.size):
        return pretrained.size, pretrained.resize
    if own and max(own) <= LARGEST_SMALL_SIZE and asked in (None, own):
        return own, None
    known = pretrained and pretrained.resize
    ratio = known / min(pretrained.size) if pretrained and known else _RESIZE_RATIO
    side = config.img_size or _LARGE_SIZE
    return (side, side), round(side * ratio)


def _decode(
    data: Data, config: TrainConfig, resize: int | None, interpolation: str, display: Display
) -> Data:
    data = decode_once(
        data,
        channels=_train_part(data).images.channels,
        resize=resize,
        interpolation=interpolation,
        max_bad=config.max_bad,
        max_pixels=round(config.max_pixels * 1e6),
        memory_bytes=available_memory_bytes() // 2,
        progress=lambda done, total: display.count("decoded", done, total),
    )
    for each in data.skipped:
        display.line(f"skipped {each.path}: {each.reason}")
    return data


def _new_model(config: TrainConfig, data: Data) -> nn.Module:
    """The model at step 0, its random weights a function of the seed."""
    torch.manual_seed(derive_seed(config.seed, "init"))
    return build_model(config.model, weights=config.weights, **_model_args(config, data))


def _begin(config: TrainConfig, model: nn.Module, device: torch.device) -> TrainingState:
    """All that a run moves, at step 0."""
    model.to(device).to(memory_format=torch.channels_last)
    average = ExponentialAverage(model, config.ema_decay) if config.ema else None
    return TrainingState(model, make_optimizer(model, config), average, make_scaler(config.amp, device))


def _refuse_changes(before: TrainConfig, after: TrainConfig) -> None:
    settings = [field.name for field in dataclasses.fields(before) if field.name not in _MAY_CHANGE]
    for name in settings:
        if (was := getattr(before, name)) != (now := getattr(after, name)):
            raise UsageError(
                f"--{name.replace('_', '-')} cannot change on --resume (it was {was}, not {now}); start a new run for it"
            )


def _last_checkpoint(run: RunFolder, display: Display) -> Checkpoint:
    """The last checkpoint, or the one before it where that is damaged."""
    try:
        return load_checkpoint(run.last)
    except CheckpointError as error:
        display.line(f"{error}; going on from {run.previous.name}")
        return load_checkpoint(run.previous)


def _continue(
    config: TrainConfig,
    checkpoint: Checkpoint,
    run: RunFolder,
    state: TrainingState,
    data: Data,
    display: Display,
) -> None:
    """Bring `state` to where `checkpoint` stands."""
    if checkpoint.classes != data.classes:
        raise DataError(
            f"{run.path}: the data has changed: expected the classes {checkpoint.classes}, found {data.classes}"
        )
    if checkpoint.document["data"] != fingerprint(data):
        raise DataError(
            f"{run.path}: the data has changed since the run began (images, labels or split; see split.csv); "
            f"expected {data.source} as it was, or a new run"
        )
    restore(state, checkpoint.tensors, checkpoint.document["state"], checkpoint.path)
    if state.epoch > config.epochs:
        raise UsageError(
            f"--epochs {config.epochs}: {state.epoch} epochs are done already; ask for more, or leave it out"
        )
    run.cut_back(state.epoch)
    display.line(f"resumed from step {state.step}")
    if checkpoint.config["epochs"] != config.epochs and config.schedule != "constant":
        display.line(
            f"the {config.schedule} schedule is reckoned anew for {config.epochs} epochs; the past stays as it was"
        )


def _run(
    config: TrainConfig,
    data: Data,
    device: torch.device,
    state: TrainingState,
    preprocessing: Preprocessing,
    run: RunFolder,
    display: Display,
) -> Run:
    batches = TrainingBatches(
        _train_part(data),
        preprocessing,
        config.batch_size or 0,
        config.augment or "none",
        derive_seed(config.seed, "data"),
    )
    val_batches = EvaluationBatches(_val_part(data), preprocessing, config.val_batch_size or 0)
    updates = -(-len(batches) // config.accumulate)
    for line in _introduction(config, data, device, batches, val_batches, run):
        display.line(line)
    recorder = RunRecorder(
        run, _document(config, data, preprocessing), every=config.checkpoint_every, warn=display.line
    )
    with StopSignal() as stop:
        fit(
            state.model,
            batches,
            val_batches,
            optimizer=state.optimizer,
            epochs=config.epochs,
            schedule=make_schedule(config, epochs=config.epochs, steps_per_epoch=updates),
            loss=lambda logits, batch: cross_entropy_sum(
                logits, batch.targets, label_smoothing=config.label_smoothing
            ),
            device=device,
            amp=config.amp,
            accumulate=config.accumulate,
            clip_grad=config.clip_grad,
            seed=config.seed,
            state=state,
            recorder=recorder,
            display=display,
            stop=stop,
        )
    scores = _test(config, data, device, state, preprocessing, recorder, display)
    result = _result(data, state, scores, recorder)
    recorder.attempt(run.summary, lambda: write_json(run.summary, result.to_json()))
    display.line(
        f"Best model: {run.best}\nFinal model: {run.last}\nCurves: {run.path / 'loss_accuracy.png'}\n"
        f"Confusion matrix: {run.path / 'confusion.png'}"
    )
    return result


def _test(
    config: TrainConfig,
    data: Data,
    device: torch.device,
    state: TrainingState,
    preprocessing: Preprocessing,
    recorder: RunRecorder,
    display: Display,
) -> Scores:
    """Evaluate the best weights once: on the test part, or where there is none on the validation part.

    Where the best could not be written, those of the last epoch.
    """
    part, run, model = data.test or _val_part(data), recorder.run, state.weights
    if run.best.exists():
        load_tensors(model, load_checkpoint(run.best).model_tensors, run.best)
    began = time.perf_counter()
    table = run.path / "predictions.csv"
    options: Any = {"batch_size": config.val_batch_size, "device": device, "amp": config.amp}
    try:
        scores = score_split(model, part, preprocessing, predictions=table, **options)
    except OSError as error:
        display.line(f"{table}: could not be written ({error.strerror})")
        scores = score_split(model, part, preprocessing, **options)
    document = {"split": part.name, **scores.to_json()}
    recorder.attempt(run.evaluation, lambda: write_json(run.evaluation, document))
    picture = run.path / "confusion.png"
    recorder.attempt(
        picture, lambda: plot_confusion(scores.confusion, data.classes, picture, warn=display.line)
    )
    low, high = scores.accuracy_ci95
    display.line(
        f"Accuracy of the best model on the {scores.n} {part.name} images: {100 * scores.accuracy:.2f}% "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f}; {time.perf_counter() - began:.2f}s)"
    )
    return scores


def _result(data: Data, state: TrainingState, scores: Scores, recorder: RunRecorder) -> Run:
    run = recorder.run
    final = run.records()[-1]
    test = {"n": scores.n, "accuracy": scores.accuracy, "accuracy_ci95": list(scores.accuracy_ci95)}
    return Run(
        run=str(run.path),
        epochs=state.epoch,
        steps=state.step,
        seconds=state.seconds,
        images_per_second=state.images / state.seconds,
        best={"epoch": state.best_epoch, "accuracy": state.best_accuracy},
        final={"loss": final["loss"], "accuracy": final["accuracy"]},
        test=test if data.test else None,
        checkpoints={"best": str(run.best), "last": str(run.last)},
        digest=recorder.digest or load_checkpoint(run.last).document["digest"],
        skipped=len(data.skipped),
        findings=0,
        failure=recorder.failure,
    )


def _introduction(
    config: TrainConfig,
    data: Data,
    device: torch.device,
    batches: TrainingBatches,
    val_batches: EvaluationBatches,
    run: RunFolder,
) -> list[str]:
    """What people see first: what was understood, and the sizes."""
    sizes = {"train": len(_train_part(data)), "val": len(_val_part(data))}
    return [
        describe_device(device),
        *data.notes,
        f"dataSize: {sizes}",
        f"batchSize: {{'train': {config.batch_size}, 'val': {config.val_batch_size}}}",
        f"iterNum: {{'train': {len(batches)}, 'val': {len(val_batches)}}}",
        f"amp: {config.amp}, threads: {config.threads}, images of {'x'.join(map(str, batches.preprocessing.size))}",
        f"run: {run.path}",
    ]


def _model_args(config: TrainConfig, data: Data) -> dict[str, Any]:
    return {
        "num_classes": len(data.classes),
        "in_channels": _train_part(data).images.channels,
        "stem": config.stem,
    }


def _document(config: TrainConfig, data: Data, preprocessing: Preprocessing) -> dict[str, Any]:
    return {
        "model": config.model,
        "model_args": _model_args(config, data),
        "classes": list(data.classes),
        "preprocess": preprocessing.to_json(),
        "config": plain_settings(config),
        "data": fingerprint(data),
    }


def _write_split(data: Data, run: RunFolder) -> None:
    """Which image is in which part."""
    with writing_table(run.split, ["path", "label", "split"]) as write:
        write(split_rows(data))


def _environment(config: TrainConfig, data: Data) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in ("visus", "torch", "torchvision", "timm", "numpy", "pillow")},
        "devices": [dataclasses.asdict(each) for each in describe_devices()],
        "seed": config.seed,
        "data": fingerprint(data),
    }
