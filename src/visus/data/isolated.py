"""Decoding where it can break nothing: in child processes, which may die or hang over a file without taking the run with them.

There are as many as threads that ask: for images in any order (`Decoders`), or for all of a set in theirs (`decode_in_order`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import repeat
from typing import cast

from visus.data.ahead import in_order
from visus.data.decode import DecodeSettings, Pixels, Source, UndecodableError, decode_image
from visus.data.decoder import Decoder, tried
from visus.processors import processors

Watch = Callable[[int, Pixels], None]

_FILES_PER_PROCESS = 100
"""A further process takes 0.2 s to start, in which another one decodes some fifty photographs."""


class Decoders:
    """Child processes that decode for any number of threads, as many as ask at a time.

    They start when they are needed, and stay until this is closed, or nobody has it any more. Another process that gets it, by a
    pickle or a fork, has children of its own.
    """

    def __init__(self) -> None:
        self._begin()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Decoders], tuple[()]]:
        return Decoders, ()

    def decode_all(
        self, positions: Iterable[int], read: Callable[[int], Source], settings: DecodeSettings
    ) -> list[Pixels | UndecodableError]:
        """The pixels of `read(position)` for each, or why there are none: `read` may say so, too, and so does this once closed."""
        sources = [tried(read, position) for position in positions]
        there = [each for each in sources if not isinstance(each, UndecodableError)]
        if not there:
            return cast("list[Pixels | UndecodableError]", sources)
        try:
            with self._lent_decoder(settings) as decoder:
                decoded = iter(decoder.decode_all(there))
        except UndecodableError as error:
            decoded = repeat(error)
        return [each if isinstance(each, UndecodableError) else next(decoded) for each in sources]

    def at_once(self, settings: DecodeSettings) -> int:
        """How many files may be asked for together, for all that is known of their size."""
        known = (decoder.at_once for decoder in self._all if decoder.settings == settings)
        return min(filter(None, known), default=1)

    def close(self) -> None:
        """End the children, whatever they are doing."""
        if self._owner != os.getpid():
            return
        self._closed = True
        idle = False
        while not idle:
            _close_all(self._all, self._owner)
            # Another round for a child that was just starting.
            with self._changed:
                idle = self._changed.wait_for(lambda: not self._lent, timeout=0.1)
        _close_all(self._all, self._owner)

    def _begin(self) -> None:
        self._owner, self._changed, self._closed, self._lent = os.getpid(), threading.Condition(), False, 0
        self._all: list[Decoder] = []
        self._idle: dict[DecodeSettings, list[Decoder]] = {}
        weakref.finalize(self, _close_all, self._all, self._owner)

    @contextlib.contextmanager
    def _lent_decoder(self, settings: DecodeSettings) -> Iterator[Decoder]:
        decoder = self._lend(settings)
        try:
            yield decoder
        finally:
            with self._changed:
                self._idle.setdefault(settings, []).append(decoder)
                self._lent -= 1
                self._changed.notify_all()

    def _lend(self, settings: DecodeSettings) -> Decoder:
        if self._owner != os.getpid():
            self._begin()
        with self._changed:
            if self._closed:
                raise UndecodableError("decoding was stopped", lasting=False)
            self._lent += 1
            if idle := self._idle.get(settings):
                return idle.pop()
            self._all.append(Decoder(settings))
            return self._all[-1]


def _close_all(decoders: list[Decoder], owner: int) -> None:
    """Children are their parent's to end, not those of a process that it forked."""
    if owner == os.getpid():
        for decoder in decoders:
            decoder.close()


def decode_in_order(
    count: int,
    read: Callable[[int], Source],
    settings: DecodeSettings,
    processes: int | None = None,
    watch: Watch | None = None,
) -> Generator[Pixels | UndecodableError, None, None]:
    """The pixels of `read(0)` to `read(count - 1)`, or why there are none; decoded by as many `processes` as pay, if not given.

    With 0 processes they are decoded in this one. `read` is called in threads, and may raise `UndecodableError`; so is `watch`,
    with each position and its pixels, in any order. A few images are held at a time, however many there are.
    """
    wanted = processors() if processes is None else processes
    threads = min(wanted, 1 + count // _FILES_PER_PROCESS)
    with Decoders() as decoders:

        def attempt(positions: range) -> list[Pixels | UndecodableError]:
            if threads:
                results = decoders.decode_all(positions, read, settings)
            else:
                results = [tried(decode_here, position, read, settings) for position in positions]
            for position, result in zip(positions, results, strict=True):
                if watch and not isinstance(result, UndecodableError):
                    watch(position, result)
            return results

        with closing(
            in_order(attempt, _together(count, decoders, settings), threads, 2 * threads + 2)
        ) as results:
            for some in results:
                yield from some


def _together(count: int, decoders: Decoders, settings: DecodeSettings) -> Iterator[range]:
    """The positions from 0 to `count`, in order, as many together as a child may get by then."""
    begin = 0
    while begin < count:
        yield range(begin, min(count, begin := begin + decoders.at_once(settings)))


def decode_here(position: int, read: Callable[[int], Source], settings: DecodeSettings) -> Pixels:
    """The pixels of `read(position)`, decoded in this process."""
    return decode_image(read(position), **vars(settings))
