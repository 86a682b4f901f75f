"""The rows of a model summary as text, Markdown and HTML."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from visus.summaries.rows import Figures, Row, flat

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 100
_MIB = 2**20

Column = Literal["type", "depth", "input", "output", "kernel", "params", "trained", "flops", "activations"]
DEFAULT_COLUMNS: tuple[Column, ...] = ("type", "output", "params", "trained", "flops", "activations")
_LEFT = ("type", "input", "output", "kernel")
_COLUMNS: dict[str, tuple[str, Callable[[Row, Figures], str]]] = {
    "type": ("Type", lambda row, _: row.type),
    "depth": ("Depth", lambda row, _: str(row.depth)),
    "input": ("Input shape", lambda row, _: _shapes_text(row.input_shapes)),
    "output": ("Output shape", lambda row, _: _shapes_text(row.shapes)),
    "kernel": ("Kernel", lambda row, _: " x ".join(map(str, row.kernel or ()))),
    "params": ("Parameters", lambda _, figures: f"{figures.params:,}" if figures.params else ""),
    "trained": ("Trained", lambda _, figures: _trained(figures)),
    "flops": ("MFLOPs", lambda _, figures: _number(figures.flops / 1e6)),
    "activations": ("Kept MiB", lambda _, figures: _number(figures.kept_bytes / _MIB)),
}
_STYLE = """
.layers { font: 14px/1.5 ui-monospace, monospace; color-scheme: light dark; padding: 1em; overflow-x: auto;
  color: light-dark(#1c1e21, #e4e6e9); background: light-dark(#fff, #16181b) }
.layers details > :not(summary) { margin-left: 1.2em }
.layers summary, .layers .leaf { white-space: nowrap }
.layers summary { cursor: pointer }
.layers .leaf { padding-left: 1.1em }
.layers i { font-style: normal; color: light-dark(#5b626b, #9aa3ad) }
"""


def rich_table(
    rows: Sequence[Row],
    totals: Mapping[str, str],
    remarks: Sequence[str],
    columns: Sequence[str] | None = None,
) -> str:
    """Layers as a tree, then `totals` and `remarks`; plain text, 100 characters wide, or as wide as chosen columns need."""
    from rich import box
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.table import Table

    layers = Table(box=box.SIMPLE_HEAD, show_edge=False, expand=True, pad_edge=False, collapse_padding=True)
    _fill(layers, rows, columns or DEFAULT_COLUMNS)
    figures = Table(box=None, show_header=False, pad_edge=False)
    figures.add_column(no_wrap=True)
    figures.add_column(overflow="fold")
    for pair in totals.items():
        figures.add_row(*pair)
    notes = [Padding(f"Note: {each}", (1, 0, 0, 0)) for each in remarks]
    text = io.StringIO()
    # Brackets in shapes are no markup, and numbers need no colour.
    console = Console(
        file=text, width=9999, color_system=None, force_terminal=False, markup=False, emoji=False
    )
    console.width = max(_WIDTH, console.measure(layers).maximum if columns else 0)
    console.print(Group(layers, "", figures, *notes), highlight=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _fill(layers: Table, rows: Sequence[Row], columns: Sequence[str]) -> None:
    layers.add_column("Layer", overflow="fold")
    for name in columns:
        is_left = name in _LEFT
        layers.add_column(
            _COLUMNS[name][0], justify="left" if is_left else "right", overflow="fold", no_wrap=not is_left
        )
    for level, row in flat(rows):
        layers.add_row("  " * level + _name(row), *(_COLUMNS[each][1](row, row.own) for each in columns))


def markdown_table(
    rows: Sequence[Row],
    totals: Mapping[str, str],
    remarks: Sequence[str],
    columns: Sequence[str] | None = None,
) -> str:
    """The same as a table in GitHub's Markdown, layers indented by no-break spaces."""
    columns = columns or DEFAULT_COLUMNS
    lines = [
        _markdown_row(["Layer", *(_COLUMNS[each][0] for each in columns)]),
        _markdown_row(["---", *("---" if each in _LEFT else "---:" for each in columns)]),
    ]
    for level, row in flat(rows):
        cells = [_COLUMNS[each][1](row, row.own) for each in columns]
        lines.append(_markdown_row(["&nbsp;&nbsp;" * level + _escaped(_name(row)), *map(_escaped, cells)]))
    lines += ["", *(f"- {name}: {_escaped(value)}" for name, value in totals.items())]
    lines += [f"- Note: {_escaped(each)}" for each in remarks]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """So that no character of a layer's name means something in Markdown."""
    for each in "\\`*_<>|":
        text = text.replace(each, f"\\{each}")
    return text


def html_tree(
    title: str,
    rows: Sequence[Row],
    totals: Mapping[str, str],
    remarks: Sequence[str],
    columns: Sequence[str] | None = None,
) -> str:
    """A piece of a page that needs nothing else: nested `<details>`, whose figures are those of all that is inside."""
    columns = columns or DEFAULT_COLUMNS
    whole = sum((row.all() * row.times for row in rows), Figures())
    figures = (
        [
            f"{_COLUMNS[each][0]} {text}"
            for each in columns
            if each not in _LEFT and (text := _cell(each, rows[0], whole))
        ]
        if rows
        else []
    )
    inside = "".join(_html_row(row, columns) for row in rows)
    facts = "".join(
        f"<div><i>{html.escape(name)}</i> {html.escape(text)}</div>" for name, text in totals.items()
    )
    notes = "".join(f"<div>Note: {html.escape(each)}</div>" for each in remarks)
    head = f"<b>{html.escape(title)}</b> <i>{html.escape(', '.join(figures))}</i>"
    layers = f"<details open><summary>{head}</summary>\n{inside}</details>"
    return f'<div class="layers"><style>{_STYLE}</style>\n{layers}\n{facts}{notes}</div>\n'


def _html_row(row: Row, columns: Sequence[str]) -> str:
    figures = row.all()
    cells = [(each, text) for each in columns if (text := _cell(each, row, figures))]
    words = ", ".join(
        text if each in ("type", "output", "kernel") else f"{_COLUMNS[each][0]} {text}"
        for each, text in cells
    )
    line = f"<b>{html.escape(_name(row))}</b> <i>{html.escape(words)}</i>"
    if not row.rows:
        return f'<div class="leaf">{line}</div>\n'
    return f"<details><summary>{line}</summary>\n{''.join(_html_row(each, columns) for each in row.rows)}</details>\n"


def _cell(column: str, row: Row, figures: Figures) -> str:
    return _COLUMNS[column][1](row, figures)


def _name(row: Row) -> str:
    return (row.name or "(model)") + (f" (x {row.times})" if row.times > 1 else "")


def _trained(figures: Figures) -> str:
    if not figures.params:
        return ""
    return "no" if not figures.trained else "yes" if figures.trained == figures.params else "partly"


def _shapes_text(shapes: Sequence[Sequence[int]]) -> str:
    texts = [str(shape) for shape in shapes]
    return texts[0] if len(texts) == 1 else f"{len(texts)} tensors: {', '.join(texts)}" if texts else "none"


def _number(value: float) -> str:
    return "" if not value else f"{value:,.2f}" if value >= 0.005 else "< 0.01"
