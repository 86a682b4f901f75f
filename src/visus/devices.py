"""Choosing and describing the device to compute on."""

from __future__ import annotations

import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visus.errors import UsageError
from visus.processors import processors

_MIB = 1024**2
_NOT_DETERMINISTIC = (
    r"(\S.*?) does not have a deterministic implementation|.*not deterministic because it uses (CuBLAS)"
)


@dataclass(frozen=True)
class DeviceInfo:
    """One device, and the memory it has in MiB."""

    device: str
    name: str
    memory_mb: int


def select_device(device: str | torch.device = "auto", *, batch_size: int | None = None) -> torch.device:
    """The device that `device` names: `auto`, `cpu`, `cuda`, `mps`, or CUDA indices such as `0` or `0,1,2,3`, the first is given.

    `auto` takes CUDA, then MPS, then the CPU. With several indices `batch_size` must be a multiple of their number. Raises
    `UsageError` for a device that is not there; the environment is left alone.
    """
    if isinstance(device, torch.device):
        return device
    name = device.strip().lower() or "auto"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("MPS unavailable, invalid device 'mps' requested; use --device cpu")
        return torch.device("mps")
    indices = device_indices(name, device)
    if batch_size and batch_size % len(indices):
        raise UsageError(
            f"the batch size {batch_size} is not a multiple of the {len(indices)} devices; "
            f"use {batch_size - batch_size % len(indices) or len(indices)}"
        )
    return torch.device("cuda", indices[0])


def device_indices(name: str, asked: str | None = None) -> tuple[int, ...]:
    """The CUDA devices that `name` (`cuda`, `cuda:1`, `0`, `0,1`) means; `UsageError` where one is not there."""
    asked = name if asked is None else asked
    listed = name.removeprefix("cuda").removeprefix(":") or "0"
    try:
        indices = tuple(int(each) for each in listed.split(","))
    except ValueError:
        raise UsageError(
            f"expected auto, cpu, mps, cuda or indices such as 0,1 as the device, found {asked!r}"
        ) from None
    if not torch.cuda.is_available():
        raise UsageError(f"CUDA unavailable, invalid device {asked!r} requested; use --device cpu")
    count = torch.cuda.device_count()
    if len(set(indices)) != len(indices) or not all(0 <= index < count for index in indices):
        raise UsageError(f"expected different devices from 0 to {count - 1}, found {asked!r}")
    return indices


