"""Several processes that train one model together: joined, and what they say to each other.

With one process everything here is there as well, and does nothing. `torchrun`, or visus itself, starts the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from visus.endings import Endings, Peer
from visus.errors import DataError
from visus.signals import StopSignal

_LONGEST_WAIT = timedelta(days=7)
"""One may decode or evaluate for hours while the others wait; those that end are noticed at once."""
_LOOK_SECONDS = 1.0
_BUCKET_BYTES = 64 * 2**20
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Processes:
    """Which of the processes this one is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of this machine."""
    local_size: int = 1
    patient: Any = None
    """The group for words among them, of which one may take its time while the others wait; `None` where there is one process."""

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
        dist.broadcast_object_list(box, src=0, group=self.patient)
        return box[0]  # type: ignore[return-value]

    def from_each(self, value: _Value) -> list[_Value]:
        """The `value` of every process, in order, in all."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.patient)
        return values

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        self.add_up(tensors)
        for tensor in tensors:
            tensor /= self.size


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that this one was started with; alone where nobody started others.

    What one of them ends of ends all, with the same code, and is said once. `PeerLost` where one was killed.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1
    if size == 1:
        yield ALONE
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    with _ending_with_the_launcher():
        yield from _joined(size, local_rank)


def _joined(size: int, local_rank: int) -> Iterator[Processes]:
    store = _join()
    endings = Endings(store, dist.get_rank(), size)
    try:
        with _printing_to_stderr():
            patient = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        processes = Processes(endings.rank, size, local_rank, local_size, patient)
        own = Peer(endings.rank, socket.gethostname(), os.getpid())
        endings = replace(endings, peers=processes.from_each(own))
        yield processes
    except BaseException as error:
        # It is ending already, with a code of its own: whoever started all of them need not hurry it.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        lost = endings.of_another() if _is_lost_connection(error) else None
        endings.tell(lost or error)
        if lost:
            raise lost from error
        raise
    dist.destroy_process_group()


@contextmanager
def _ending_with_the_launcher() -> Iterator[None]:
    """Meanwhile, where torchrun started this process and is gone, it is ended as by SIGTERM: nobody else would end it."""
    launcher, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if os.getppid() != launcher:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _is_lost_connection(error: BaseException) -> bool:
    """torch has no class of its own for a closed connection: gloo raises RuntimeError, NCCL and the store kinds of DistError."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(name in str(error).lower() for name in ("gloo", "nccl"))
    )


def _join() -> PrefixStore:
    """The store at which the processes have met."""
    store, rank, size = next(rendezvous("env://"))
    # Where torchrun starts processes again it keeps its store, and in it the addresses of those that are no more.
    own = PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _printing_to_stderr():
        dist.init_process_group(backend, store=own, rank=rank, world_size=size)
    return own


@contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Gloo, in torch 2.10, writes to the standard output, which `--json` promises to one document."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


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
    begun = [path.parent for path in stored if _launch_of(path) == own]
    return str(begun[-1]) if begun else None


def _launch_of(environment: Path) -> str | None:
    """Who began the run that this file describes; nobody that matters where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        launch = json.loads(environment.read_text(encoding="utf-8")).get("launch")
        return None if launch is None else str(launch)
    return None


def refuse_other_data(processes: Processes, source: str, known: object) -> None:
    """`DataError` where what each of the processes has `known` of the images of `source` is not the same."""
    found = processes.from_each(known)
    if differing := [str(rank) for rank, each in enumerate(found) if each != found[0]]:
        raise DataError(
            f"{source}: expected the same images in every process, found others in process {', '.join(differing)} than in "
            "process 0; copy the data again"
        )


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
