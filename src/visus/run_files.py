"""What a run writes into its folder at the beginning, and says in each of its checkpoints."""

from __future__ import annotations

import dataclasses
import platform
from importlib.metadata import version
from typing import Any

from visus.assembling import Assembly, model_args
from visus.config import TrainConfig, plain_settings, write_config
from visus.data.listing import split_header, split_rows
from visus.devices import describe_devices
from visus.files import write_json
from visus.preparing import Prepared
from visus.processes import Processes, launch_id
from visus.runs import RunFolder, create_run
from visus.tables import writing_table


def new_folder(config: TrainConfig, prepared: Prepared, processes: Processes) -> str:
    """The path of the run's folder, made by the first process."""
    if not processes.first:
        return ""
    run = create_run(config.out, config.name or "run")
    write_config(config, run.config)
    write_json(run.environment, _environment(config, prepared, processes))
    write_split(prepared, run)
    return str(run.path)


def write_missing(assembly: Assembly) -> None:
    """What a process that was killed at its beginning had not written yet; and what it had begun goes."""
    run, prepared = assembly.run, assembly.prepared
    run.remove_leftovers()
    if not run.environment.exists():
        write_json(run.environment, _environment(assembly.config, prepared, assembly.processes))
    if not run.split.exists():
        write_split(prepared, run)


def checkpoint_document(assembly: Assembly) -> dict[str, Any]:
    """What a checkpoint says besides its tensors and the state."""
    config, prepared = assembly.config, assembly.prepared
    return {
        "model": config.model,
        "model_args": model_args(config, prepared),
        "classes": list(prepared.data.classes),
        "preprocess": prepared.preprocessing.to_json(),
        "config": plain_settings(config),
        "data": prepared.fingerprint,
        "processes": assembly.processes.size,
        "transform": assembly.transform is not None,
    }


def write_split(prepared: Prepared, run: RunFolder) -> None:
    """Which image is in which part."""
    with writing_table(run.split, split_header(prepared.data)) as write:
        write(split_rows(prepared.data))


def _environment(config: TrainConfig, prepared: Prepared, processes: Processes) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in ("visus", "torch", "torchvision", "timm", "numpy", "pillow")},
        "devices": [dataclasses.asdict(each) for each in describe_devices()],
        "seed": config.seed,
        "data": prepared.fingerprint,
        "processes": processes.size,
        "launch": launch_id(),
        "not_deterministic": [],
    }
