"""Comparisons as people read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from visus.comparison import Comparison, Pair, PoolPair
from visus.display import ONE_LINE, plural
from visus.score_tables import extent, percent, text_table

_SHOWN = 5
_LEVEL = 0.05


def describe_comparison(comparison: Comparison) -> str:
    """A row for each run, then for each pair what differs, how surely, and which images flipped."""
    parts = [_runs(comparison), *map(_pair, comparison.pairs)]
    if any(len(pool.runs) > 1 for pool in comparison.pools):
        parts.append(_pools(comparison))
    return "\n\n".join(parts)


def describe_leaderboard(boards: Sequence[Comparison]) -> str:
    """A table for each set of test images, the best run first, each beside its difference from the best."""
    return "\n\n".join(map(_board, boards))


def _runs(comparison: Comparison) -> str:
    headings = ["run", "accuracy", "95 % interval", "loss", "seed"]
    rows = [
        [
            os.path.relpath(run.name),
            percent(run.accuracy),
            extent(row["accuracy_ci95"]),
            _number(row["loss"]),
            str(row["seed"]),
        ]
        for run, row in zip(comparison.runs, comparison.rows(), strict=True)
    ]
    return f"on the same {comparison.runs[0].n} images{_counted(comparison)}:\n{text_table(headings, rows)}"


def _counted(comparison: Comparison) -> str:
    """What is to be said of groups."""
    if comparison.units is not None:
        return f" of {plural(int(comparison.units.max()) + 1, 'group')}, which intervals and p-values count"
    one = any(run.one_group for run in comparison.runs)
    return ", all of one group: figures hold for others of that group only" if one else ""


def _pair(pair: Pair) -> str:
    a, b = os.path.relpath(pair.a), os.path.relpath(pair.b)
    low, high = pair.difference_ci95
    surely = pair.p_adjusted <= _LEVEL
    better = f"{b if pair.difference > 0 else a} is better" if surely else "no difference beyond chance"
    kappa = "" if pair.kappa is None else f", kappa {pair.kappa:.3f}"
    lines = [
        f"{b} less {a}: {_points(pair.difference)} points (95 % interval {_points(low)} to {_points(high)}); {better} "
        f"(McNemar{'' if pair.groups is None else ' over groups,'} p = {pair.mcnemar_p:.3g}, {pair.p_adjusted:.3g} for all pairs)",
        f"  {pair.only_a} images are right with {a} alone, {pair.only_b} with {b} alone; both say the same of "
        f"{percent(pair.agreement)}{kappa}",
        f"  {_detectable(pair)}",
    ]
    lines += [
        f"  class {each['name']}: {_points(each['difference'])} points of {each['n']} images (p = {each['p_adjusted']:.2g}, Holm)"
        for each in pair.per_class
        if each["p_adjusted"] <= _LEVEL
    ]
    lines += [
        f"  {each['path']}: {each['label']}, {a} says {each['a'] or 'nothing'}, {b} says {each['b'] or 'nothing'}"
        for each in pair.flipped[:_SHOWN]
    ]
    if len(pair.flipped) > _SHOWN:
        lines.append(
            f"  and {plural(len(pair.flipped) - _SHOWN, 'more image', 'more images')} that flipped (--json has all)"
        )
    return "\n".join(line.translate(ONE_LINE) for line in lines)


def _detectable(pair: Pair) -> str:
    counted = "images" if pair.groups is None else "groups"
    if pair.detectable is None:
        return f"so few {counted} can show no difference"
    return f"so many {counted} would show a difference of {100 * pair.detectable:.2f} points in four of five cases"


def _pools(comparison: Comparison) -> str:
    lines = ["runs of the same settings, over seeds:"]
    for place, pool in enumerate(comparison.pools, start=1):
        spread = (
            "" if pool.accuracy_sd is None else f", standard deviation {100 * pool.accuracy_sd:.2f} points"
        )
        lines.append(
            f"  {place}: {percent(pool.accuracy)} on average of {len(pool.runs)}{spread}, {percent(pool.lowest)} to "
            f"{percent(pool.highest)} ({', '.join(map(os.path.relpath, pool.runs))})"
        )
    lines += map(_pool_pair, comparison.pool_pairs)
    return "\n".join(lines)


def _pool_pair(pair: PoolPair) -> str:
    low, high = pair.difference_ci95
    return (
        f"  {pair.b + 1} less {pair.a + 1}: {_points(pair.difference)} points (95 % interval {_points(low)} to {_points(high)}, "
        f"p = {pair.p:.3g}), for other seeds and images too"
    )


def _board(board: Comparison) -> str:
    against = {pair.b: pair for pair in board.pairs}
    headings = ["run", "accuracy", "95 % interval", "to the best", "p", "loss", "model", "epochs", "seed"]
    rows: list[list[Any]] = []
    for run, row in zip(board.runs, board.rows(), strict=True):
        pair = against.get(run.name)
        behind = ["", ""] if pair is None else [_points(pair.difference), f"{pair.p_adjusted:.2g}"]
        rows.append(
            [
                os.path.relpath(run.name),
                percent(run.accuracy),
                extent(row["accuracy_ci95"]),
                *behind,
                _number(row["loss"]),
                *(str(row[key] or "") for key in ("model", "epochs", "seed")),
            ]
        )
    first = board.runs[0]
    split = first.evaluation.get("split", "test")
    instead = "judge it on a test part" if split == "val" else "choose on validation"
    note = f"; the best of many is partly lucky: {instead}" if len(board.runs) > 1 else ""
    return f"{first.n} images ({split}){_counted(board)}{note}\n{text_table(headings, rows)}"


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
