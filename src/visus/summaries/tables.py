"""The two looks of a model summary."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from visus.summaries.tracing import Call, count

_WIDTH = 100
_RULE = "-" * 64
_DOUBLE_RULE = "=" * 64
_ROW = "{:>20}  {:>25} {:>15}"
_MIB = 1024**2.0


def has_row(call: Call) -> bool:
    """Containers and the model itself are worth a row only where they hold parameters."""
    is_shell = not call.name or isinstance(call.module, nn.Sequential | nn.ModuleList)
    return bool(call.parameters) or not is_shell


def classic_table(
    rows: Sequence[Call],
    sizes: Sequence[Sequence[int]],
    batch_size: int,
    total_params: int,
    trainable_params: int,
) -> str:
    """The table of torchsummary (Shubham Chandel, 2018), as the notes print it, with its estimates of memory.

    Rows are those of a pass of two images where `batch_size` is -1. Every number is taken for four bytes, as there.
    """
    shapes = [_classic_shape(call, batch_size) for call in rows]
    trained = _classic_trainable(rows, total_params, trainable_params)
    input_mb = abs(_product(sizes) * batch_size * 4.0 / _MIB)
    output_mb = abs(2.0 * sum(map(_product, shapes)) * 4.0 / _MIB)
    params_mb = total_params * 4.0 / _MIB
    named = zip(rows, shapes, strict=True)
    lines = [
        _RULE,
        _ROW.format("Layer (type)", "Output Shape", "Param #"),
        _DOUBLE_RULE,
        *(
            _ROW.format(f"{call.type}-{index}", str(shape), f"{count(call.parameters):,}")
            for index, (call, shape) in enumerate(named, 1)
        ),
        _DOUBLE_RULE,
        f"Total params: {total_params:,}",
        f"Trainable params: {trained:,}",
        f"Non-trainable params: {total_params - trained:,}",
        _RULE,
        f"Input size (MB): {input_mb:0.2f}",
        f"Forward/backward pass size (MB): {output_mb:0.2f}",
        f"Params size (MB): {params_mb:0.2f}",
        f"Estimated Total Size (MB): {params_mb + output_mb + input_mb:0.2f}",
        _RULE,
    ]
    return "".join(f"{line}\n" for line in lines)


def _classic_shape(call: Call, batch_size: int) -> list[Any]:
    if call.is_single:
        return [batch_size, *call.shapes[0][1:]] if call.shapes[0] else []
    return [[-1, *shape[1:]] for shape in call.shapes]


def _classic_trainable(rows: Sequence[Call], total_params: int, trainable_params: int) -> int:
    """A layer is trained if its weight is, and its bias goes with it: wrong where only one is frozen, but the original's way."""
    held = [dict(call.module.named_parameters(recurse=False)) for call in rows]
    if (
        sum(p.numel() for each in held for name, p in each.items() if name in ("weight", "bias"))
        != total_params
    ):
        return trainable_params
    trained = (each["weight"].requires_grad if "weight" in each else False for each in held)
    return sum(count(call.parameters) for call, yes in zip(rows, trained, strict=True) if yes)


def _product(shape: Sequence[Any]) -> float:
    """Of everything in `shape`, as the original has it also for several inputs or outputs; their sum where it could not."""
    try:
        return float(np.prod(shape))
    except ValueError:
        return float(sum(math.prod(each) for each in shape))


def rich_table(
    rows: Sequence[Call], totals: Mapping[str, str], remarks: Sequence[str], *, width: int = _WIDTH
) -> str:
    """Layers as a tree, in the order in which they begin, then `totals` and `remarks`; plain text."""
    from rich import box
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.table import Table

    layers = Table(box=box.SIMPLE_HEAD, show_edge=False, expand=True, pad_edge=False, collapse_padding=True)
    for title in ("Layer", "Type", "Output shape"):
        layers.add_column(title, overflow="fold")
    for title in ("Parameters", "Trained", "MFLOPs"):
        layers.add_column(title, justify="right", no_wrap=True)
    for row in _tree(rows):
        layers.add_row(*row)
    figures = Table(box=None, show_header=False, pad_edge=False)
    figures.add_column(no_wrap=True)
    figures.add_column(overflow="fold")
    for pair in totals.items():
        figures.add_row(*pair)
    notes = [Padding(f"Note: {each}", (1, 0, 0, 0)) for each in remarks]
    text = io.StringIO()
    # Brackets in shapes are no markup, and numbers need no colour.
    Console(file=text, width=width, color_system=None, force_terminal=False, markup=False, emoji=False).print(
        Group(layers, "", figures, *notes), highlight=False
    )
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _tree(rows: Sequence[Call]) -> list[tuple[str, ...]]:
    """Cells of each row; a call made inside another is indented under it, and named from there."""
    ends = {id(call): place for place, call in enumerate(rows)}
    above: list[Call] = []
    table: list[tuple[str, ...]] = []
    for call in sorted(rows, key=lambda each: each.began):
        while above and ends[id(above[-1])] < ends[id(call)]:
            above.pop()
        prefix = f"{above[-1].name}." if above and above[-1].name else ""
        name = (call.name or "(model)").removeprefix(prefix)
        table.append((f"{'  ' * len(above)}{name}", call.type, _shapes_text(call), *_numbers(call)))
        above.append(call)
    return table


def _numbers(call: Call) -> tuple[str, str, str]:
    trained = {each.requires_grad for each in call.parameters}
    word = {(): "", (True,): "yes", (False,): "no"}.get(tuple(trained), "partly")
    params = f"{count(call.parameters):,}" if call.parameters else ""
    return params, word, _millions(call.flops)


def _shapes_text(call: Call) -> str:
    texts = [str(shape) for shape in call.shapes]
    return texts[0] if len(texts) == 1 else f"{len(texts)} tensors: {', '.join(texts)}" if texts else "none"


def _millions(flops: int) -> str:
    return "" if not flops else f"{flops / 1e6:,.2f}" if flops >= 5000 else "< 0.01"
