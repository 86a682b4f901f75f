"""Image files that lie in something else than a folder, and a zip of them: nothing is unpacked into anybody's folders."""

from __future__ import annotations

import os
import posixpath
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from visus.data.decode import UndecodableError
from visus.errors import DataError

_DEEPEST = 64
"""Each level is a folder to list: a name of 60 kilobytes could make 30,000 of them."""


class Archive(Protocol):
    """Where image files lie that are none of the file system's, by their names there.

    It may be shared by threads, sent to another process and used after a fork.
    """

    @property
    def identity(self) -> str:
        """What names this very source and no other: its real path, or its address."""

    def read(self, name: str, limit_bytes: int) -> bytes:
        """A whole file; `UndecodableError` where it is damaged, or longer than `limit_bytes`."""

    def sizes_bytes(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """How long each of `names [N]` is: `[N]`."""

    def times(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """When each of `names [N]` was last written, in ns, or another number that changes with its content: `[N]`."""


class ZipArchive:
    """The files in a zip.

    It may be shared by threads, sent to another process and used after a fork. `DataError` for what is no zip, or has names that
    lead out of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    @property
    def names(self) -> list[str]:
        """Names of the files, and of the folders that have an entry of their own, with a `/` at the end."""
        return [*self._members, *self._folders]

    @property
    def identity(self) -> str:
        """The real path of the zip."""
        return os.path.realpath(self.path)

    def sizes_bytes(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """How long each of `names [N]` says that it is."""
        return np.fromiter((self._members[name].file_size for name in names), np.int64, len(names))

    def times(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """When the zip was last written, for each of `names [N]`."""
        return np.full(len(names), self.path.stat().st_mtime_ns, dtype=np.int64)

    def read(self, name: str, limit_bytes: int) -> bytes:
        """A whole file; `UndecodableError` where it is damaged, encrypted, or says that it is longer than `limit_bytes`."""
        if self._process != os.getpid():
            self._open()
        member = self._members[name]
        if member.file_size > limit_bytes:
            raise UndecodableError(f"too large: {member.file_size:,} bytes, the limit is {limit_bytes:,}")
        if member.flag_bits & 1:
            raise UndecodableError("encrypted; pack it again without a password")
        try:
            return self._read(member)
        # Damaged members raise BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, struct.error, ... by their method.
        except Exception as error:
            raise UndecodableError(f"damaged in the zip: {' '.join(str(error).split())}") from None

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        # Opening and closing count references in the ZipFile without a lock of its own; reading has one.
        with self._lock:
            file = self._zip.open(member)
        try:
            # Without a length zipfile decompresses all there is before it looks at what the member says.
            return file.read(member.file_size)
        finally:
            with self._lock:
                file.close()

    def _open(self) -> None:
        # A forked child would share its parent's place in the file, and perhaps a lock that nobody lets go.
        self._process, self._lock = os.getpid(), threading.Lock()
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path}: cannot be read as a zip: {error}; pack or copy it again") from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._folders: list[str] = []
        for member in self._zip.infolist():
            name = self._inside(member.filename)
            if member.is_dir():
                self._folders.append(f"{name}/")
            else:
                self._members[name] = member

    def _inside(self, name: str) -> str:
        """`name` with plain slashes. Nothing is unpacked, so a name that leads out can do no harm; but it means no good."""
        plain = name.replace("\\", "/")
        if plain.startswith("/") or ".." in plain.split("/"):
            raise DataError(f"{self.path}: expected names inside the zip, found {name!r}; pack it again")
        if (depth := plain.count("/")) > _DEEPEST:
            raise DataError(f"{self.path}: expected at most {_DEEPEST} folders in one another, found {depth}")
        return posixpath.normpath(plain)

    def __reduce__(self) -> tuple[Callable[[Path], ZipArchive], tuple[Path]]:
        return ZipArchive, (self.path,)
