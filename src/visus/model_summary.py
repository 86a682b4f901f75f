"""A model as a table: its layers, their shapes and parameters, what a pass costs and how much memory a training step takes.

Nothing is computed and nothing allocated: the model is copied with fake tensors, and the copy is run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict, get_args

from torch import nn

from visus.errors import UsageError, unknown_name
from visus.models.hollow import build_outline, fake_mode
from visus.models.names import resolve_model
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.summaries.examining import (
    Amp,
    Findings,
    Sizes,
    all_sizes,
    examine,
    input_dtype,
    input_maker,
    runnable_copy,
    undisturbed,
)
from visus.summaries.memory import largest_fitting, predict_peak
from visus.summaries.tables import classic_table, has_row, rich_table
from visus.summaries.tracing import Call, count

Style = Literal["classic", "rich"]
Size = Sequence[int]
_MIB = 2**20


class Layer(TypedDict):
    """One call of a module."""

    name: str
    """Its path in the model; empty for the model itself, which has a row only if it holds parameters."""
    type: str
    output_shape: list[Any]
    """A list of shapes where the output is not one tensor. Without a batch size, -1 is what grows with the batch."""
    params: int
    """Its own, without those of modules inside it; each is counted once, at the first call."""
    trainable: bool
    """Whether any of them is trained."""
    flops: int
    """Its own, without those of modules inside it."""


@dataclass(frozen=True)
class Summary:
    """What a model is and needs; `_mb` is MiB."""

    layers: list[Layer]
    """In the order in which they finish."""
    total_params: int
    trainable_params: int
    input_mb: float
    forward_backward_mb: float
    """The outputs of all layers, twice: torchsummary's estimate; `peak_training_mb` is the one to plan with."""
    params_mb: float
    total_mb: float
    flops: int
    """Of the forward pass of the batch; a multiply-add is two."""
    peak_training_mb: float | None
    """The most that the tensors of a training step take at any moment; `None` where it could not be predicted."""
    remarks: list[str]
    """What to know about the figures."""
    table: str = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {key: value for key, value in asdict(self).items() if key != "table"}

    def __str__(self) -> str:
        return self.table


def summary(
    model_or_name: nn.Module | str,
    input_size: Size | Sequence[Size] | Mapping[str, Size] | None = None,
    *,
    batch_size: int = -1,
    num_classes: int | None = None,
    in_channels: int | None = None,
    optimizer: str | None = None,
    amp: Amp = "off",
    style: Style = "rich",
) -> Summary:
    """What `model_or_name` is made of and needs, for inputs of `input_size`.

    A size is `(C, H, W)`, or that of one item of any other input; a list of sizes, or a mapping by keyword, is for several inputs.
    A name has its library's own size, and is built for `in_channels` (by default those of the input) and `num_classes`. Without
    `batch_size`, figures are those of one image. `optimizer` is a name as in training; without one, the training step makes
    gradients and updates nothing. A module is left as it was found. Raises `UsageError` for an input that the model cannot take,
    naming the layer.
    """
    _check(batch_size, amp, style)
    with undisturbed():
        _check_optimizer(optimizer)
        model, sizes = _prepare(model_or_name, input_size, num_classes, in_channels)
        found = examine(model, sizes, batch_size, optimizer, amp)
        # In here too, since rich draws random numbers.
        figures = _figures(model, sizes, abs(batch_size), found)
        if style == "classic":
            shown = [call for call in found.run.calls if has_row(call)]
            totals = figures["total_params"], figures["trainable_params"]
            table = classic_table(shown, all_sizes(sizes), batch_size, *totals)
        else:
            shown = [call for call in found.trace.calls if has_row(call)]
            table = rich_table(shown, _totals(figures, batch_size, optimizer, amp), found.remarks)
    return Summary(**figures, table=table)


def largest_batch(
    model_or_name: nn.Module | str,
    input_size: Size | Sequence[Size] | Mapping[str, Size] | None,
    memory_bytes: int,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    optimizer: str | None = "sgd",
    amp: Amp = "off",
) -> int:
    """The largest batch whose predicted `peak_training_mb` fits into `memory_bytes`; arguments as in `summary`.

    `UsageError` where not even one image fits, saying what it needs, and for a model whose training step cannot be predicted.
    """
    _check(1, amp, "rich")
    with undisturbed():
        _check_optimizer(optimizer)
        model, sizes = _prepare(model_or_name, input_size, num_classes, in_channels)
        found = examine(model, sizes, 1, optimizer, amp)
        if found.peak_bytes is None:
            raise UsageError(f"no batch size can be found: {'; '.join(found.remarks)}")
        if found.peak_bytes > memory_bytes:
            raise UsageError(
                f"a training step on one image needs {found.peak_bytes / _MIB:,.0f} MiB, found {memory_bytes / _MIB:,.0f} MiB; "
                "take smaller images or a smaller model"
            )
        with fake_mode():
            hollow = runnable_copy(model)
            hollow.train()
            make = input_maker(hollow, sizes)
            arguments, keywords = make(1)
            # The inputs alone bound the batch.
            most = memory_bytes // sum(each.nbytes for each in (*arguments, *keywords.values()))
            return largest_fitting(
                lambda n: predict_peak(hollow, make, n, optimizer=optimizer, amp=amp), memory_bytes, most
            )


