"""`train`: from settings to a finished run, assembled of the parts below."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import pydantic.dataclasses
import torch
import yaml
from pydantic import Field
from torch import nn

from visus.checkpoint import CUSTOM, Checkpoint, load_checkpoint, load_tensors
from visus.data.augment import Augment
from visus.data.batching import EvaluationBatches, TrainingBatches, batch_sizes, measure_preprocessing
from visus.data.files import FileImages, decode_once
from visus.data.images import ArrayImages, Data, Split
from visus.data.sources import open_source
from visus.devices import available_memory_bytes, describe_device, select_device
from visus.display import Display
from visus.errors import CheckpointError, DataError, UsageError
from visus.evaluation import evaluate
from visus.files import write_json, write_text
from visus.loop import TrainingState, fit, restore
from visus.models.build import build_model
from visus.ops.averaging import ExponentialAverage
from visus.ops.losses import cross_entropy_sum
from visus.ops.optim import OptimizerSettings, make_optimizer, resolve_optimizer
from visus.ops.rng import derive_seed
from visus.ops.schedules import ScheduleSettings, make_schedule
from visus.preprocessing import Preprocessing
from visus.recording import RunRecorder, parse_interval
from visus.runs import RunFolder, create_run, open_run
from visus.signals import StopSignal

_DEFAULT_BATCH_SIZE = 100
_LARGE_SIZE = 224
_LARGEST_SMALL_SIZE = 64


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid"))
class TrainConfig(OptimizerSettings, ScheduleSettings):
    """All settings of a run; `None` means chosen by visus, and is filled in before the first step."""

    data: str
    """`digits`, an `.npz` file, a folder of IDX files, or a folder of class folders."""
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training images set aside for validation, where the data has no such part."""
    split_seed: int = Field(default=0, ge=0)
    """Of the choice of those images; independent of `seed`, so that seeds are compared on the same images."""
    model: str = "resnet18"
    weights: str | None = None
    """`default`, or a file to start from."""
    stem: Literal["small"] | None = None
    img_size: int | None = Field(default=None, ge=1)
    """What the model takes; the images' own size where all share one of at most 64, else 224."""
    augment: Augment | None = None
    """`light` (flips and padded crops) for images of at most 64 pixels, else `standard` (random-resized crops and flips)."""
    max_pixels: float = Field(default=100.0, gt=0)
    """Megapixels; a larger image is left out."""
    max_bad: float = Field(default=0.01, ge=0, lt=1)
    """Share of the files that may be left out before the run refuses to start."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    epochs: int = Field(default=10, ge=1)
    batch_size: int | None = Field(default=None, ge=2)
    """Images per forward pass; 100, or the whole set where that is smaller."""
    val_batch_size: int | None = Field(default=None, ge=1)
    accumulate: int = Field(default=1, ge=1)
    """Batches per update."""
    ema: bool = False
    """Validate and keep an exponential average of the weights."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    """Of the CPU; bits depend on it, so it is stored and used again on resume."""
    deterministic: bool = True
    seed: int = Field(default=0, ge=0)
    out: str = "runs"
    """The folder in which the run's own folder is made."""
    name: str | None = None
    """Of the run's folder; made of data and model if not given."""
    checkpoint_every: str = "5m"
    """Besides each epoch: an interval such as 30s, 5m or 500steps."""


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


def make_config(**settings: Any) -> TrainConfig:
    """The settings, checked; `UsageError` in one sentence where they make no sense."""
    try:
        return TrainConfig(**settings)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"]) or "settings"
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"--{place.replace('_', '-')}: {message}, found {first['input']!r}") from None


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a `config.yaml`, every scalar as text: YAML itself would read `off` as false and `1e-3` as text."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as settings: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: expected settings as `name: value`, found something else")
    return settings


def train(config: TrainConfig, *, display: Display | None = None) -> Run:
    """Train a model as `config` says, in a new folder, and evaluate it once on the test part where there is one."""
    display = display or Display(quiet=True)
    parse_interval(config.checkpoint_every)
    resolve_optimizer(config)
    device = select_device(config.device, batch_size=config.batch_size)
    data = _open(config, display)
    config = _resolve(config, data)
    # The model is made before the folder, so that a mistyped name leaves nothing behind.
    with _reproducible(config):
        state, preprocessing = _begin(config, data, device)
        run = create_run(config.out, config.name or "run")
        write_text(run.config, yaml.safe_dump(_without_nothing(config), sort_keys=False, allow_unicode=True))
        write_json(run.environment, _environment(config))
        with run.locked():
            return _run(config, data, device, state, preprocessing, run, display)


def resume(path: str, *, display: Display | None = None, **changes: Any) -> Run:
    """Go on with the run in the folder `path`; of `changes`, `epochs`, `device` and `checkpoint_every` are taken."""
    display = display or Display(quiet=True)
    run = open_run(path)
    refused = set(changes) - {"epochs", "device", "checkpoint_every"}
    if refused:
        raise UsageError(
            f"--{min(refused).replace('_', '-')} cannot change on --resume; start a new run for it"
        )
    config = make_config(**{**read_config(run.config), **changes})
    device = select_device(config.device)
    data = _open(config, display)
    with run.locked(), _reproducible(config):
        state, preprocessing = _begin(config, data, device)
        _continue(config, run, state, data, display)
        write_text(run.config, yaml.safe_dump(_without_nothing(config), sort_keys=False, allow_unicode=True))
        return _run(config, data, device, state, preprocessing, run, display)


