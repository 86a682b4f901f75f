"""How busy this machine is, in a line; loads no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from visus.processors import processors

_SECONDS = 5


def describe_load() -> str:
    """Processors, memory and NVIDIA GPUs as far as this system tells of them."""
    return " · ".join(filter(None, [_describe_processors(), _describe_memory(), *_describe_gpus()]))


def _describe_processors() -> str:
    if not hasattr(os, "getloadavg"):
        return ""
    return f"load {os.getloadavg()[0]:.1f} on {processors()} processors"


def _describe_memory() -> str:
    """By Linux's own account."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        used = kilobytes["MemTotal"] - kilobytes["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return ""
    return f"memory {used / 2**20:.1f} of {kilobytes['MemTotal'] / 2**20:.1f} GiB"


def _describe_gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    query = [
        "nvidia-smi",
        "--query-gpu=index,utilization.gpu,memory.used,memory.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    return [
        f"GPU {index} {busy} %, {used} of {total} MiB"
        for index, busy, used, total in (row for row in rows if len(row) == 4)
    ]
