"""Several processes that train one model together: joined, and what they say to each other.

With one process everything here is there as well, and does nothing. `torchrun`, or visus itself, starts the others.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from visus.errors import PeerLost
from visus.signals import StopSignal

_PATIENCE_SECONDS = 2.0
_BUCKET_BYTES = 64 * 2**20
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Peer:
    """One of the processes."""

    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.rank} (pid {self.pid} on {self.host})"


@dataclass(frozen=True)
class Processes:
    """Which of the processes this one is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of this machine."""
    local_size: int = 1
    peers: tuple[Peer, ...] = ()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in buckets; every process must give tensors of the same shapes."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([each.reshape(-1) for each in bucket])
            dist.all_reduce(flat)
            totals = torch.split(flat, [each.numel() for each in bucket])
            for tensor, total in zip(bucket, totals, strict=True):
                tensor.copy_(total.view(tensor.shape))

    def from_first(self, value: _Value) -> _Value:
        """The first process's `value`, in all."""
        if self.size == 1:
            return value
        box = [value if self.first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def from_each(self, value: _Value) -> list[_Value]:
        """The `value` of every process, in order, in all."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that this one was started with; alone where nobody started others.

    `PeerLost` in place of what torch raises when a process does not answer any more.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1
    if size == 1:
        yield ALONE
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    _join()
    peers: tuple[Peer, ...] = ()
    try:
        rank = dist.get_rank()
        peers = tuple(Processes(rank, size).from_each(Peer(rank, socket.gethostname(), os.getpid())))
        yield Processes(rank, size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), peers)
    # torch has no class of its own for a closed connection: gloo raises RuntimeError, the store DistNetworkError.
    except RuntimeError as error:
        if not any(name in f"{type(error)} {error}".lower() for name in ("gloo", "nccl", "dist")):
            raise
        raise PeerLost(_sentence(_dead(peers), size)) from error
    dist.destroy_process_group()


def _join() -> None:
    store, rank, size = next(rendezvous("env://"))
    # Where torchrun starts processes again it keeps its store, and in it the addresses of those that are no more.
    own = PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=size)


def launch_id() -> str | None:
    """What tells the processes that one `torchrun` started, and started again, from those of others; `None` where none did."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name is None else f"{name} {socket.gethostname()} {os.getppid()}"


def find_begun(out: str, processes: Processes) -> str | None:
    """The newest run in `out` that these processes began before torchrun started them again."""
    if not processes.first or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    own = launch_id()
    stored = sorted(Path(out).glob("*/environment.json"), key=lambda path: path.stat().st_mtime)
    begun = [
        path.parent for path in stored if json.loads(path.read_text(encoding="utf-8")).get("launch") == own
    ]
    return str(begun[-1]) if begun else None


class AgreedStop:
    """A `StopSignal` of which all processes learn, one step after the first of them got it.

    `received` is to be asked by all of them equally often. The answer is what all had got when they last asked: nobody waits.
    """

    def __init__(self, own: StopSignal, processes: Processes) -> None:
        self._own, self._processes = own, processes
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._pending: Any = None
        self._agreed: signal.Signals | None = None

    @property
    def received(self) -> signal.Signals | None:
        """The signal that some process got."""
        if self._processes.size == 1:
            return self._own.received
        if self._pending is not None:
            self._pending.wait()
            if number := int(self._flag):
                self._agreed = signal.Signals(number)
                return self._agreed
        self._flag = torch.tensor([self._own.received or 0])
        self._pending = dist.all_reduce(self._flag, dist.ReduceOp.MAX, async_op=True)
        return None

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for the others."""
        return 130 if (self._agreed or self._own.received) == signal.SIGINT else 143


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """`tensors` in groups of one type and device, each of a bounded size."""
    waiting: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        bucket = waiting.setdefault((tensor.dtype, tensor.device), [])
        bucket.append(tensor)
        if sum(each.nbytes for each in bucket) >= _BUCKET_BYTES:
            yield waiting.pop((tensor.dtype, tensor.device))
    yield from waiting.values()


def _dead(peers: Sequence[Peer]) -> list[Peer]:
    """Those on this machine that do not run any more; a process closes its connections a little before it is gone."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (dead := _gone(peers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return dead


def _gone(peers: Sequence[Peer]) -> list[Peer]:
    return [each for each in peers if each.host == socket.gethostname() and not _runs(each.pid)]


def _runs(pid: int) -> bool:
    """Whether the process is there, and not just waiting for its parent to take note of its end."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return state.rpartition(")")[2].split()[0] not in "ZX"


def _sentence(dead: Sequence[Peer], size: int) -> str:
    who = " and ".join(map(str, dead)) or "a process on another machine"
    return (
        f"{who}, of {size}, ended before its time, so the others end as well; "
        "go on from the last checkpoint with --resume and the run's folder"
    )
