"""Starting a command in several processes of this machine, by torch's own launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from visus.devices import device_indices
from visus.errors import PeerLost

LAUNCHED = "VISUS_LAUNCHED"
"""Set in the processes that visus itself has started: nobody starts those again, so that they end with their true codes."""


def processes_to_start(device: str) -> int:
    """How many processes `device`, such as `0,1,2,3`, asks for; 0 where it is one, or where they are started already.

    `UsageError` for devices that are not there.
    """
    if "," not in device or "MASTER_ADDR" in os.environ:
        return 0
    return len(device_indices(device.strip().lower(), device))


def is_first() -> bool:
    """Whether this is the process that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def may_fail() -> bool:
    """Whether an end that needs a look may have a code of its own: torchrun starts again whatever does not end with 0."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or LAUNCHED in os.environ


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `visus ARGUMENTS` in `count` processes; the exit code is that of the first of them that did not end with 0."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ[LAUNCHED] = "1"
    # Where nobody says, torch's launcher gives each process one thread and warns; each chooses for itself.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        # torch's own list has no SIGUSR1, by which a cluster announces the end of a job.
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "visus", *arguments)
    except ChildFailedError as error:
        return _code_of_all(error.failures)
    except SignalException as error:
        return 130 if error.sigval == signal.SIGINT else 143
    return 0


def _code_of_all(failures: Mapping[int, Any]) -> int:
    """The code of the process that ended first; `PeerLost` where that was killed and nobody has said so.

    Times are whole seconds: of those that ended in the same one, the others have ended of the one that was killed, or has a code
    of its own.
    """
    began = min(failure.timestamp for failure in failures.values())
    first = {rank: each.exitcode for rank, each in failures.items() if each.timestamp == began}
    killed = [rank for rank, code in first.items() if code < 0 and code != -signal.SIGTERM]
    if killed:
        rank = killed[0]
        if any(each.exitcode == PeerLost.exit_code for each in failures.values()):
            return PeerLost.exit_code
        raise PeerLost(
            f"process {rank} (pid {failures[rank].pid}) was killed by signal {-first[rank]}, so the others ended as well; "
            "go on from the last checkpoint with --resume and the run's folder"
        )
    codes = [
        128 - code if code < 0 else code
        for code in first.values()
        if code != -signal.SIGTERM or len(first) == 1
    ]
    return int(next((code for code in codes if code != PeerLost.exit_code), codes[0]))
