"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving, it takes the place of `path` in one step.

    The file is synced before the rename and its folder after it, where it is to be `durable`. When anything fails, `path` is as it
    was and the temporary file is gone. Its name ends in `.tmp`, so that nothing takes it for a checkpoint. `OSError` is passed on.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(target)
        if durable:
            sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Give `source` a second name, in place of what `target` was; nothing is copied where the file system has hard links."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def write_text(path: str | os.PathLike[str], text: str, *, durable: bool = True) -> None:
    """Replace the file at `path` by `text` (UTF-8)."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: str | os.PathLike[str], document: Any, *, durable: bool = True) -> None:
    """Replace the file at `path` by `document` as indented JSON."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, durable=durable)


def sync(path: Path, flags: int = os.O_RDWR) -> None:
    """Wait until what was written to the file at `path` is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until it is on the disk which files are in the folder at `path`."""
    # Windows cannot open a folder, and some file systems of networks know no sync of one; there that is left to them.
    if os.name == "posix":
        try:
            sync(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
