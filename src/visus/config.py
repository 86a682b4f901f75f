"""The settings of a run: checked when they are made, and stored so that it can be repeated."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pydantic.dataclasses
import torch
import yaml
from pydantic import Field, model_validator
from pydantic_core import ArgsKwargs

from visus.amp import Amp, resolve_amp
from visus.data.addresses import is_address
from visus.data.augment import LARGEST_SMALL_SIZE, Augment
from visus.data.batching import batch_sizes
from visus.data.cache import Cache
from visus.data.files import cache_in_use
from visus.data.images import Split
from visus.data.sampling import Sampler
from visus.errors import UsageError
from visus.files import write_text
from visus.idle import refuse_idle
from visus.models.adapt import AdaptSettings
from visus.ops.optim import OptimizerSettings, resolve_optimizer
from visus.ops.schedules import ScheduleSettings
from visus.preprocessing import Preprocessing
from visus.processors import own_processors
from visus.recipes import Recipe, conflict, with_recipe

_DEFAULT_BATCH_SIZE = 100


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid"))
class TrainConfig(OptimizerSettings, ScheduleSettings, AdaptSettings):
    """All settings of a run; `None` means chosen by visus, and is filled in before the first step."""

    data: str
    """Any source of `docs/data.md`: a path, an address, or a name such as `digits`."""
    val: str | None = None
    """Another source, for validation."""
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training images set aside for validation, where the data has no such part."""
    split_seed: int = Field(default=0, ge=0)
    """Of the choice of those images; independent of `seed`, so that seeds are compared on the same images."""
    recipe: Recipe | None = None
    """Whose settings are the defaults of others: `finetune` where there are weights to start from, else `classic`."""
    model: str = "resnet18"
    weights: str | None = None
    """`default`, or a file to start from."""
    stem: Literal["small"] | None = None
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """Chance that the deepest residual branch is left out for an image in training, and less of those before it."""
    img_size: int | None = Field(default=None, ge=1)
    """What the model takes; the weights' own, else the images' own where all share one of at most 64, else 224."""
    augment: Augment | None = None
    """`light` (flips and padded crops) for images of at most 64 pixels, else `standard` (random-resized crops and flips);
    `trivial` and `rand` are that and a policy, `flip` is flips alone, `none` nothing."""
    mixup: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """A of Beta(A, A), by whose shares the images of a batch are blended in pairs; 0 for none."""
    cutmix: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """As `mixup`, for boxes that an image gets of another; with both each batch has one of them."""
    erasing: float = Field(default=0.0, ge=0, le=1)
    """Chance that a rectangle of an image is blanked."""
    max_pixels: float = Field(default=100.0, gt=0)
    """Megapixels; a larger image is left out."""
    max_bad: float = Field(default=0.01, ge=0, lt=1)
    """Share of the files that may be left out before the run refuses to start."""
    exclude: str | None = None
    """A list of images to leave out, as `visus audit --fix-list` writes it."""
    cache: Cache = "auto"
    """Where the decoded images of files are kept: `ram`, `disk`, `off` (nowhere), or what fits."""
    cache_size: Annotated[int, Field(ge=1)] | Literal["full"] | None = None
    """Short side of the training images in it, where crops are of random size; as in evaluation where it is not given."""
    workers: int | None = Field(default=None, ge=0)
    """Child processes that decode, and threads that crop, in each process; 0: neither. As many as there are processors."""
    sampler: Sampler = "shuffle"
    """`shuffle`: every image once an epoch; `balanced`: as many, drawn so that every class is equally likely."""
    loss: Literal["cross-entropy", "bce", "focal"] = "cross-entropy"
    class_weights: bool = False
    """Weigh the loss so that every class counts the same; the mean over the training images is 1."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    distill: str | None = None
    """A checkpoint of ours, or a run's folder, whose model is to be learned from besides the labels."""
    distill_digest: str | None = None
    """Of the weights of that teacher; filled in, and checked where it is given."""
    epochs: int = Field(default=10, ge=1)
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better validation accuracy after which the run ends."""
    batch_size: Annotated[int, Field(ge=2)] | Literal["auto"] | None = None
    """Images per forward pass; 100, or the whole set where that is smaller. `auto`: as many as the device takes."""
    val_batch_size: int | None = Field(default=None, ge=1)
    accumulate: int = Field(default=1, ge=1)
    """Batches per update."""
    ema: bool = False
    """Validate and keep an exponential average of the weights."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    swa: bool = False
    """Validate and keep the mean of the weights after each update of the last quarter of the run."""
    device: str = "auto"
    """`auto`, `cpu`, `mps`, or the index of a CUDA device."""
    amp: Amp = "auto"
    """Mixed precision: `bf16`, `fp16`, `off`, or what a trial on the device shows to pay."""
    compile: bool = False
    """Train through `torch.compile`."""
    threads: int | None = Field(default=None, ge=1)
    """Of the CPU, in each process; bits depend on it, so it is stored and used again on resume."""
    batchnorm: Literal["global", "local"] = "global"
    """Of several processes: with the statistics of the whole batch, or of each one's share, which is faster."""
    deterministic: bool = True
    seed: int = Field(default=0, ge=0)
    out: str = "runs"
    """The folder in which the run's own folder is made."""
    name: str | None = None
    """Of the run's folder; made of data and model if not given."""
    checkpoint_every: str = "5m"
    """Besides each epoch: an interval such as 30s, 5m or 500steps."""
    keep: Literal["last", "all"] = "last"
    """`all` gives every last checkpoint a numbered name as well, which stays."""
    profile: bool = False
    """Measure where the time goes."""
    track: str | None = None
    """Also send metrics to `tensorboard`, `mlflow` or `wandb`."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do where a loss or gradient is no longer a number: end the run, or leave the step out."""

    @model_validator(mode="before")
    @classmethod
    def _take_recipe(cls, given: Any) -> Any:
        return (
            ArgsKwargs(given.args, with_recipe(given.kwargs or {}))
            if isinstance(given, ArgsKwargs)
            else given
        )

    @model_validator(mode="after")
    def _go_together(self) -> TrainConfig:
        if sentence := conflict(self):
            raise ValueError(sentence)
        return self


