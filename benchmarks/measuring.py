"""What the benchmarks share: alternating repeats, and a header that says on what they ran."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping
from importlib.metadata import version


def header(*packages: str) -> str:
    """Processor and versions."""
    from visus.devices import describe_devices

    devices = ", ".join(each.name for each in describe_devices())
    versions = ", ".join(f"{name} {version(name)}" for name in ("visus", "torch", *packages))
    return f"{devices}; {platform.system()}, Python {platform.python_version()}, {versions}"


def alternate(candidates: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The figure that each candidate returns, one candidate after the other, `repeats` times, after one round to warm up."""
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, measure in candidates.items():
            figure = measure()
            if repeat:
                figures[name].append(figure)
    return figures


def table(figures: Mapping[str, list[float]], base: str, unit: str) -> str:
    """Median and range of each candidate, and the median of its ratios to `base`, round by round."""
    lines = [f"| | {unit}, median | min to max | against {base} |", "|---|---|---|---|"]
    for name, values in figures.items():
        ratios = [value / other for value, other in zip(values, figures[base], strict=True)]
        lines.append(
            f"| {name} | {statistics.median(values):.4g} | {min(values):.4g} to {max(values):.4g} | "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )
    return "\n".join(lines)
