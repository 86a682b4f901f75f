"""Mixed precision: which types this machine can compute in, and whether they pay.

Nothing is believed that was not tried, and it is tried in a child process: CPUs exist that advertise bf16 matrix units and die of
an illegal instruction when these are used. What was found is kept for each machine and version of torch: a race is run once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from visus.devices import device_name
from visus.errors import UsageError
from visus.files import write_json

Amp = Literal["auto", "off", "bf16", "fp16"]

_TYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MARGIN = 1.5
"""How much faster than float32 a type must be for `auto` to take it; a close race would fall out differently each time."""
_PROBE_SECONDS = 120
_WORK = {"cpu": (16, 32, 32), "cuda": (64, 256, 56), "mps": (32, 64, 56)}
"""Images, channels and side of the probe's convolutions: enough to keep the device busy, and soon done."""


def resolve_amp(amp: Amp, device: torch.device) -> Literal["off", "bf16", "fp16"]:
    """`off`, `bf16` or `fp16` for what `amp` asks on `device`.

    `auto` takes bf16 where it works and is at least 1.5 times as fast as float32, else fp16 on the same terms: bf16 first, since
    the two are often equally fast. Raises `UsageError` where a type that was asked for by name does not work.
    """
    if amp == "off":
        return "off"
    seconds = probe(device)
    if amp != "auto":
        if amp in seconds:
            return amp
        works = ", ".join(name for name in seconds if name != "off") or "none"
        raise UsageError(
            f"--amp {amp} does not work on {device_name(device)} (types that do: {works}); use --amp off"
        )
    types: tuple[Literal["bf16", "fp16"], ...] = ("bf16", "fp16")
    for name in types:
        if seconds["off"] >= _MARGIN * seconds.get(name, math.inf):
            return name
    return "off"


def amp_that_works(amp: str, device: torch.device) -> str:
    """`amp` where it works on `device`, else `off`: a model that was trained in bf16 elsewhere runs here all the same."""
    return amp if amp == "off" or amp in probe(device) else "off"


def usable_types(device: torch.device) -> list[str]:
    """`bf16` and `fp16`, as far as they work on `device`."""
    return [name for name in probe(device) if name in _TYPES]


def autocast(amp: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which to run a model under `amp` (`off`, `bf16` or `fp16`); it may be entered again and again."""
    if amp == "off":
        return contextlib.nullcontext()
    return torch.autocast(device.type, _TYPES[amp])


def make_scaler(amp: str, device: torch.device) -> torch.amp.GradScaler:
    """The loss scaling that fp16 needs for its small range; one that does nothing for the others."""
    return torch.amp.GradScaler(device.type, enabled=amp == "fp16")


def probe(device: torch.device) -> dict[str, float]:
    """Seconds that forward and backward of a convolution take in each type that works on `device`: `off`, `bf16`, `fp16`."""
    kept = _kept_at(device)
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    seconds: dict[str, float] = {
        name: took for name in ("off", *_TYPES) if (took := _try(device, name)) is not None
    }
    if "off" not in seconds:
        raise UsageError(f"{device_name(device)}: a convolution in float32 fails there; use another --device")
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, seconds)
    return seconds


def _kept_at(device: torch.device) -> Path:
    """A file for each device, version of torch, and setting that forbids instructions."""
    forbidden = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    key = repr((torch.__version__, device.type, device_name(device), threads, forbidden, _WORK[device.type]))
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "visus" / f"amp-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _try(device: torch.device, amp: str) -> float | None:
    """Run this file in a child process; `None` where it dies, fails or takes too long."""
    command = [sys.executable, "-m", "visus.amp", str(device), amp, str(torch.get_num_threads())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_SECONDS, check=True)
        return float(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return None


def _race(device: torch.device, amp: str) -> float:
    """Median seconds of five times forward and backward, after two to warm up; `ArithmeticError` for gradients not finite."""
    images, channels, side = _WORK[device.type]
    layers = [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3)]
    model = nn.Sequential(*layers).to(device).to(memory_format=torch.channels_last)
    batch = torch.randn(images, channels, side, side, device=device).to(memory_format=torch.channels_last)
    times = []
    for _ in range(7):
        began = time.perf_counter()
        with autocast(amp, device):
            loss = model(batch).float().square().mean()
        loss.backward()
        finite = all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        times.append(time.perf_counter() - began)
        if not finite:
            raise ArithmeticError
    return sorted(times[2:])[2]


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    sys.stdout.write(str(_race(torch.device(sys.argv[1]), sys.argv[2])))
