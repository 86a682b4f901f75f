"""Decoding where it can break nothing: in child processes, which may die or hang over a file without taking the run with them.

Each child gets a few files at a time, since to wait for each other over every one takes both as long again as much of the work.
When it dies over them another one gets them one by one, so that the one it died of is known. Requests and answers are frames on
its standard input and output: a letter, a length, and that many bytes. The children are Python processes of their own, not
multiprocessing's: those would load the caller's main module again, and torch with it. They load Pillow and numpy only; what they
leave to do, the caller ends. Where the system has memory that is no file's, pixels lie there for both, and the answer says where
and of what shape they are.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from io import BufferedReader
from itertools import repeat
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np

from visus.data.ahead import in_order
from visus.data.decode import (
    HANDED_OVER,
    Pixels,
    UndecodableError,
    decode_image,
    end_decoding,
    read_image,
    read_size,
)
from visus.errors import PeerLost
from visus.processors import processors

Source = str | bytes
"""A file's path, or all its bytes."""

Watch = Callable[[int, Pixels], None]
Result = TypeVar("Result")

_FILES_PER_PROCESS = 100
"""A further process takes 0.2 s to start, in which another one decodes some fifty photographs."""
_MOST_SECONDS = 60.0
_GRACE_SECONDS = 10.0
_PIPE_BYTES = 2**20
"""What Linux allows everybody."""
_SHARED_BYTES = 3 * HANDED_OVER
"""Whatever is not shrunk yet finds room in it; what nobody writes to is not taken from the machine."""
MOST_AT_ONCE = 8
"""Files that a child gets, at most: more gain little."""
_FRAME = struct.Struct("<cQ")
"""A request: what is asked for, and of how many sources; one of these, or an answer: its kind and its length."""
_SHAPE = struct.Struct("<4Q")
"""The first byte in shared memory, height, width and channels."""
_READY, _PIXELS, _SHARED, _LATER, _SIZE, _REFUSED, _UNREADABLE = b"r", b"p", b"m", b"l", b"s", b"e", b"u"
_LOST = (OSError, EOFError, ValueError, OverflowError, MemoryError)
"""What an exchange ends with where the child is no more, has lost its way, or answers with more than there is room for."""
_CHILD = ["-m", "visus.data.isolated"]
_ENVIRONMENT = {
    # Threads of numpy's linear algebra would only cost memory.
    "OPENBLAS_NUM_THREADS": "1",
    # Linux would take the memory of each image back, and clear it for the next: 0.1 ms.
    "MALLOC_MMAP_THRESHOLD_": str(2**23),
    "MALLOC_TRIM_THRESHOLD_": str(2**23),
}


@dataclass(frozen=True)
class DecodeSettings:
    """What `decode_image` is told; the same for all files of a set."""

    channels: int = 3
    resize: int | None = None
    interpolation: str = "bilinear"
    max_pixels: int = 100_000_000


