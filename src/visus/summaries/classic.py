"""The classic table of a model summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from visus.summaries.tracing import Call, count

_RULE = "-" * 64
_DOUBLE_RULE = "=" * 64
_ROW = "{:>20}  {:>25} {:>15}"
_MIB = 1024**2.0


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
