"""Whether `torch.compile` works on this machine: tried in a child process, since compiled code may die of a bad instruction."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from visus.amp import autocast
from visus.devices import device_name
from visus.errors import UsageError

_TRIAL_SECONDS = 300


def refuse_without_compiler(device: torch.device, amp: str) -> None:
    """`UsageError` with the reason where a small net cannot be compiled and trained on `device` under `amp`."""
    try:
        subprocess.run(
            [sys.executable, "-m", "visus.compiling", str(device), amp],
            capture_output=True,
            timeout=_TRIAL_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"the trial ended with {error.returncode}"
    except (subprocess.SubprocessError, OSError) as error:
        reason = str(error)
    else:
        return
    raise UsageError(
        f"--compile: torch.compile does not work on {device_name(device)} ({reason[:300]}); "
        "install a C++ compiler such as g++, or leave it out"
    )


def _try(device: torch.device, amp: str) -> None:
    """One step of a small net."""
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8, 4)).to(device).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 16, 16, device=device).to(memory_format=torch.channels_last)
    with autocast(amp, device):
        logits = torch.compile(model, dynamic=False)(images)
    logits.float().square().mean().backward()


if __name__ == "__main__":
    try:
        _try(torch.device(sys.argv[1]), sys.argv[2])
    except Exception as failure:
        sys.exit(f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}")
