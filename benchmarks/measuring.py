"""What the benchmarks share: alternating repeats, and a header that says on what they ran."""

from __future__ import annotations

import platform
import resource
import statistics
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def header(*packages: str) -> str:
    """Processor and versions."""
    from visus.devices import describe_devices

    devices = ", ".join(each.name for each in describe_devices())
    versions = ", ".join(f"{name} {version(name)}" for name in ("visus", "torch", *packages))
    return f"{devices}; {platform.system()}, Python {platform.python_version()}, {versions}"


def processor_seconds(work: Callable[[], object]) -> float:
    """What `work` takes of a processor, by this process and its children, in the system's code and in their own."""
    began = _processor_time()
    work()
    return _processor_time() - began


def _processor_time() -> float:
    """In seconds; of children, those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


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


def peak_of_step(model: nn.Module, images: Tensor, optimizer: str = "sgd", amp: str = "off") -> int:
    """Bytes at the highest moment of the second training step on the CPU, by the memory events of torch's profiler."""
    import torch

    from visus.amp import autocast
    from visus.ops.optim import OptimizerSettings, make_optimizer
    from visus.summaries.memory import tensors_in

    updater = make_optimizer(model, OptimizerSettings(optimizer=optimizer))
    targets = torch.zeros(len(images), dtype=torch.int64)

    def step() -> None:
        with autocast(amp, images.device):
            outputs = tensors_in(model(images))
        losses = [torch.nn.functional.cross_entropy(each.float(), targets) for each in outputs]
        torch.stack(losses).sum().backward()
        updater.step()

    step()
    updater.zero_grad()
    there = [*model.parameters(), *model.buffers(), images, *tensors_in(list(updater.state.values()))]
    return sum(each.nbytes for each in there) + highest(step)


def highest(function: Callable[[], object]) -> int:
    """Bytes on the CPU at the highest moment of a call, above those before it, by the memory events of torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        function()
    events = [each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = peak = 0
    for each in sorted(events, key=lambda event: event.start_ns()):
        now += each.nbytes()
        peak = max(peak, now)
    return peak
