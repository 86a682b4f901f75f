"""From the calls of a pass to the rows of a table: a tree, cut at a depth, its repeated blocks told once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from itertools import groupby
from typing import Any

from torch import nn

from visus.summaries.tracing import Call, Shape, count


@dataclass(frozen=True)
class Figures:
    """What a row counts."""

    params: int = 0
    trained: int = 0
    """Of the parameters."""
    flops: int = 0
    kept_bytes: int = 0
    """What is left in memory for the backward pass."""

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.params + other.params,
            self.trained + other.trained,
            self.flops + other.flops,
            self.kept_bytes + other.kept_bytes,
        )

    def __mul__(self, times: int) -> Figures:
        return Figures(*(times * each for each in astuple(self)))


@dataclass(frozen=True)
class Row:
    """A call of a module, or several alike that follow each other."""

    name: str
    """From the row above it in the tree."""
    type: str
    depth: int
    input_shapes: list[Shape]
    shapes: list[Shape]
    kernel: list[int] | None
    own: Figures
    """Without those of rows inside this one."""
    rows: list[Row] = field(default_factory=list)
    times: int = 1
    """How many blocks alike this stands for; all figures are those of one."""

    def all(self) -> Figures:
        """Of this row and of those inside it."""
        return sum((each.all() * each.times for each in self.rows), self.own)


def has_row(call: Call) -> bool:
    """Containers and the model itself are worth a row only where they hold parameters."""
    is_shell = not call.name or isinstance(call.module, nn.Sequential | nn.ModuleList)
    return bool(call.parameters) or not is_shell


def kernel_of(module: nn.Module) -> list[int] | None:
    """The size of a convolution's or a pool's window, in as many dimensions as the class has in its name."""
    size: Any = getattr(module, "kernel_size", None)
    if isinstance(size, int):
        name = type(module).__name__
        size = [size] * (int(name[-2]) if name[-2:] in ("1d", "2d", "3d") else 1)
    is_size = isinstance(size, Sequence) and all(isinstance(each, int) for each in size)
    return list(size) if is_size and size else None


def tree(calls: Sequence[Call], *, depth: int | None = None, collapse: bool = True) -> list[Row]:
    """Rows for calls in the order in which they end; a call made inside another is inside its row.

    Below `depth` (1 is what the model itself calls, containers included) calls are added to the row that they are inside of.
    """
    return _named(_nested(calls, depth), "", collapse)


def ranking(calls: Sequence[Call], by: str, *, depth: int | None = None) -> list[Row]:
    """Rows under their whole names, the largest first `by` a field of `Figures`."""
    rows = [replace(row, rows=[]) for _, row in flat(_nested(calls, depth))]
    return sorted(rows, key=lambda row: -int(getattr(row.own, by)))


def _nested(calls: Sequence[Call], depth: int | None) -> list[Row]:
    rows: list[tuple[Call, Row]] = []
    for call in calls:
        inside: list[tuple[Call, Row]] = []
        while rows and rows[-1][0].depth > call.depth:
            inside.insert(0, rows.pop())
        if not has_row(call) and call.depth != depth:
            # What is inside a container without a row stands where it would.
            rows += [(replace(each, depth=call.depth), row) for each, row in inside]
            continue
        rows.append((call, _row(call, [row for _, row in inside], depth)))
    return [row for _, row in rows]


def flat(rows: Sequence[Row]) -> Iterator[tuple[int, Row]]:
    """Each row with how many it is inside of, from top to bottom."""
    for row in rows:
        yield 0, row
        yield from ((level + 1, each) for level, each in flat(row.rows))


def _row(call: Call, inside: list[Row], depth: int | None) -> Row:
    trained = [each for each in call.parameters if each.requires_grad]
    own = Figures(count(call.parameters), count(trained), call.flops, call.kept_bytes)
    row = Row(
        call.name, call.type, call.depth, call.input_shapes, call.shapes, kernel_of(call.module), own, inside
    )
    return replace(row, own=row.all(), rows=[]) if depth is not None and call.depth >= depth else row


def _named(rows: list[Row], above: str, collapse: bool) -> list[Row]:
    """The same with names from the row above, and blocks alike as one."""
    told = [
        replace(
            row,
            name=row.name.removeprefix(above),
            rows=_named(row.rows, f"{row.name}." if row.name else "", collapse),
        )
        for row in rows
    ]
    if not collapse:
        return told
    alike = (list(group) for _, group in groupby(told, _kind))
    return [_together(group) for group in alike]


def _kind(row: Row) -> object:
    """Equal for blocks that differ in their place only."""
    place = row.name.removesuffix(_number(row))
    inside = tuple((each.name, _kind(each), each.times) for each in row.rows)
    return place, row.type, str(row.input_shapes), str(row.shapes), str(row.kernel), row.own, inside


def _number(row: Row) -> str:
    """What its name ends with, as in `blocks.3` and `encoder_layer_3`; nothing where that is no number."""
    found = re.search(r"\d*$", row.name)
    return found[0] if found else ""


def _together(rows: list[Row]) -> Row:
    first = rows[0].name
    name = first if first == rows[-1].name else f"{first} to {_number(rows[-1])}"
    return replace(rows[0], name=name, times=len(rows))