def make_config(**settings: Any) -> TrainConfig:
    """The settings, checked; `UsageError` in one sentence where they make no sense.

    That is also where one is neither its default nor what the recipe says, and changes nothing beside the others.
    """
    config = remake_config(settings)
    base = remake_config({"data": config.data, "recipe": config.recipe})
    refuse_idle(config, [name for name in settings if getattr(config, name) != getattr(base, name)])
    return config


def remake_config(settings: Mapping[str, Any]) -> TrainConfig:
    """`make_config` for the settings of a run that go on, of which some may change nothing beside what is new."""
    try:
        return TrainConfig(**settings)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        # Where a setting may be of several types, which one was meant is a place of its own.
        place = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        if not place:
            raise UsageError(message) from None
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


def write_config(config: TrainConfig, path: Path) -> None:
    """Write `config.yaml`, from which `visus train --config` repeats the run."""
    write_text(path, yaml.safe_dump(plain_settings(config), sort_keys=False, allow_unicode=True))


def plain_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that have a value, as plain values."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}


def resolve_config(
    config: TrainConfig, train_part: Split, preprocessing: Preprocessing, device: torch.device, threads: int
) -> TrainConfig:
    """With everything filled in that depends on the data or the machine, of which this process may use so many `threads`."""
    batch_size = default_batch_size(config, train_part)
    # Files that were left out may have made the set smaller than the batch.
    batch_sizes(len(train_part), batch_size)
    optimizer = resolve_optimizer(config)
    height = preprocessing.size[0]
    square = preprocessing.size == (height, height)
    return dataclasses.replace(
        with_absolute_paths(config),
        lr=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        img_size=config.img_size or (height if square else None),
        augment=config.augment or ("light" if max(preprocessing.size) <= LARGEST_SMALL_SIZE else "standard"),
        batch_size=batch_size,
        val_batch_size=config.val_batch_size or batch_size,
        amp=resolve_amp(config.amp, device),
        cache=cache_in_use(train_part.images),
        workers=own_processors() if config.workers is None else config.workers,
        threads=config.threads or threads,
        name=config.name or f"{_short(config.data)}-{config.model.replace('/', '-')}",
    )


def default_batch_size(config: TrainConfig, train_part: Split) -> int:
    """The batch size asked for; else 100, or the whole set where that is smaller."""
    return (
        config.batch_size if isinstance(config.batch_size, int) else min(_DEFAULT_BATCH_SIZE, len(train_part))
    )


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """With paths that are right from any folder; names such as `digits` stay as they are."""
    given = {name: getattr(config, name) for name in ("data", "val", "weights", "distill", "exclude")}
    paths: Any = {name: absolute(path) for name, path in given.items() if path}
    return dataclasses.replace(config, **paths)


def absolute(source: str) -> str:
    """The real path of what exists, or of a pattern of files; an address or a name such as `digits` as it is."""
    if Path(source).exists():
        return os.path.realpath(source)
    return str(Path(source).absolute()) if "{" in source and not is_address(source) else source


def _short(source: str) -> str:
    """What a source is called in the name of a run: the end of its path, without suffix and pattern."""
    stem = Path(source).absolute().stem
    return re.sub(r"\{[^{}]*\}", "", stem).rstrip("-_.") or "data"
