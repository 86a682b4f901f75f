"""Files by their addresses: a path, or anything that fsspec knows, such as `http://` or `memory://`."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar, cast

import fsspec

from visus.errors import DataError, UsageError, one_line
from visus.ops.rng import hash64

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_FILES = 10**6
_SIGNS_OF_CHANGE = ("mtime", "created", "ETag", "etag", "LastModified", "last_modified", "updated", "md5")
_WAITS_SECONDS = (0.5, 2.0)
"""Before a second and a third attempt: a connection that was lost is no reason to end a run."""

Found = TypeVar("Found")


def is_address(source: str) -> bool:
    """Whether `source` is written as an address, not as a path."""
    return bool(_ADDRESS.match(source))


def expand_braces(pattern: str) -> list[str]:
    """What `a-{000..009}.tar` or `{train,val}.tar` stands for, in that order; the pattern itself where it has no braces."""
    pieces = _BRACES.split(pattern)
    # Every second piece is what stood in braces.
    choices = [[each] if place % 2 == 0 else list(_choices(each)) for place, each in enumerate(pieces)]
    count = 1
    for each in choices:
        count *= len(each)
    if count > _MOST_FILES:
        raise UsageError(f"{pattern}: expected at most {_MOST_FILES:,} files, found a pattern for {count:,}")
    return ["".join(each) for each in itertools.product(*choices)]


def _choices(text: str) -> Iterator[str]:
    if not (match := _RANGE.fullmatch(text)):
        return iter(text.split(","))
    first, last = match[1], match[2]
    if int(last) - int(first) > _MOST_FILES:
        raise UsageError(f"{{{text}}}: expected at most {_MOST_FILES:,} files, found a pattern for more")
    return (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))


class Place:
    """A folder, or an address that files lie under, and how they are read.

    It may be shared by threads, sent to another process and used after a fork. `DataError` names what cannot be read.
    """

    def __init__(self, base: str) -> None:
        self.base = base if is_address(base) else os.path.realpath(base)
        self._process = -1
        self._found: tuple[Any, str] = (None, "")

    def url(self, name: str) -> str:
        """The address, or the path, of `name` here."""
        return f"{self.base.rstrip('/')}/{name}" if name else self.base

    def find(self, suffix: str, depth: int = 2) -> list[str]:
        """Names of the files here that end in `suffix`, sorted, at most `depth` levels down; hidden ones are left out."""
        files, root = self._files()
        found = self._attempt("", lambda: files.find(root, maxdepth=depth))
        names = [str(each)[len(root) :].lstrip("/") for each in found]
        return sorted(name for name in names if name.endswith(suffix) and not re.search(r"(^|/)\.", name))

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        files, _ = self._files()
        return bool(self._attempt(name, lambda: files.exists(self._path(name))))

    def stamp(self, name: str) -> tuple[int, int]:
        """The size of a file in bytes, and a number that changes with its time or whatever else is told of it; 0 for nothing."""
        files, _ = self._files()
        info: dict[str, Any] = self._attempt(name, lambda: files.info(self._path(name)))
        if info.get("size") is None:
            raise DataError(
                f"{self.url(name)}: expected to be told its size, found none; copy it to a folder"
            )
        signs = [str(info[sign]) for sign in _SIGNS_OF_CHANGE if sign in info]
        return int(info["size"]), int(hash64(0, "stamp", [" ".join(signs)])[0] >> 1) if signs else 0

    def open(self, name: str) -> IO[bytes]:
        """A file, to read in any order."""
        files, _ = self._files()
        return cast("IO[bytes]", self._attempt(name, lambda: files.open(self._path(name), "rb")))

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes of a file from `start` on, or all of it; fewer where it is shorter."""
        files, _ = self._files()
        end = None if length is None else start + length
        # Of some file systems a range of nothing is everything.
        if length == 0:
            return b""
        content = bytes(self._attempt(name, lambda: files.cat_file(self._path(name), start=start, end=end)))
        if length is not None and len(content) > length:
            raise DataError(
                f"{self.url(name)}: expected a part of it, found a server that sends whole files; copy it to a folder"
            )
        return content

    @property
    def is_local(self) -> bool:
        """Whether files are in this machine's own file system."""
        return not is_address(self.base) or self.base.startswith("file://")

    def _attempt(self, name: str, act: Callable[[], Found]) -> Found:
        for wait in (*_WAITS_SECONDS, None):
            try:
                return act()
            except FileNotFoundError:
                raise DataError(f"{self.url(name)}: expected a file, found none there") from None
            except (ImportError, NotImplementedError) as error:
                raise UsageError(
                    f"{self.url(name)}: cannot be read: {' '.join(str(error).split())}"
                ) from None
            # Connections fail in many ways, and every file system has errors of its own.
            except Exception as error:
                if wait is None or self.is_local:
                    reason = one_line(error)
                    raise DataError(f"{self.url(name)}: cannot be read: {reason}") from None
            time.sleep(wait)
        raise AssertionError

    def _path(self, name: str) -> str:
        _, root = self._files()
        return f"{root.rstrip('/')}/{name}" if name else root

    def _files(self) -> tuple[Any, str]:
        """fsspec's file system and the path there; another process needs its own, since connections cannot be shared."""
        if self._process != os.getpid():
            try:
                self._found = fsspec.core.url_to_fs(self.base)
            except (ImportError, ValueError) as error:
                hint = "; install what it needs with: pip install 'visus[shards]'" * isinstance(
                    error, ImportError
                )
                raise UsageError(
                    f"{self.base}: cannot be read: {' '.join(str(error).split())}{hint}"
                ) from None
            self._process = os.getpid()
        return self._found

    def __reduce__(self) -> tuple[type[Place], tuple[str]]:
        return Place, (self.base,)
