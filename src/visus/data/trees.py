"""What lies where in a source: the same two questions asked of a folder and of the names in an archive.

Names are relative to the source, with `/` between their parts; the source itself is `""`. Hidden files and folders are left out.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from visus.errors import DataError

_HIDDEN = (".", "__MACOSX")
"""How names begin that nobody means to be looked at; the Finder of macOS adds the second to every zip."""


class Tree(Protocol):
    """The folders and files of a source."""

    @property
    def path(self) -> Path:
        """The source."""

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in `folder`, sorted; `DataError` where it cannot be listed."""

    def identity(self, folder: str) -> object:
        """The same for one folder under two names, as links give."""


@dataclass(frozen=True)
class FolderTree:
    """A folder of the file system."""

    path: Path

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """As `Tree`."""
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(self.path / folder) as found:
                for entry in found:
                    name = entry.name
                    if name.startswith(_HIDDEN):
                        continue
                    try:
                        (folders if entry.is_dir() else files).append(name)
                    except OSError:
                        # A link to itself: whoever opens it will say what it is.
                        files.append(name)
        except OSError as error:
            raise self._unlistable(folder, error) from None
        return sorted(folders), sorted(files)

    def identity(self, folder: str) -> object:
        """Device and inode."""
        try:
            status = (self.path / folder).stat()
        except OSError as error:
            raise self._unlistable(folder, error) from None
        return status.st_dev, status.st_ino

    def _unlistable(self, folder: str, error: OSError) -> DataError:
        return DataError(f"{self.path / folder}: cannot be listed: {error.strerror}; check its permissions")


class NameTree:
    """The tree that `names` spell, as an archive lists them; a folder's own name ends in `/`."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path = path
        self._folders: dict[str, set[str]] = defaultdict(set)
        self._files: dict[str, list[str]] = defaultdict(list)
        for name in names:
            folder, _, file = name.rpartition("/")
            if file and not file.startswith(_HIDDEN):
                self._files[folder].append(file)
            self._add_folder(folder)

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """As `Tree`."""
        return sorted(self._folders.get(folder, ())), sorted(self._files.get(folder, ()))

    def identity(self, folder: str) -> object:
        """The name itself: archives have no links that are followed."""
        return folder

    def _add_folder(self, folder: str) -> None:
        while folder:
            parent, _, own = folder.rpartition("/")
            if own in self._folders[parent]:
                return
            if not own.startswith(_HIDDEN):
                self._folders[parent].add(own)
            folder = parent


def join(folder: str, name: str) -> str:
    """The name of what is called `name` in `folder`."""
    return f"{folder}/{name}" if folder else name
