"""From the settings and the data of a run to its model, and all that the run moves, at step 0."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from visus.amp import make_scaler
from visus.compiling import refuse_without_compiler
from visus.config import TrainConfig, default_batch_size
from visus.data.batching import TrainingBatches, batch_sizes
from visus.data.foreign import Transform
from visus.display import Display
from visus.errors import UsageError
from visus.loop import Loss
from visus.models.adapt import freezer, learning_rate_factors
from visus.models.build import build_model
from visus.models.lora import add_lora
from visus.ops.averaging import ExponentialAverage, TailAverage, last_quarter
from visus.ops.optim import make_optimizer, resolve_optimizer
from visus.ops.rng import derive_seed
from visus.preparing import Prepared
from visus.processes import Processes
from visus.runs import RunFolder
from visus.state import TrainingState
from visus.trying import refusing_size, try_on

_SOME_RATE = 1e-3


def model_args(config: TrainConfig, prepared: Prepared) -> dict[str, Any]:
    """What `build_model` wants besides the name and the weights."""
    arguments = {
        "num_classes": len(prepared.data.classes),
        "in_channels": prepared.train.images.channels,
        "stem": config.stem,
        "img_size": config.img_size,
    }
    return arguments if config.drop_path is None else arguments | {"drop_path": config.drop_path}


def training_batches(
    config: TrainConfig, prepared: Prepared, rank: int = 0, size: int = 1, transform: Transform | None = None
) -> TrainingBatches:
    """Those to train on, of process `rank` of `size`."""
    return TrainingBatches(
        prepared.train,
        prepared.preprocessing,
        default_batch_size(config, prepared.train),
        config.augment or "none",
        derive_seed(config.seed, "data"),
        rank,
        size,
        mixup=config.mixup,
        cutmix=config.cutmix,
        erasing=config.erasing,
        transform=transform,
        workers=config.workers,
        sampler=config.sampler,
    )


def count_steps(config: TrainConfig, prepared: Prepared) -> int:
    """The updates of a whole run."""
    batches = len(batch_sizes(len(prepared.train), default_batch_size(config, prepared.train)))
    return config.epochs * -(-batches // config.accumulate)


def new_model(
    config: TrainConfig, prepared: Prepared, device: torch.device, say: Callable[[str], object]
) -> nn.Module:
    """The model at step 0, its random weights a function of the seed, and tried on an image.

    `UsageError` where the model cannot take images of that size, naming the layer and sizes that work: some want one size, in
    others little ones shrink to nothing.
    """
    torch.manual_seed(derive_seed(config.seed, "init"))
    size, channels = prepared.preprocessing.size, prepared.train.images.channels
    with refusing_size(config.model, size, channels):
        model = build_model(config.model, weights=config.weights, say=say, **model_args(config, prepared))
        model.to(device)
        try_on(model, torch.zeros(1, channels, *size, device=device))
    return model


def begin(config: TrainConfig, model: nn.Module, device: torch.device, *, steps: int = 1) -> TrainingState:
    """All that a run of so many `steps` moves, at the first of them."""
    choose_trained(model, config)
    model.to(device).to(memory_format=torch.channels_last)
    average: ExponentialAverage | TailAverage | None = None
    if config.ema:
        average = ExponentialAverage(model, config.ema_decay)
    elif config.swa:
        average = TailAverage(model, last_quarter(steps))
    factors = learning_rate_factors(
        model, layer_decay=config.layer_decay, backbone_factor=config.backbone_factor
    )
    _check_factors(model, config, factors)
    optimizer = make_optimizer(model, with_some_rate(config), factors)
    return TrainingState(model, optimizer, average, make_scaler(config.amp, device))


def _check_factors(model: nn.Module, config: TrainConfig, factors: Mapping[str, float]) -> None:
    """`UsageError` where rates by depth are asked for, and all that is trained has the rate of the head."""
    asked = config.layer_decay not in (None, 1) or config.backbone_factor != 1
    trained = [factors[name] for name, each in model.named_parameters() if each.requires_grad]
    if asked and trained and set(trained) == {1.0}:
        raise UsageError(
            f"--layer-decay and --backbone-factor are for what lies before the head, of which --freeze {config.freeze} "
            "trains nothing; leave them out, or freeze less"
        )


def with_some_rate(config: TrainConfig) -> TrainConfig:
    """`config`, with a rate to begin with where that is still to be found: some optimizers have none of their own."""
    if config.lr != "auto":
        return config
    default = resolve_optimizer(dataclasses.replace(config, lr=None))
    return dataclasses.replace(config, lr=default.lr or _SOME_RATE)


def choose_trained(model: nn.Module, config: TrainConfig) -> None:
    """Let those parameters have gradients that are trained at the end of a run, which are all that it ever trains."""
    if config.lora:
        torch.manual_seed(derive_seed(config.seed, "lora"))
        add_lora(model, config.lora)
    else:
        # The optimizer then knows them all; what has no gradient yet has no state either.
        freezer(model, config.freeze)(sys.maxsize)


def check_shares(config: TrainConfig, images: int, processes: Processes) -> None:
    """`UsageError` where each process has batch norm of its own, and would have a single one of `images`, or none, for a batch."""
    if processes.size == 1 or config.batchnorm == "global":
        return
    assert isinstance(config.batch_size, int)
    smallest = min(batch_sizes(images, config.batch_size))
    if smallest < 2 * processes.size:
        raise UsageError(
            f"--batchnorm local: expected at least 2 images of each batch for each of {processes.size} processes, found a batch "
            f"of {smallest} ({images} images in batches of {config.batch_size}); take another --batch-size or --batchnorm global"
        )


def check_compile(config: TrainConfig, device: torch.device, processes: Processes) -> None:
    """`UsageError` where the model is to be compiled and cannot be."""
    if not config.compile:
        return
    if processes.size > 1 and config.batchnorm == "global":
        raise UsageError(
            "--compile: batch norm over several processes cannot be compiled; add --batchnorm local, or leave it out"
        )
    refuse_without_compiler(device, config.amp)


@dataclass(frozen=True)
class Assembly:
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