def _check(batch_size: int, amp: str, style: str) -> None:
    if batch_size != -1 and batch_size < 1:
        raise UsageError(f"expected a batch size of 1 or more, or -1 to count one image, found {batch_size}")
    for kind, value, known in (("amp", amp, get_args(Amp)), ("style", style, get_args(Style))):
        if value not in known:
            raise unknown_name(kind, value, known)


def _check_optimizer(optimizer: str | None) -> None:
    """Before the model is run, and with a model that has something to train."""
    if optimizer is not None:
        make_optimizer(nn.Linear(1, 1), OptimizerSettings(optimizer=optimizer, lr=1.0))


def _prepare(
    model_or_name: nn.Module | str, input_size: Any, num_classes: int | None, in_channels: int | None
) -> tuple[nn.Module, Sizes]:
    """The model, or an outline of the one that is named, and the sizes of its inputs."""
    if isinstance(model_or_name, str):
        return _outline(model_or_name, input_size, num_classes, in_channels)
    if input_size is None:
        raise UsageError("expected the size of the model's input, such as (3, 224, 224), found none")
    model = model_or_name
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    model = getattr(model, "_orig_mod", model)  # What torch.compile wraps.
    if any(isinstance(each, nn.parameter.UninitializedParameter) for each in model.parameters()):
        raise UsageError("expected a model with parameters, found lazy layers; run a batch through it first")
    return model, _read_sizes(input_size)


def _outline(
    name: str, input_size: Any, num_classes: int | None, in_channels: int | None
) -> tuple[nn.Module, Sizes]:
    if input_size is None:
        model = build_outline(name, num_classes, in_channels=in_channels or 3)
        return model, ([_own_size(name, model, in_channels or 3)], {})
    sizes = _read_sizes(input_size)
    return build_outline(name, num_classes, in_channels=in_channels or all_sizes(sizes)[0][0]), sizes


def _own_size(name: str, model: nn.Module, channels: int) -> tuple[int, ...]:
    library, own_name = resolve_model(name)
    if library == "timm":
        config: Any = model.pretrained_cfg
        return (channels, *config["input_size"][1:])
    side = 32 if library == "visus" else 299 if own_name == "inception_v3" else 224
    return channels, side, side


def _read_sizes(given: Any) -> Sizes:
    if isinstance(given, Mapping):
        return [], {name: _read_size(each) for name, each in given.items()}
    if isinstance(given, Sequence) and given and all(isinstance(each, Sequence) for each in given):
        return [_read_size(each) for each in given], {}
    return [_read_size(given)], {}


def _read_size(given: Any) -> tuple[int, ...]:
    is_list = isinstance(given, Sequence) and len(given) > 0
    if not is_list or not all(isinstance(each, int) and each > 0 for each in given):
        raise UsageError(f"expected a size such as (3, 224, 224), found {given!r}")
    return tuple(given)


def _figures(model: nn.Module, sizes: Sizes, images: int, found: Findings) -> dict[str, Any]:
    calls, parameters = found.trace.calls, list(model.parameters())
    item_bytes = input_dtype(model).itemsize
    input_mb = images * item_bytes * sum(map(math.prod, all_sizes(sizes))) / _MIB
    rows = [call for call in calls if has_row(call)]
    output_mb = 2 * sum(call.output_bytes for call in rows) / _MIB
    params_mb = sum(each.numel() * each.element_size() for each in parameters) / _MIB
    return {
        "layers": [_layer(call) for call in rows],
        "total_params": count(parameters),
        "trainable_params": count([each for each in parameters if each.requires_grad]),
        "input_mb": input_mb,
        "forward_backward_mb": output_mb,
        "params_mb": params_mb,
        "total_mb": input_mb + output_mb + params_mb,
        "flops": sum(call.flops for call in calls),
        "peak_training_mb": None if found.peak_bytes is None else found.peak_bytes / _MIB,
        "remarks": found.remarks,
    }


def _layer(call: Call) -> Layer:
    return {
        "name": call.name,
        "type": call.type,
        "output_shape": call.shapes[0] if call.is_single else call.shapes,
        "params": count(call.parameters),
        "trainable": any(each.requires_grad for each in call.parameters),
        "flops": call.flops,
    }


def _totals(figures: Mapping[str, Any], batch_size: int, optimizer: str | None, amp: Amp) -> dict[str, str]:
    """The lines under the table."""
    total, trained = figures["total_params"], figures["trainable_params"]
    images = "one image" if abs(batch_size) == 1 else f"{batch_size} images"
    peak = figures["peak_training_mb"]
    step = f"{optimizer or 'no optimizer'}, {'float32' if amp == 'off' else amp}, {images}"
    return {
        "Parameters": f"{total:,} ({trained:,} trained, {total - trained:,} frozen)",
        "FLOPs": f"{_flops(figures['flops'])}, or {_flops(figures['flops'] / 2)} multiply-adds ({images}, forward)",
        "Input": f"{figures['input_mb']:,.2f} MiB",
        "Outputs, twice": f"{figures['forward_backward_mb']:,.2f} MiB",
        "Parameters' size": f"{figures['params_mb']:,.2f} MiB",
        "Sum of the three": f"{figures['total_mb']:,.2f} MiB",
        "Training peak": "not known" if peak is None else f"{peak:,.1f} MiB ({step})",
    }


def _flops(number: float) -> str:
    return next(
        (f"{number / unit:,.3f} {name}" for name, unit in (("G", 1e9), ("M", 1e6)) if number >= unit / 10),
        f"{number:,.0f}",
    )