def own_device(device: str | torch.device, local_rank: int, local_size: int) -> torch.device:
    """The device of one of `local_size` processes on this machine; `UsageError` where there are too few for them.

    Of several, it becomes torch's current one of this process.
    """
    if isinstance(device, torch.device):
        return device
    first = select_device(device)
    if first.type != "cuda":
        return first
    asked = device.strip().lower()
    indices = device_indices(asked, device) if any(map(str.isdigit, asked)) else tuple(range(local_size))
    if len(indices) == local_size <= torch.cuda.device_count():
        if local_size > 1:
            # Or whatever does not say where, as parts of NCCL's, would take memory of the first for each of them.
            torch.cuda.set_device(indices[local_rank])
        return torch.device("cuda", indices[local_rank])
    raise UsageError(
        f"expected a device for each process, found {len(indices)} devices for {local_size}; "
        "give --device 0,1 on the command line, or start so many processes with torchrun"
    )


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, images `[N, C, H, W]` in channels-last layout.

    To CUDA it goes from pinned memory, so that neither this process nor the device waits for the copy.
    """
    layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True, memory_format=layout)


def exact_device(device: torch.device) -> torch.device:
    """`device`, or the CPU for Apple's GPUs, which have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def default_threads(local_size: int) -> int:
    """Threads for one of `local_size` processes on this machine: torch's choice, or where there are several an equal share."""
    if local_size == 1:
        return torch.get_num_threads()
    return max(1, processors() // local_size)


def describe_devices() -> list[DeviceInfo]:
    """Every device of this machine, the CPU first."""
    found = [DeviceInfo("cpu", _processor(), _memory_bytes() // _MIB)]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        found.append(DeviceInfo(str(index), properties.name, properties.total_memory // _MIB))
    if torch.backends.mps.is_available():
        found.append(DeviceInfo("mps", "Apple GPU", torch.mps.recommended_max_memory() // _MIB))
    return found


def as_torch_device(info: DeviceInfo) -> torch.device:
    """The device that `info` describes."""
    return torch.device("cuda", int(info.device)) if info.device.isdigit() else torch.device(info.device)


def device_name(device: torch.device) -> str:
    """What its maker calls `device`."""
    return _info(device).name


def describe_device(device: torch.device) -> str:
    """One line about `device`, as people read it at the start of a run."""
    info = _info(device)
    if device.type == "cpu":
        return f"Using CPU ({info.name}, {torch.get_num_threads()} threads)"
    return f"Using {device.type.upper()} device{info.device} (name='{info.name}', total_memory={info.memory_mb}MB)"


def _info(device: torch.device) -> DeviceInfo:
    key = str(device.index or 0) if device.type == "cuda" else device.type
    return next(each for each in describe_devices() if each.device == key)


@contextmanager
def computing(*, threads: int | None = None, deterministic: bool = True) -> Iterator[None]:
    """`threads` of the CPU (`None`: as they are) and deterministic kernels where there are any; afterwards all is as it was.

    torch's global generators of random numbers get their states back, too.
    """
    threads_before, deterministic_before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # torch's stubs do not know this property of the module.
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    with generators_kept(), _cublas(deterministic):
        try:
            torch.set_num_threads(threads or threads_before)
            torch.use_deterministic_algorithms(deterministic, warn_only=True)
            # Filling memory that is about to be written costs time and changes no result.
            settings.fill_uninitialized_memory = False
            yield
        finally:
            torch.set_num_threads(threads_before)
            torch.use_deterministic_algorithms(deterministic_before, warn_only=warn_only)
            settings.fill_uninitialized_memory = filled


@contextmanager
def generators_kept() -> Iterator[None]:
    """torch's global generators of random numbers get their states back, those of the CPU and of all devices.

    One of a CUDA device that is used for the first time meanwhile begins where the seed of the CPU's would have it begin.
    """
    initialised: Callable[[], bool] = torch.cuda.is_initialized
    before = initialised()
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if before else ()):
            yield
    finally:
        if initialised() and not before:
            torch.cuda.manual_seed_all(torch.initial_seed())
        if apple is not None:
            torch.mps.set_rng_state(apple)


@contextmanager
def _cublas(deterministic: bool) -> Iterator[None]:
    """Meanwhile, `deterministic` or not; what the environment says already stands.

    By itself cuBLAS adds up in an order that depends on the room it finds (its manual, on reproducible results). It and torch read
    the variable once, before the first product of matrices on a device.
    """
    name = "CUBLAS_WORKSPACE_CONFIG"
    wanted = deterministic and name not in os.environ
    if wanted:
        os.environ[name] = ":4096:8"
    try:
        yield
    finally:
        if wanted:
            os.environ.pop(name, None)


@contextmanager
def noting_nondeterminism() -> Iterator[set[str]]:
    """A set that gets the names of operations that have no deterministic kernel, instead of torch's warnings of them."""
    found: set[str] = set()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", _NOT_DETERMINISTIC)
        show = warnings.showwarning

        def note(message: Warning | str, *others: Any, **named: Any) -> None:
            if match := re.match(_NOT_DETERMINISTIC, str(message)):
                found.add(match[1] or match[2])
            else:
                show(message, *others, **named)

        warnings.showwarning = note
        yield found


def available_memory_bytes() -> int:
    """What could be allocated now: what the machine has free, or the container's limit less what it uses, whichever is less."""
    free = _memory_bytes()
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    used = Path("/sys/fs/cgroup/memory.current")
    limit = Path("/sys/fs/cgroup/memory.max")
    if used.is_file() and limit.is_file() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    """What this process may use: the container's limit where there is one, else the machine's memory."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [0]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)
