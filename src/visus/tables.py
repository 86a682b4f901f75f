"""Tables in files: CSV, or Parquet where the extra `table` is installed; the suffix decides."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visus.errors import DataError, UsageError
from visus.files import replacing

WriteRows = Callable[[Iterable[Sequence[Any]]], None]
WriteColumns = Callable[[Sequence[Sequence[Any]]], None]

_ROWS_AT_ONCE = 4096
"""In Parquet; a group of rows for every few images would be slow to read."""


@contextlib.contextmanager
def writing_table(path: str | os.PathLike[str], header: Sequence[str]) -> Iterator[WriteRows]:
    """A function that adds rows to a new table at `path`; as `writing_columns`."""
    with writing_columns(path, header) as write:

        def write_rows(rows: Iterable[Sequence[Any]]) -> None:
            if columns := list(zip(*rows, strict=True)):
                write(columns)

        yield write_rows


@contextlib.contextmanager
def writing_columns(path: str | os.PathLike[str], header: Sequence[str]) -> Iterator[WriteColumns]:
    """A function that adds rows, as columns, to a new table at `path`, which is there, whole, when the context is left.

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


def usual_suffix() -> str:
    """`.parquet` where it can be written, else `.csv`."""
    return ".parquet" if importlib.util.find_spec("pyarrow") else ".csv"


def read_columns(path: str | os.PathLike[str], names: Sequence[str]) -> list[list[str]]:
    """The named columns of the table at `path`, as text; `DataError` where one is missing or the table is damaged."""
    source = Path(path)
    try:
        table = (
            _read_parquet(source, names) if source.suffix.lower() == ".parquet" else _read_csv(source, names)
        )
    except KeyError as error:
        raise DataError(
            f"{path}: expected a column {error.args[0]}, found none; write the table again"
        ) from None
    # pyarrow's errors are ValueError or OSError.
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table: {' '.join(str(error).split())}") from None
    return table


def column_names(path: Path) -> list[str]:
    """Of the table at `path`; `DataError` where it is damaged."""
    try:
        if path.suffix.lower() == ".parquet":
            return list(import_pyarrow().parquet.read_schema(path).names)
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return next(csv.reader(file), [])
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table: {' '.join(str(error).split())}") from None


def _read_csv(path: Path, names: Sequence[str]) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        places = [_place(header, name) for name in names]
        rows = [[row[place] for place in places] for row in reader if len(row) == len(header)]
    return [[row[place] for row in rows] for place in range(len(names))]


def _place(header: Sequence[str], name: str) -> int:
    if name not in header:
        raise KeyError(name)
    return header.index(name)


def _read_parquet(path: Path, names: Sequence[str]) -> list[list[str]]:
    parquet = import_pyarrow().parquet
    with parquet.ParquetFile(path) as file:
        header = file.schema_arrow.names
        for name in names:
            _place(header, name)
        found = file.read(columns=list(names))
    return [["" if value is None else str(value) for value in found[name].to_pylist()] for name in names]


@contextlib.contextmanager
def _csv(path: Path, header: Sequence[str]) -> Iterator[WriteColumns]:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        yield lambda columns: writer.writerows(zip(*columns, strict=True))


@contextlib.contextmanager
def _parquet(path: Path, header: Sequence[str]) -> Iterator[WriteColumns]:
    pyarrow = import_pyarrow()
    writer: Any = None
    pending: list[Any] = []

    def flush() -> None:
        nonlocal writer
        whole = pyarrow.concat_tables(pending)
        writer = writer or pyarrow.parquet.ParquetWriter(path, whole.schema)
        writer.write_table(whole)
        pending.clear()

    def write(columns: Sequence[Sequence[Any]]) -> None:
        arrays = [_arrow(pyarrow, column) for column in columns]
        pending.append(pyarrow.Table.from_arrays(arrays, names=[encodable(name) for name in header]))
        if sum(each.num_rows for each in pending) >= _ROWS_AT_ONCE:
            flush()

    try:
        yield write
        if pending:
            flush()
        elif not writer:
            names = [encodable(name) for name in header]
            pyarrow.parquet.write_table(pyarrow.table([[]] * len(header), names=names), path)
    finally:
        if writer:
            writer.close()


def _arrow(pyarrow: Any, column: Sequence[Any]) -> Any:
    """`column` for Parquet; text that is no UTF-8, as names of files may be, with `\\x..` for its bytes.

    Text and numpy's floats are given as the bytes that they are: `pyarrow.array` loads pandas, 40 MB, to see whether a column is
    one of its own.
    """
    if len(column) and isinstance(column[0], str):
        texts = [encodable(each).encode() for each in column]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        # Longer ones Arrow has to divide.
        if ends[-1] < 2**31:
            buffers = pyarrow.py_buffer(ends.astype(np.int32)), pyarrow.py_buffer(b"".join(texts))
            return pyarrow.StringArray.from_buffers(len(texts), *buffers)
        return pyarrow.array([encodable(each) for each in column])
    if isinstance(column, np.ndarray) and column.dtype.kind == "f" and column.dtype.isnative:
        values = pyarrow.py_buffer(np.ascontiguousarray(column))
        return pyarrow.Array.from_buffers(pyarrow.from_numpy_dtype(column.dtype), len(column), [None, values])
    return pyarrow.array(column)


def encodable(text: str) -> str:
    """`text` as Parquet has it: bytes of a file's name that are no UTF-8 as `\\x..`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def import_pyarrow() -> Any:
    """The library, with its module for Parquet; `UsageError` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "Parquet files need pyarrow; install it with: pip install 'visus[table]', or use .csv"
        ) from None
    return pyarrow


_WRITERS = {".csv": _csv, ".parquet": _parquet}
