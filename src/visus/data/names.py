"""Many names in little memory: one buffer of bytes and where each name ends in it, no Python object for each.

A million paths of 40 letters take 44 MB; as a list of strings they take 97. Nothing here loads torch.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from visus.ops.rng import hash64

Index = npt.NDArray[np.int64]

_AT_ONCE = 10_000
_BYTES_AT_ONCE = 2**20
_CODE = ("utf-8", "surrogateescape")
"""Names of files need not be text; they come out as they went in."""


class Names(Sequence[str]):
    """A sequence of strings that does not change. Parts of it share its buffer; another process gets a copy.

    Equal to any sequence of the same strings.
    """

    __slots__ = ("_buffer", "_ends", "_order")

    def __init__(self, buffer: bytes, ends: Index, order: Index | None = None) -> None:
        self._buffer = buffer
        self._ends = _narrowed(ends, len(buffer))
        """Of each name in the buffer, with a 0 before the first."""
        self._order = None if order is None else _narrowed(order, len(ends))
        """Which names these are, where it is not all."""

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._order is None else len(self._order)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Names: ...
    def __getitem__(self, place: int | slice) -> str | Names:
        if isinstance(place, slice):
            return self.subset(np.arange(len(self))[place])
        number = range(len(self))[place]
        number = number if self._order is None else int(self._order[number])
        return self._buffer[self._ends[number] : self._ends[number + 1]].decode(*_CODE)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            numbers = np.arange(len(self))[some] if self._order is None else self._order[some]
            begins, ends = self._ends[numbers].tolist(), self._ends[numbers + 1].tolist()
            for begin, end in zip(begins, ends, strict=True):
                yield self._buffer[begin:end].decode(*_CODE)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        if isinstance(other, Names) and self._order is None and other._order is None:
            return self._buffer == other._buffer and np.array_equal(self._ends, other._ends)
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names of {len(self)}: {', '.join(self[:3])}{', ...' * (len(self) > 3)}"

    def __reduce__(self) -> tuple[type[Names], tuple[bytes, Index, Index | None]]:
        return Names, (self._buffer, self._ends, self._order)

    @property
    def nbytes(self) -> int:
        """The memory that this takes, what it shares with others included."""
        order = 0 if self._order is None else self._order.nbytes
        return len(self._buffer) + self._ends.nbytes + order

    def subset(self, places: Index) -> Names:
        """Those at `places`, in that order."""
        return Names(self._buffer, self._ends, places if self._order is None else self._order[places])

    def shares(self, other: Names) -> bool:
        """Whether both are parts of one sequence."""
        return self._buffer is other._buffer and self._ends is other._ends

    def gather(self, parts: Sequence[Names]) -> Names:
        """The names of all `parts`, which share the buffer of this."""
        whole = np.arange(len(self._ends) - 1)
        orders = [whole if part._order is None else part._order for part in parts]
        return Names(self._buffer, self._ends, np.concatenate(orders))


def _narrowed(numbers: Index, most: int) -> Index:
    """`numbers` of at most `most`, of 32 bits each where these are enough."""
    return numbers.astype(np.uint32, copy=False) if most < 2**32 else numbers


def collect_names(names: Iterable[str]) -> Names:
    """`names` as `Names`; they are taken some at a time."""
    if isinstance(names, Names):
        return names
    builder = NamesBuilder()
    builder.add(names)
    return builder.finish()


class NamesBuilder:
    """Takes names some at a time."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._lengths: list[npt.NDArray[np.int32]] = []
        self._waiting: list[str] = []

    def add(self, names: Iterable[str]) -> None:
        """The next names; they are taken some at a time."""
        iterator = iter(names)
        while some := list(itertools.islice(iterator, _AT_ONCE)):
            self._waiting += some
            if len(self._waiting) >= _AT_ONCE:
                self._pack()

    def finish(self) -> Names:
        """All that were added, in order; it begins anew."""
        self._pack()
        lengths = np.concatenate([np.zeros(1, np.int32), *self._lengths])
        # That of `BytesIO` is not copied.
        buffer = self._buffer.getvalue()
        self._buffer, self._lengths = io.BytesIO(), []
        return Names(buffer, np.cumsum(lengths, dtype=np.int64))

    def _pack(self) -> None:
        """All at once: by names it takes five times as long, so those with the separator in them are left to the rare case."""
        encoded = "\0".join(self._waiting).encode(*_CODE)
        ends = np.flatnonzero(np.frombuffer(encoded, dtype=np.uint8) == 0)
        if len(ends) + 1 == len(self._waiting):
            self._lengths.append(np.diff(ends, prepend=-1, append=len(encoded)).astype(np.int32) - 1)
            self._buffer.write(encoded.replace(b"\0", b""))
        else:
            pieces = [name.encode(*_CODE) for name in self._waiting]
            self._lengths.append(np.fromiter(map(len, pieces), dtype=np.int32, count=len(pieces)))
            self._buffer.write(b"".join(pieces))
        self._waiting.clear()


def separated(names: Iterable[str]) -> Iterator[bytes]:
    """Their bytes, with a zero byte after each but the last, in pieces; `read_names` reads them."""
    iterator, before = iter(names), ""
    while some := list(itertools.islice(iterator, _AT_ONCE)):
        yield (before + "\0".join(some)).encode(*_CODE)
        before = "\0"


def read_names(joined: bytes | bytearray | memoryview) -> Names:
    """What `separated` gave, as a whole; none where there are no bytes at all."""
    if not joined:
        return collect_names([])
    buffer, ends = io.BytesIO(), [np.zeros(1, dtype=np.int64)]
    for first in range(0, len(joined), _BYTES_AT_ONCE):
        some = bytes(joined[first : first + _BYTES_AT_ONCE])
        zeros = np.flatnonzero(np.frombuffer(some, dtype=np.uint8) == 0)
        ends.append(buffer.tell() + zeros - np.arange(len(zeros)))
        buffer.write(some.replace(b"\0", b""))
    return Names(buffer.getvalue(), np.concatenate([*ends, [buffer.tell()]]))


def join_names(parts: Sequence[Sequence[str]]) -> Names:
    """The names of all `parts`; where these are parts of one sequence of names they go on sharing its buffer."""
    first = parts[0]
    if isinstance(first, Names) and all(isinstance(each, Names) and each.shares(first) for each in parts):
        return first.gather([each for each in parts if isinstance(each, Names)])
    builder = NamesBuilder()
    for part in parts:
        builder.add(part)
    return builder.finish()


def take(names: Sequence[str], places: Index) -> Sequence[str]:
    """Those of `names` at `places`, in that order."""
    return names.subset(places) if isinstance(names, Names) else [names[place] for place in places]


def find_names(known: Sequence[str], names: Sequence[str]) -> Index:
    """Where each of `names` is among those `known`, else -1; by 64 bits of SHA-256: a table of strings takes more memory."""
    if not len(known):
        return np.full(len(names), -1)
    theirs, ours = hash64(0, "names", known), hash64(0, "names", names)
    order = np.argsort(theirs, kind="stable")
    found = order[np.searchsorted(theirs, ours, sorter=order).clip(max=len(theirs) - 1)]
    return np.where(theirs[found] == ours, found, -1)
