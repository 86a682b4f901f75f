"""A model as a table: its layers, their shapes and parameters, what a pass costs and how much memory a training step takes.

Nothing is computed and nothing allocated: the model is copied with fake tensors, and the copy is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, TypedDict, get_args

from torch import Tensor, nn

from visus.errors import UsageError, unknown_name
from visus.models.hollow import fake_mode
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.summaries.classic import classic_table
from visus.summaries.examining import (
    Amp,
    Findings,
    Sizes,
    all_sizes,
    input_maker,
    item_bytes,
    runnable_copy,
    undisturbed,
)
from visus.summaries.memory import Peak, largest_fitting, predict_peak
from visus.summaries.preparing import examined, prepare
from visus.summaries.rows import has_row, kernel_of, ranking, tree
from visus.summaries.tables import Column, html_tree, markdown_table, rich_table
from visus.summaries.tracing import Call, Shape, count

Style = Literal["rich", "classic", "markdown", "html"]
Sort = Literal["params", "flops", "activations"]
COLUMNS: tuple[Column, ...] = get_args(Column)
Input = Sequence[int] | Tensor
_MIB = 2**20


class Layer(TypedDict):
    """One call of a module."""

    name: str
    """Its path in the model; empty for the model itself, which has a row only if it holds parameters."""
    type: str
    depth: int
    """How many modules it is called inside of: 0 for the model itself."""
    input_shape: list[Any]
    """As `output_shape`."""
    output_shape: list[Any]
    """A list of shapes where the output is not one tensor. Without a batch size, -1 is what grows with the batch."""
    params: int
    """Its own, without those of modules inside it; each is counted once, at the first call."""
    trainable: bool
    """Whether any of them is trained."""
    flops: int
    """Its own, without those of modules inside it."""
    kernel: list[int] | None
    """The window of a convolution or a pool."""
    activation_mb: float | None
    """What its own operations leave in memory for the backward pass; `None` where that could not be seen."""


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
    peak_training: dict[str, float] | None
    """The same by what it is, in MiB: parameters (with buffers), inputs, gradients, optimizer, activations, temporary."""
    peak_inference_mb: float | None
    """The most that tensors take at any moment of a pass in eval mode, without gradients."""
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
    input_size: Input | Sequence[Input] | Mapping[str, Input] | None = None,
    *,
    batch_size: int = -1,
    num_classes: int | None = None,
    in_channels: int | None = None,
    optimizer: str | None = None,
    amp: Amp = "off",
    style: Style = "rich",
    columns: Sequence[Column] | None = None,
    depth: int | None = None,
    sort: Sort | None = None,
    collapse: bool = True,
) -> Summary:
    """What `model_or_name` is made of and needs, for inputs of `input_size`.

    A size is `(C, H, W)`, or that of one item of any other input; a list of sizes, or a mapping by keyword, is for several inputs.
    Inputs are random numbers; a tensor in the place of a size is an item itself, for what takes others (`torch.zeros(16,
    dtype=torch.int64)` for a sequence of 16 indices).
    A name has its library's own size, and is built for `in_channels` (by default those of the input) and `num_classes`. Without
    `batch_size`, figures are those of one image. `optimizer` is a name as in training; without one, the training step makes
    gradients and updates nothing. A module is left as it was found.

    `style` is that of the table: text as a tree, or as torchsummary has it (`classic`), `markdown`, or `html` for a page.
    Of all but the classic one, `columns` may be chosen; layers below `depth` are added to the one that they are in; `sort` lists
    layers with the largest first, in place of the tree; and blocks alike that follow each other are told once unless `collapse` is
    off. None of these changes `layers`. Raises `UsageError` for an input that the model cannot take, naming the layer, and sizes
    of images that work.
    """
    _check(batch_size, amp, style)
    _check_table(columns, depth, sort)
    with undisturbed():
        _check_optimizer(optimizer)
        model, sizes = prepare(model_or_name, input_size, num_classes, in_channels)
        found = examined(model_or_name, model, sizes, batch_size, optimizer, amp)
        # In here too, since rich draws random numbers.
        figures = _figures(model, sizes, abs(batch_size), found)
        if style == "classic":
            shown = [call for call in found.run.calls if has_row(call)]
            totals = figures["total_params"], figures["trainable_params"]
            table = classic_table(shown, all_sizes(sizes), batch_size, *totals)
        else:
            calls = found.trace.calls
            by = "kept_bytes" if sort == "activations" else sort
            rows = ranking(calls, by, depth=depth) if by else tree(calls, depth=depth, collapse=collapse)
            told = rows, _totals(figures, batch_size, optimizer, amp), found.remarks, columns
            title = model_or_name if isinstance(model_or_name, str) else type(model_or_name).__name__
            write: dict[str, Callable[..., str]]
            write = {"rich": rich_table, "markdown": markdown_table, "html": partial(html_tree, title)}
            table = write[style](*told)
    return Summary(**figures, table=table)


def largest_batch(
    model_or_name: nn.Module | str,
    input_size: Input | Sequence[Input] | Mapping[str, Input] | None,
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
        model, sizes = prepare(model_or_name, input_size, num_classes, in_channels)
        found = examined(model_or_name, model, sizes, 1, optimizer, amp)
        if found.peak is None:
            raise UsageError(f"no batch size can be found: {'; '.join(found.remarks)}")
        if found.peak.total > memory_bytes:
            raise UsageError(
                f"a training step on one image needs {found.peak.total / _MIB:,.0f} MiB, found {memory_bytes / _MIB:,.0f} MiB; "
                "take smaller images or a smaller model"
            )
        with fake_mode():
            hollow = runnable_copy(model, sizes)
            hollow.train()
            make = input_maker(hollow, sizes)
            arguments, keywords = make(1)
            # The inputs alone bound the batch.
            most = memory_bytes // sum(each.nbytes for each in (*arguments, *keywords.values()))
            return largest_fitting(
                lambda n: predict_peak(hollow, make, n, optimizer=optimizer, amp=amp).total,
                memory_bytes,
                most,
            )


def _check(batch_size: int, amp: str, style: str) -> None:
    if batch_size != -1 and batch_size < 1:
        raise UsageError(f"expected a batch size of 1 or more, or -1 to count one image, found {batch_size}")
    for kind, value, known in (("amp", amp, get_args(Amp)), ("style", style, get_args(Style))):
        if value not in known:
            raise unknown_name(kind, value, known)


def _check_table(columns: Sequence[str] | None, depth: int | None, sort: str | None) -> None:
    for column in columns or ():
        if column not in COLUMNS:
            raise unknown_name("column", column, COLUMNS)
    if depth is not None and depth < 0:
        raise UsageError(f"expected a depth of 0 or more, found {depth}")
    if sort is not None and sort not in get_args(Sort):
        raise unknown_name("order", sort, get_args(Sort))


def _check_optimizer(optimizer: str | None) -> None:
    """Before the model is run, and with a model that has something to train."""
    if optimizer is not None:
        make_optimizer(nn.Linear(1, 1), OptimizerSettings(optimizer=optimizer, lr=1.0))


def _figures(model: nn.Module, sizes: Sizes, images: int, found: Findings) -> dict[str, Any]:
    calls, parameters = found.trace.calls, found.parameters
    input_mb = images * item_bytes(model, sizes) / _MIB
    rows = [call for call in calls if has_row(call)]
    output_mb = 2 * sum(call.output_bytes for call in rows) / _MIB
    params_mb = sum(each.numel() * each.element_size() for each in parameters) / _MIB
    return {
        "layers": [_layer(call, found.peak is not None) for call in rows],
        "total_params": count(parameters),
        "trainable_params": count([each for each in parameters if each.requires_grad]),
        "input_mb": input_mb,
        "forward_backward_mb": output_mb,
        "params_mb": params_mb,
        "total_mb": input_mb + output_mb + params_mb,
        "flops": sum(call.flops for call in calls),
        "peak_training_mb": None if found.peak is None else found.peak.total / _MIB,
        "peak_training": None if found.peak is None else _in_mb(found.peak),
        "peak_inference_mb": None if found.inference_bytes is None else found.inference_bytes / _MIB,
        "remarks": found.remarks,
    }


def _in_mb(peak: Peak) -> dict[str, float]:
    return {name: nbytes / _MIB for name, nbytes in asdict(peak).items()}


def _layer(call: Call, kept_is_known: bool) -> Layer:
    return {
        "name": call.name,
        "type": call.type,
        "depth": call.depth,
        "input_shape": _one_or_all(call.input_shapes),
        "output_shape": call.shapes[0] if call.is_single else call.shapes,
        "params": count(call.parameters),
        "trainable": any(each.requires_grad for each in call.parameters),
        "flops": call.flops,
        "kernel": kernel_of(call.module),
        "activation_mb": call.kept_bytes / _MIB if kept_is_known else None,
    }


def _one_or_all(shapes: list[Shape]) -> list[Any]:
    return shapes[0] if len(shapes) == 1 else shapes


def _totals(figures: Mapping[str, Any], batch_size: int, optimizer: str | None, amp: Amp) -> dict[str, str]:
    """The lines under the table."""
    total, trained = figures["total_params"], figures["trainable_params"]
    images = "one image" if abs(batch_size) == 1 else f"{batch_size} images"
    peak, inference = figures["peak_training_mb"], figures["peak_inference_mb"]
    step = f"{optimizer or 'no optimizer'}, {'float32' if amp == 'off' else amp}, {images}"
    return {
        "Parameters": f"{total:,} ({trained:,} trained, {total - trained:,} frozen)",
        "FLOPs": f"{_flops(figures['flops'])}, or {_flops(figures['flops'] / 2)} multiply-adds ({images}, forward)",
        "Input": f"{figures['input_mb']:,.2f} MiB",
        "Outputs, twice": f"{figures['forward_backward_mb']:,.2f} MiB",
        "Parameters' size": f"{figures['params_mb']:,.2f} MiB",
        "Sum of the three": f"{figures['total_mb']:,.2f} MiB",
        "Training peak": "not known" if peak is None else f"{peak:,.1f} MiB ({step})",
        "of which": _parts(figures["peak_training"]),
        "Inference peak": "not known" if inference is None else f"{inference:,.1f} MiB ({images})",
    }


def _parts(peak: Mapping[str, float] | None) -> str:
    return "not known" if peak is None else ", ".join(f"{name} {mb:,.1f}" for name, mb in peak.items())


def _flops(number: float) -> str:
    return next(
        (f"{number / unit:,.3f} {name}" for name, unit in (("G", 1e9), ("M", 1e6)) if number >= unit / 10),
        f"{number:,.0f}",
    )