def rebuild_model(checkpoint: Checkpoint) -> nn.Module:
    """The model of a checkpoint with the weights to use; `UsageError` for one that visus did not build."""
    name = checkpoint.document["model"]
    if name == CUSTOM:
        raise UsageError(
            f"{checkpoint.path}: holds a model that visus did not build; in Python, make the module and call "
            "module.load_state_dict(visus.load_checkpoint(path).model_tensors)"
        )
    model = build_model(name, **checkpoint.document["model_args"])
    load_tensors(model, checkpoint.model_tensors, checkpoint.path)
    return model


def _open(config: TrainConfig, display: Display) -> Data:
    """The data, files decoded once, what is wrong with them said."""
    data = open_source(config.data, val_fraction=config.val_fraction, split_seed=config.split_seed)
    train_part, _ = _parts(data)
    data = decode_once(
        data,
        resize=_short_side(config, train_part),
        max_bad=config.max_bad,
        max_pixels=round(config.max_pixels * 1e6),
        memory_bytes=available_memory_bytes() // 2,
        progress=lambda done, total: display.line(f"decoded {done} of {total}") if done == total else None,
    )
    for each in data.skipped:
        display.line(f"skipped {each.path}: {each.reason}")
    return data


def _size(config: TrainConfig, part: Split) -> tuple[int, int]:
    """Height and width that the model takes."""
    if config.img_size:
        return config.img_size, config.img_size
    own = part.images.size
    if own and max(own) <= _LARGEST_SMALL_SIZE:
        return own
    return _LARGE_SIZE, _LARGE_SIZE


def _short_side(config: TrainConfig, part: Split) -> int | None:
    """To which files are shrunk when they are decoded: 256 for 224, in proportion for others; arrays stay as they are."""
    return (
        round((config.img_size or _LARGE_SIZE) * 256 / 224) if isinstance(part.images, FileImages) else None
    )


def _begin(config: TrainConfig, data: Data, device: torch.device) -> tuple[TrainingState, Preprocessing]:
    """A model and optimizer at step 0."""
    train_part, _ = _parts(data)
    preprocessing = measure_preprocessing(
        train_part, _size(config, train_part), _short_side(config, train_part)
    )
    torch.manual_seed(derive_seed(config.seed, "init"))
    model = build_model(config.model, weights=config.weights, **_model_args(config, data))
    model.to(device).to(memory_format=torch.channels_last)
    average = ExponentialAverage(model, config.ema_decay) if config.ema else None
    return TrainingState(model, make_optimizer(model, config), average), preprocessing


