"""What a child process that decodes does, and the words by which it is asked and answers.

Requests and answers are frames on its standard input and output: a letter, a length, and that many bytes. Where the system has
memory that is no file's, pixels lie there for both, and the answer says where and of what shape they are. Nothing here loads torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import numpy as np

from visus.data.decode import Pixels, Source, UndecodableError, read_image, read_size

FRAME = struct.Struct("<cQ")
"""A request: what is asked for, and of how many sources; one of these, or an answer: its kind and its length."""
SHAPE = struct.Struct("<4Q")
"""The first byte in shared memory, height, width and channels."""
HEIGHT_AND_WIDTH = struct.Struct("<2Q")
READY, PIXELS, SHARED, LATER, SIZE, REFUSED, UNREADABLE = b"r", b"p", b"m", b"l", b"s", b"e", b"u"


def in_memory(shared: mmap.mmap, first: int, shape: Sequence[int]) -> Pixels:
    """The pixels of `shape` from byte `first` on."""
    return np.frombuffer(shared, dtype=np.uint8, count=math.prod(shape), offset=first).reshape(shape)


def main() -> None:
    """What a child does: answer requests until there are no more."""
    settings, seconds = json.loads(sys.argv[1]), float(sys.argv[2])
    shared = None
    if len(sys.argv) > 3:
        shared = mmap.mmap(int(sys.argv[3]), 0)
        os.close(int(sys.argv[3]))
    requests = cast("BufferedReader", sys.stdin.buffer)
    with os.fdopen(os.dup(1), "wb") as answers, Path(os.devnull).open("wb") as nowhere:
        # Decoders written in C print what they think of a file.
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        answers.write(READY)
        answers.flush()
        while header := requests.read(FRAME.size):
            what, count = FRAME.unpack(header)
            # All of them first: whoever asks does not listen yet.
            sources = [_read_source(requests) for _ in range(count)]
            _set_alarm(seconds)
            pieces = list(_answers(what, sources, settings, shared))
            _set_alarm(0)
            for piece in pieces:
                answers.write(piece)
            answers.flush()


def _read_source(requests: BufferedReader) -> Source:
    kind, length = FRAME.unpack(requests.read(FRAME.size))
    content = requests.read(length)
    return content if kind == b"b" else os.fsdecode(content)


def _answers(
    what: bytes, sources: list[Source], settings: dict[str, Any], shared: mmap.mmap | None
) -> Iterator[bytes | memoryview]:
    """What is said of each source, in pieces. Pixels lie one after the other in `shared`; those that find no room there are for
    another time, unless they are alone.
    """
    taken = 0
    for source in sources:
        found = _find(what, source, settings)
        if isinstance(found, bytes):
            yield found
        elif shared and taken + found.nbytes <= len(shared):
            in_memory(shared, taken, found.shape)[:] = found
            yield FRAME.pack(SHARED, 0) + SHAPE.pack(taken, *found.shape)
            taken += found.nbytes
        elif len(sources) > 1:
            yield FRAME.pack(LATER, 0)
        else:
            yield FRAME.pack(PIXELS, found.nbytes) + SHAPE.pack(0, *found.shape)
            yield found.reshape(-1).data


def _set_alarm(seconds: float) -> None:
    """End this process in `seconds`, even in the midst of foreign code; 0 calls it off. Windows has no such thing."""
    if hasattr(signal, "setitimer"):
        # What the parent ignores is ignored here, too.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _find(what: bytes, source: Source, settings: dict[str, Any]) -> bytes | Pixels:
    """The pixels of `source`, or an answer without any."""
    try:
        if what == b"s":
            size = HEIGHT_AND_WIDTH.pack(*read_size(source))
            return FRAME.pack(SIZE, len(size)) + size
        return read_image(source, **settings)
    except UndecodableError as error:
        reason = str(error).encode("utf-8", "replace")[:1000]
        return FRAME.pack(REFUSED if error.lasting else UNREADABLE, len(reason)) + reason


if __name__ == "__main__":
    # A parent that has gone takes no answer, and wants none.
    with contextlib.suppress(BrokenPipeError):
        main()
