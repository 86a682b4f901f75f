"""The errors a user may meet: one sentence each, and the exit code that the command line turns it into.

Anything that is not a `VisusError` is a fault of ours and exits with 70.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_FEW_NAMES = 12


class VisusError(Exception):
    """One sentence for the user: what was expected, what was found and where, what to do."""

    exit_code = 70
    said: bool | None = None
    """Of several processes: whether another one says it; `None` where there are none, or all meet it alike."""


class UsageError(VisusError, ValueError):
    """A wrong flag, setting or argument."""

    exit_code = 2


class DataError(VisusError, ValueError):
    """Data that cannot be used as it is."""

    exit_code = 3


class CheckpointError(VisusError, ValueError):
    """A checkpoint or weight file that is damaged, foreign or does not fit."""

    exit_code = 3


class UnreadableError(CheckpointError):
    """A checkpoint that may well be whole, but not for this process: of a newer format, or not permitted to be read."""


class NonFiniteError(VisusError, ArithmeticError):
    """A loss that is no longer a number."""

    exit_code = 3


class PeerLost(VisusError):
    """A process of several that does not answer any more; the run can be resumed."""

    exit_code = 3


class EndedElsewhere(VisusError):
    """What another process of several ended of, and has said; with its exit code."""

    said = True

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(VisusError):
    """A run that a signal ended; it can be resumed."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a mistyped name, with the five nearest of `known`, or all where they are few."""
    known = list(known)
    if len(known) <= _FEW_NAMES:
        return UsageError(f"unknown {kind} {name!r}; expected one of {', '.join(known)}")
    by_lowercase = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(name.lower(), by_lowercase, n=5, cutoff=0.4)
    choices = [by_lowercase[each] for each in nearest] or known[:5]
    return UsageError(f"unknown {kind} {name!r}; the nearest are {', '.join(choices)}")


def first_of(names: Sequence[str], most: int = 20) -> str:
    """The first `most` of `names`, and that there are more."""
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)