def _continue(
    config: TrainConfig, run: RunFolder, state: TrainingState, data: Data, display: Display
) -> None:
    """Bring `state` to the last checkpoint, or to the one before it where that is damaged."""
    try:
        checkpoint = load_checkpoint(run.last)
    except CheckpointError as error:
        display.line(f"{error}; going on from {run.previous.name}")
        checkpoint = load_checkpoint(run.previous)
    if checkpoint.classes != data.classes:
        raise DataError(
            f"{run.path}: the data has changed: expected the classes {checkpoint.classes}, found {data.classes}"
        )
    restore(state, checkpoint.tensors, checkpoint.document["state"], checkpoint.path)
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
    train_part, val_part = _parts(data)
    batch_size, val_batch_size = config.batch_size or 0, config.val_batch_size or 0
    batches = TrainingBatches(
        train_part, preprocessing, batch_size, config.augment or "none", derive_seed(config.seed, "data")
    )
    updates = -(-len(batches) // config.accumulate)
    _introduce(display, device, data, batch_size, val_batch_size, run)
    recorder = RunRecorder(
        run, _document(config, data, preprocessing), every=config.checkpoint_every, warn=display.line
    )
    with StopSignal() as stop:
        fit(
            state.model,
            batches,
            EvaluationBatches(val_part, preprocessing, val_batch_size),
            optimizer=state.optimizer,
            epochs=config.epochs,
            schedule=make_schedule(config, epochs=config.epochs, steps_per_epoch=updates),
            loss=lambda logits, batch: cross_entropy_sum(
                logits, batch.targets, label_smoothing=config.label_smoothing
            ),
            device=device,
            accumulate=config.accumulate,
            clip_grad=config.clip_grad,
            seed=config.seed,
            state=state,
            recorder=recorder,
            display=display,
            stop=stop,
        )
    return _finish(data, device, state, preprocessing, recorder, val_batch_size, display)


def _finish(
    data: Data,
    device: torch.device,
    state: TrainingState,
    preprocessing: Preprocessing,
    recorder: RunRecorder,
    val_batch_size: int,
    display: Display,
) -> Run:
    """Evaluate the best weights on the test part, once, and write the summary."""
    run = recorder.run
    test = None
    if data.test is not None:
        best = load_checkpoint(run.best)
        load_tensors(state.model, best.model_tensors, run.best)
        batches = EvaluationBatches(data.test, preprocessing, val_batch_size)
        began = time.perf_counter()
        scores = evaluate(state.model, batches, classes=data.classes, device=device)
        low, high = scores.accuracy_ci95
        display.line(
            f"Accuracy of the best model on the {scores.n} test images: {100 * scores.accuracy:.2f}% "
            f"(95 % interval {100 * low:.2f} to {100 * high:.2f}; {time.perf_counter() - began:.2f}s)"
        )
        test = {"n": scores.n, "accuracy": scores.accuracy, "accuracy_ci95": [low, high]}
    last = load_checkpoint(run.last).document
    final = run.records()[-1]
    result = Run(
        run=str(run.path),
        epochs=state.epoch,
        steps=state.step,
        seconds=state.seconds,
        images_per_second=state.images / state.seconds,
        best={"epoch": state.best_epoch, "accuracy": state.best_accuracy},
        final={"loss": final["loss"], "accuracy": final["accuracy"]},
        test=test,
        checkpoints={"best": str(run.best), "last": str(run.last)},
        digest=last["digest"],
        skipped=len(data.skipped),
        findings=0,
        failure=recorder.failure,
    )
    write_json(run.summary, result.to_json())
    display.line(f"Best model: {run.best}\nFinal model: {run.last}\nCurves: {run.path / 'loss_accuracy.png'}")
    return result


def _resolve(config: TrainConfig, data: Data) -> TrainConfig:
    """With everything filled in that depends on the data or the machine."""
    train_part, _ = _parts(data)
    batch_size = config.batch_size or min(_DEFAULT_BATCH_SIZE, len(train_part))
    batch_sizes(len(train_part), batch_size)
    optimizer = resolve_optimizer(config)
    source = Path(config.data).absolute()
    size = _size(config, train_part)
    return dataclasses.replace(
        config,
        data=str(source) if source.exists() else config.data,
        lr=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        img_size=config.img_size
        if isinstance(train_part.images, ArrayImages)
        else config.img_size or size[0],
        augment=config.augment or ("light" if max(size) <= _LARGEST_SMALL_SIZE else "standard"),
        batch_size=batch_size,
        val_batch_size=config.val_batch_size or batch_size,
        threads=config.threads or torch.get_num_threads(),
        name=config.name or f"{source.stem}-{config.model.replace('/', '-')}",
    )


def _introduce(
    display: Display, device: torch.device, data: Data, batch_size: int, val_batch_size: int, run: RunFolder
) -> None:
    train_part, val_part = _parts(data)
    display.line(describe_device(device))
    for note in data.notes:
        display.line(note)
    sizes = {"train": len(train_part), "val": len(val_part)}
    iterations = {
        "train": len(batch_sizes(len(train_part), batch_size)),
        "val": -(-len(val_part) // val_batch_size),
    }
    display.line(f"dataSize: {sizes}")
    display.line(f"batchSize: {{'train': {batch_size}, 'val': {val_batch_size}}}")
    display.line(f"iterNum: {iterations}")
    display.line(f"run: {run.path}")


def _parts(data: Data) -> tuple[Split, Split]:
    if data.train is None or data.val is None or not len(data.val):
        raise DataError(
            f"{data.source}: expected images to train and to validate on, found too few; raise --val-fraction"
        )
    return data.train, data.val


def _model_args(config: TrainConfig, data: Data) -> dict[str, Any]:
    train_part, _ = _parts(data)
    return {
        "num_classes": len(data.classes),
        "in_channels": train_part.images.channels,
        "stem": config.stem,
    }


def _document(config: TrainConfig, data: Data, preprocessing: Preprocessing) -> dict[str, Any]:
    return {
        "model": config.model,
        "model_args": _model_args(config, data),
        "classes": list(data.classes),
        "preprocess": preprocessing.to_json(),
        "config": _without_nothing(config),
    }


def _without_nothing(config: TrainConfig) -> dict[str, Any]:
    values: Mapping[str, Any] = dataclasses.asdict(config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}


def _environment(config: TrainConfig) -> dict[str, Any]:
    import torchvision

    import visus.devices

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "devices": [dataclasses.asdict(each) for each in visus.devices.describe_devices()],
        "seed": config.seed,
    }


@contextmanager
def _reproducible(config: TrainConfig) -> Iterator[None]:
    """Threads, kernels and generator as the run needs them, and afterwards as they were."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only, generator = torch.is_deterministic_algorithms_warn_only_enabled(), torch.get_rng_state()
    # torch's stubs do not know this property of the module.
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    try:
        torch.set_num_threads(config.threads or threads)
        torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
        # Filling memory that is about to be written costs time and changes no result.
        settings.fill_uninitialized_memory = False
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        settings.fill_uninitialized_memory = filled
        torch.set_rng_state(generator)