class Decoder:
    """A child process that decodes; another one takes its place when it dies. Used by one thread at a time.

    A file of which two children die, or over which two take longer than `seconds`, is refused like any that is damaged.
    """

    def __init__(self, settings: DecodeSettings, *, seconds: float = _MOST_SECONDS) -> None:
        self._settings = settings
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
            _tried(self._end_decoding, answer) if isinstance(answer, np.ndarray) else answer
            for answer in answers
        ]
        return [
            _tried(self.decode, source) if result is None else result
            for source, result in zip(sources, results, strict=True)
        ]

    @property
    def at_once(self) -> int:
        """How many files may be asked for together, for all that is known of their size."""
        if self._usual_bytes and (memory := self._shared):
            return min(MOST_AT_ONCE, max(1, int(len(memory) / self._usual_bytes)))
        return 1

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
        return end_decoding(pixels, self._settings.resize)

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
        process.stdin.write(_FRAME.pack(what, len(sources)))
        for source in sources:
            kind, content = (b"b", source) if isinstance(source, bytes) else (b"f", os.fsencode(source))
            if isinstance(source, bytes):
                self._note_size(len(source))
            process.stdin.write(_FRAME.pack(kind, len(content)))
            process.stdin.write(content)
        process.stdin.flush()
        # The child keeps the time itself, unless somebody has stopped it, or the system does not let it go on.
        _wait_for(process.stdout, self._seconds + _GRACE_SECONDS)
        return [self._read_answer(cast("BufferedReader", process.stdout)) for _ in sources]

    def _read_answer(self, answers: BufferedReader) -> Any:
        kind, length = _FRAME.unpack(_exactly(answers, _FRAME.size))
        if kind in (_PIXELS, _SHARED):
            return self._read_pixels(answers, shared=kind == _SHARED)
        if length > 2**16:
            raise ValueError
        content = _exactly(answers, length)
        if kind == _SIZE:
            return struct.unpack("<2Q", content)
        if kind == _LATER:
            return None
        return UndecodableError(content.decode("utf-8", "replace"), lasting=kind == _REFUSED)

    def _read_pixels(self, answers: BufferedReader, shared: bool) -> Pixels:
        """Where they are `shared` they are the child's to write over when it is asked again."""
        first, *shape = _SHAPE.unpack(_exactly(answers, _SHAPE.size))
        if shape[2] != self._settings.channels or shape[0] * shape[1] > self._settings.max_pixels:
            raise ValueError
        self._note_size(math.prod(shape))
        # Another thread may close this meanwhile.
        if shared and (memory := self._shared):
            return _in_memory(memory, first, shape)
        image = np.empty(shape, dtype=np.uint8)
        # The buffered reader goes on until the array is full or the child is gone.
        if answers.readinto(image.reshape(-1).data) != image.nbytes:
            raise EOFError
        return image

    def _running(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise UndecodableError("decoding was stopped", lasting=False)
        if self._process is None:
            arguments = [json.dumps(asdict(self._settings)), str(self._seconds)]
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
        sources = [_tried(read, position) for position in positions]
        there = [each for each in sources if not isinstance(each, UndecodableError)]
        try:
            with self._lent_decoder(settings) as decoder:
                decoded = iter(decoder.decode_all(there))
        except UndecodableError as error:
            decoded = repeat(error)
        return [each if isinstance(each, UndecodableError) else next(decoded) for each in sources]

    @property
    def at_once(self) -> int:
        """How many files may be asked for together."""
        return min((decoder.at_once for decoder in self._all), default=1)

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
                results = [_tried(decode_here, position, read, settings) for position in positions]
            for position, result in zip(positions, results, strict=True):
                if watch and not isinstance(result, UndecodableError):
                    watch(position, result)
            return results

        with closing(in_order(attempt, _together(count, decoders), threads, 2 * threads + 2)) as results:
            for some in results:
                yield from some


def _together(count: int, decoders: Decoders) -> Iterator[range]:
    """The positions from 0 to `count`, in order, as many together as a child may get by then."""
    begin = 0
    while begin < count:
        yield range(begin, min(count, begin := begin + decoders.at_once))


def _tried(work: Callable[..., Result], *given: Any) -> Result | UndecodableError:
    """What `work` gives, or the reason why it gives nothing."""
    try:
        return work(*given)
    except UndecodableError as error:
        return error


def decode_here(position: int, read: Callable[[int], Source], settings: DecodeSettings) -> Pixels:
    """The pixels of `read(position)`, decoded in this process."""
    return decode_image(read(position), **vars(settings))


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


def _in_memory(shared: mmap.mmap, first: int, shape: Sequence[int]) -> Pixels:
    """The pixels of `shape` from byte `first` on."""
    return np.frombuffer(shared, dtype=np.uint8, count=math.prod(shape), offset=first).reshape(shape)


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
    if process.stdout.read(1) != _READY:
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
        answers.write(_READY)
        answers.flush()
        while header := requests.read(_FRAME.size):
            what, count = _FRAME.unpack(header)
            # All of them first: whoever asks does not listen yet.
            sources = [_read_source(requests) for _ in range(count)]
            _set_alarm(seconds)
            pieces = list(_answers(what, sources, settings, shared))
            _set_alarm(0)
            for piece in pieces:
                answers.write(piece)
            answers.flush()


def _read_source(requests: BufferedReader) -> Source:
    kind, length = _FRAME.unpack(requests.read(_FRAME.size))
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
            _in_memory(shared, taken, found.shape)[:] = found
            yield _FRAME.pack(_SHARED, 0) + _SHAPE.pack(taken, *found.shape)
            taken += found.nbytes
        elif len(sources) > 1:
            yield _FRAME.pack(_LATER, 0)
        else:
            yield _FRAME.pack(_PIXELS, found.nbytes) + _SHAPE.pack(0, *found.shape)
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
            size = struct.pack("<2Q", *read_size(source))
            return _FRAME.pack(_SIZE, len(size)) + size
        return read_image(source, **settings)
    except UndecodableError as error:
        reason = str(error).encode("utf-8", "replace")[:1000]
        return _FRAME.pack(_REFUSED if error.lasting else _UNREADABLE, len(reason)) + reason


if __name__ == "__main__":
    # A parent that has gone takes no answer, and wants none.
    with contextlib.suppress(BrokenPipeError):
        main()
