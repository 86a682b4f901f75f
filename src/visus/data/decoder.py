"""A child process that decodes for one thread at a time, and the one that takes its place where it dies of a file, or hangs.

It gets a few files at a time, since to wait for each other over every one takes both as long again as much of the work. When it
dies over them another one gets them one by one, so that the one it died of is known. Children are Python processes of their own,
not multiprocessing's: those would load the caller's main module again, and torch with it. What they leave to do, the caller ends.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np

from visus.data.child import (
    FRAME,
    HEIGHT_AND_WIDTH,
    LATER,
    PIXELS,
    READY,
    REFUSED,
    SHAPE,
    SHARED,
    SIZE,
    in_memory,
)
from visus.data.decode import (
    HANDED_OVER,
    DecodeSettings,
    Pixels,
    Source,
    UndecodableError,
    end_decoding,
)
from visus.errors import PeerLost

Result = TypeVar("Result")

_MOST_SECONDS = 60.0
_GRACE_SECONDS = 10.0
_PIPE_BYTES = 2**20
"""What Linux allows everybody."""
_SHARED_BYTES = 3 * HANDED_OVER
"""Whatever is not shrunk yet finds room in it; what nobody writes to is not taken from the machine."""
_MOST_AT_ONCE = 8
"""Files that a child gets, at most: more gain little."""
_LOST = (OSError, EOFError, ValueError, OverflowError, MemoryError)
"""What an exchange ends with where the child is no more, has lost its way, or answers with more than there is room for."""
_CHILD = ["-m", "visus.data.child"]
_ENVIRONMENT = {
    # Threads of numpy's linear algebra would only cost memory.
    "OPENBLAS_NUM_THREADS": "1",
    # Linux would take the memory of each image back, and clear it for the next: 0.1 ms.
    "MALLOC_MMAP_THRESHOLD_": str(2**23),
    "MALLOC_TRIM_THRESHOLD_": str(2**23),
}


class Decoder:
    """A child process that decodes; another one takes its place when it dies. Used by one thread at a time.

    A file of which two children die, or over which two take longer than `seconds`, is refused like any that is damaged.
    """

    def __init__(self, settings: DecodeSettings, *, seconds: float = _MOST_SECONDS) -> None:
        self.settings = settings
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._shared: mmap.mmap | None = None
        self._usual_bytes = 0.0
        self._closed = False

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(self, source: Source) -> Pixels:
        """As `decode_image`."""
        return self._end_decoding(self._ask(b"d", source))

    def decode_all(self, sources: Sequence[Source]) -> list[Pixels | UndecodableError]:
        """As `decode` for each, or why it cannot be; asked for together."""
        answers: list[Any] = [None] * len(sources)
        if len(sources) > 1:
            try:
                answers = self._exchange(self._running(), b"d", sources)
            except (*_LOST, UndecodableError) as error:
                self._end(error)
        # What is in shared memory first, where the next answer will lie.
        results = [
            tried(self._end_decoding, answer) if isinstance(answer, np.ndarray) else answer
            for answer in answers
        ]
        return [
            tried(self.decode, source) if result is None else result
            for source, result in zip(sources, results, strict=True)
        ]

    @property
    def at_once(self) -> int | None:
        """How many files may be asked for together; `None` where nothing is known of their size, or nothing is shared."""
        if self._usual_bytes and (memory := self._shared):
            return min(_MOST_AT_ONCE, max(1, int(len(memory) / self._usual_bytes)))
        return None

    def _note_size(self, count: int) -> None:
        """A file, or its pixels, takes `count` bytes; one that is larger than others is forgotten in time."""
        self._usual_bytes = max(count, 0.9 * self._usual_bytes)

    def size(self, source: Source) -> tuple[int, int]:
        """As `read_size`."""
        height, width = self._ask(b"s", source)
        return int(height), int(width)

    def close(self) -> None:
        """End the child, whatever it is doing; what is asked for afterwards is refused."""
        self._closed = True
        self._end()

    def _end_decoding(self, pixels: Pixels) -> Pixels:
        return end_decoding(pixels, self.settings.resize)

    def _ask(self, what: bytes, source: Source) -> Any:
        for lost in (False, True):
            process = self._running()
            try:
                answer = self._exchange(process, what, [source])[0]
            except _LOST as error:
                reason = self._end(error)
                # A child may have been killed for want of memory, or stopped with the whole machine: the file gets a second one.
                if lost:
                    raise reason from None
                continue
            if isinstance(answer, UndecodableError):
                raise answer
            return answer
        raise AssertionError

    def _exchange(
        self, process: subprocess.Popen[bytes], what: bytes, sources: Sequence[Source]
    ) -> list[Any]:
        """One request and its answers, `None` for what is to be asked for by itself; one of `_LOST` where there are none."""
        assert process.stdin
        assert process.stdout
        process.stdin.write(FRAME.pack(what, len(sources)))
        for source in sources:
            kind, content = (b"b", source) if isinstance(source, bytes) else (b"f", os.fsencode(source))
            if isinstance(source, bytes):
                self._note_size(len(source))
            process.stdin.write(FRAME.pack(kind, len(content)))
            process.stdin.write(content)
        process.stdin.flush()
        # The child keeps the time itself, unless somebody has stopped it, or the system does not let it go on.
        _wait_for(process.stdout, self._seconds + _GRACE_SECONDS)
        return [self._read_answer(cast("BufferedReader", process.stdout)) for _ in sources]

    def _read_answer(self, answers: BufferedReader) -> Any:
        kind, length = FRAME.unpack(_exactly(answers, FRAME.size))
        if kind in (PIXELS, SHARED):
            return self._read_pixels(answers, shared=kind == SHARED)
        if length > 2**16:
            raise ValueError
        content = _exactly(answers, length)
        if kind == SIZE:
            return HEIGHT_AND_WIDTH.unpack(content)
        if kind == LATER:
            return None
        return UndecodableError(content.decode("utf-8", "replace"), lasting=kind == REFUSED)

    def _read_pixels(self, answers: BufferedReader, shared: bool) -> Pixels:
        """Where they are `shared` they are the child's to write over when it is asked again."""
        first, *shape = SHAPE.unpack(_exactly(answers, SHAPE.size))
        if shape[2] != self.settings.channels or shape[0] * shape[1] > self.settings.max_pixels:
            raise ValueError
        self._note_size(math.prod(shape))
        # Another thread may close this meanwhile.
        if shared and (memory := self._shared):
            return in_memory(memory, first, shape)
        image = np.empty(shape, dtype=np.uint8)
        # The buffered reader goes on until the array is full or the child is gone.
        if answers.readinto(image.reshape(-1).data) != image.nbytes:
            raise EOFError
        return image

    def _running(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise UndecodableError("decoding was stopped", lasting=False)
        if self._process is None:
            arguments = [json.dumps(asdict(self.settings)), str(self._seconds)]
            with _shared_memory() as (self._shared, file):
                self._process = _start(arguments, file)
        return self._process

    def _end(self, error: Exception | None = None) -> UndecodableError:
        """What the child ended of, as a reason for leaving its file out; it is ended if it lives, at once after some errors."""
        process, self._process, self._shared = self._process, None, None
        if process is None:
            return UndecodableError("decoding was stopped", lasting=False)
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(subprocess.TimeoutExpired):
            # One that died has closed its end just now.
            lost = isinstance(error, ValueError | TimeoutError | MemoryError)
            process.wait(0.0 if self._closed or lost else 10.0)
        code = process.poll()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()
        if isinstance(error, TimeoutError):
            return UndecodableError(f"decoding takes longer than {self._seconds:g} s")
        if isinstance(error, MemoryError):
            return UndecodableError("no memory is left for it", lasting=False)
        return _obituary(None if isinstance(error, ValueError) else code, self._seconds)


def tried(work: Callable[..., Result], *given: Any) -> Result | UndecodableError:
    """What `work` gives, or the reason why it gives nothing."""
    try:
        return work(*given)
    except UndecodableError as error:
        return error


@contextlib.contextmanager
def _shared_memory() -> Iterator[tuple[mmap.mmap | None, int | None]]:
    """Memory for a child's pixels, and the file descriptor by which it gets it; none where the system has no such thing."""
    with contextlib.ExitStack() as stack:
        memory = number = None
        with contextlib.suppress(AttributeError, OSError):
            file = stack.enter_context(os.fdopen(os.memfd_create("visus"), "r+b"))
            file.truncate(_SHARED_BYTES)
            memory, number = mmap.mmap(file.fileno(), _SHARED_BYTES), file.fileno()
        yield memory, number


def _start(arguments: list[str], shared: int | None) -> subprocess.Popen[bytes]:
    """A child that is ready to decode, into the file `shared` if there is one; `PeerLost` where none can be had."""
    # It finds what this process finds.
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", *_CHILD, *arguments, *([] if shared is None else [str(shared)])],
            pass_fds=() if shared is None else (shared,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # An interrupt from the terminal is for the run to answer, not for its children.
            start_new_session=True,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths},
        )
    except OSError as error:
        raise PeerLost(f"expected a child process that decodes, found none: {error.strerror}") from None
    assert process.stdin
    assert process.stdout
    if process.stdout.read(1) != READY:
        process.stdin.close()
        process.stdout.close()
        raise PeerLost(f"expected a child process that decodes, found that it ends with {process.wait()}")
    _widen(process.stdout)
    return process


def _widen(pipe: IO[bytes]) -> None:
    """Let a whole small image wait in `pipe`, where the system has such a thing: both sides then wait for each other less often."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _wait_for(pipe: IO[bytes], seconds: float) -> None:
    """`TimeoutError` where nothing comes out of `pipe` for so long. Windows cannot tell."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        if not poll.poll(1000 * seconds):
            raise TimeoutError


def _exactly(stream: BufferedReader, length: int) -> bytes:
    content = stream.read(length)
    if len(content) != length:
        raise EOFError
    return content


def _obituary(code: int | None, seconds: float) -> UndecodableError:
    """What a child ended of that has this exit code, or none yet."""
    if code is None:
        return UndecodableError("the decoder answers with what is no image")
    if hasattr(signal, "SIGALRM") and code == -signal.SIGALRM:
        return UndecodableError(f"decoding takes longer than {seconds:g} s")
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        # So the system ends whoever takes too much memory; there may be more of it the next time.
        return UndecodableError(f"the decoder dies of it ({name})", lasting=name != "SIGKILL")
    return UndecodableError(f"the decoder dies of it (exit code {code})")
