"""Tables in files: CSV, or Parquet where the extra `table` is installed; the suffix decides."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from visus.errors import UsageError
from visus.files import replacing

WriteRows = Callable[[Iterable[Sequence[Any]]], None]


@contextlib.contextmanager
def writing_table(path: str | os.PathLike[str], header: Sequence[str]) -> Iterator[WriteRows]:
    """A function that adds rows to a new table at `path`, which is there, whole, when the context is left.

    When anything fails, what was at `path` before stays. Raises `UsageError` for another suffix than `.csv` or `.parquet`, a
    folder that is not there, or a library that is not installed.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in _WRITERS:
        raise UsageError(f"{target}: expected a name that ends in .csv or .parquet")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: expected a folder to write to, found none; make it first")
    if not os.access(target.absolute().parent, os.W_OK):
        raise UsageError(f"{target}: expected a folder that can be written to; choose another")
    with replacing(target) as temporary, _WRITERS[suffix](temporary, header) as write:
        yield write


@contextlib.contextmanager
def _csv(path: Path, header: Sequence[str]) -> Iterator[WriteRows]:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        yield writer.writerows


@contextlib.contextmanager
def _parquet(path: Path, header: Sequence[str]) -> Iterator[WriteRows]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "Parquet files need pyarrow; install it with: pip install 'visus[table]', or write .csv"
        ) from None
    writer: Any = None

    def write(rows: Iterable[Sequence[Any]]) -> None:
        nonlocal writer
        columns = [list(column) for column in zip(*rows, strict=True)]
        table = pyarrow.table(columns, names=list(header))
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer:
            writer.close()


_WRITERS = {".csv": _csv, ".parquet": _parquet}
