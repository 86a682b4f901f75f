"""How several processes end: what one of them ends of is known to all, said by one of them, and ends all with its code.

Before it ends of an error, a process leaves a note in the store at which all have met; the others notice that its connections are
closed, and look for the note. One that was killed has left none.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visus.errors import EndedElsewhere, Interrupted, PeerLost, VisusError

_PATIENCE_SECONDS = 2.0
_FAREWELL_SECONDS = 10.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Peer:
    """One of the processes."""

    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.rank} (pid {self.pid} on {self.host})"

    @property
    def gone(self) -> bool:
        """Whether it ran on this machine, and does not any more."""
        return self.host == socket.gethostname() and not _runs(self.pid)


@dataclass(frozen=True)
class LastWords:
    """What one process ended of."""

    rank: int
    kind: str
    message: str
    exit_code: int | None

    @classmethod
    def of(cls, rank: int, error: BaseException) -> LastWords:
        """Those of the process `rank`, which ends of `error`."""
        if isinstance(error, KeyboardInterrupt):
            return cls(rank, "KeyboardInterrupt", "interrupted", 130)
        code = error.exit_code if isinstance(error, VisusError) else None
        return cls(rank, type(error).__name__, str(error), code)

    def to_error(self) -> VisusError:
        """What the others end of; it has been said already."""
        if self.exit_code is not None:
            return EndedElsewhere(self.message, self.exit_code)
        error = PeerLost(f"process {self.rank} ended of {self.kind}: {self.message}")
        error.said = True
        return error


@dataclass(frozen=True)
class Endings:
    """What the process `rank` of `size` knows of the ends of the others, and tells of its own."""

    store: Any
    """A store of torch.distributed."""
    rank: int
    size: int
    peers: Sequence[Peer] = ()

    def tell(self, error: BaseException) -> None:
        """Before this process ends of `error`: leave a note, and let the first one speak where it ends of the same.

        Whether it was said is noted at the error, as `said`.
        """
        own = LastWords.of(self.rank, error)
        try:
            self.store.set(_key(self.rank), json.dumps([own.kind, own.message, own.exit_code]))
        except RuntimeError:
            # Whoever keeps the store is gone: nothing can be told or heard any more.
            return
        if self.rank == 0 or getattr(error, "said", None) is not None:
            return
        first = _wait(lambda: self._find(0), _PATIENCE_SECONDS)
        alike = first is not None and (first.kind == own.kind == Interrupted.__name__ or first == _as(own, 0))
        error.said = alike  # type: ignore[attr-defined]
        if alike and self.peers:
            # Whatever started them ends all of them with the first that ends: that should be the one which speaks.
            _wait(lambda: self.peers[0].gone, _FAREWELL_SECONDS)

    def of_another(self) -> VisusError:
        """Why some process does not answer any more: what it says itself, or that it is gone."""
        found: Any = _wait(lambda: self._notes() or self._gone(), _PATIENCE_SECONDS)
        if notes := self._notes():
            return min(notes, key=lambda note: note.kind == PeerLost.__name__).to_error()
        error = PeerLost(_sentence(found or [], self.size))
        here = [peer.rank for peer in self.peers if peer.host == socket.gethostname() and not peer.gone]
        error.said = bool(here) and min(here) != self.rank
        return error

    def _notes(self) -> list[LastWords]:
        found = (self._find(rank) for rank in range(self.size) if rank != self.rank)
        return [note for note in found if note]

    def _find(self, rank: int) -> LastWords | None:
        with contextlib.suppress(RuntimeError):
            if self.store.check([_key(rank)]):
                return LastWords(rank, *json.loads(self.store.get(_key(rank))))
        return None

    def _gone(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.gone]


def _as(words: LastWords, rank: int) -> LastWords:
    return LastWords(rank, words.kind, words.message, words.exit_code)


def _key(rank: int) -> str:
    return f"ended {rank}"


def _wait(ask: Callable[[], Any], seconds: float) -> Any:
    """What `ask` answers, once that is anything, or at the end of so many seconds."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return answer


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


def _sentence(gone: Sequence[Peer], size: int) -> str:
    who = " and ".join(map(str, gone)) or "a process on another machine"
    return (
        f"{who}, of {size}, ended before its time, so the others end as well; "
        "go on from the last checkpoint with --resume and the run's folder"
    )
