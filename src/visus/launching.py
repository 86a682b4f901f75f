"""Starting a command in several processes of this machine, by torch's own launcher."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence

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
    )
    try:
        elastic_launch(config, sys.executable)("-m", "visus", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise PeerLost(
                f"process {rank} (pid {failure.pid}) was killed by signal {-failure.exitcode}, so the others ended as well; "
                "go on from the last checkpoint with --resume and the run's folder"
            ) from None
        return int(failure.exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
