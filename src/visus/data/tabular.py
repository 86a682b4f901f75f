"""Tables that list images: CSV or Parquet with columns `path` and `label`, and if they like `split`, `group` and others.

`N` images.
"""

from __future__ import annotations

import contextlib
import csv
import heapq
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from visus.data.folders import PARTS, Listing, refuse_lookalikes
from visus.data.images import Column
from visus.data.names import Index, Names, NamesBuilder
from visus.data.repeated import Repeated
from visus.errors import DataError, first_of
from visus.tables import import_pyarrow

TABLE_SUFFIXES = frozenset([".csv", ".tsv", ".parquet"])
_REQUIRED = ("path", "label")
_KNOWN = (*_REQUIRED, "split", "group")
_PART_NAMES = ("train", "val", "test")
_ROWS_AT_ONCE = 10_000
_BYTES_AT_ONCE = 2**16
"""Of a column in a Parquet file, which may be one piece."""
_SORTED_AT_ONCE = 50_000
_DELIMITERS = ",;\t"
_NUMBER = re.compile(r"(0|[1-9]\d{0,17})(\.0+)?")


class _Block(NamedTuple):
    """Some rows of a table."""

    rows: Sequence[int]
    """How people count each."""
    texts: dict[str, list[str]]
    """Of its columns, `path` and `label` among them; empty where there is nothing."""


@dataclass(frozen=True)
class _Table:
    """The columns of a table; a list of a million rows would take ten times as much memory."""

    path: Path
    paths: Names
    """`[N]`, those under the table's folder relative to it."""
    columns: dict[str, Repeated]
    """All others, without the space around each text."""
    pathless: int | None
    """The first place without a path."""

    def refuse(self, place: int, sentence: str) -> DataError:
        return DataError(f"{self.path}, row {self.given(place)[0]}: {sentence}")

    def given(self, place: int) -> tuple[int, str]:
        """How people count the row of an image, and its path as it stands there: read again, as only errors ask for them."""
        for block in _blocks(self.path):
            if place < len(block.rows):
                return block.rows[place], block.texts["path"][place]
            place -= len(block.rows)
        raise DataError(f"{self.path}: has changed while it was read; start again")


def read_table(path: Path) -> dict[str, Listing]:
    """The parts that a table lists, `{"train": all}` where it does not say; images in the order of classes and paths.

    Paths are relative to the table's folder, or absolute; those that lie in the folder become relative. The order of rows does not
    matter. `DataError` naming the row where a value is missing or unknown, or an image is there twice.
    """
    table = _read(path)
    if not len(table.paths):
        raise DataError(f"{path}: expected rows with a path and a label, found none")
    _refuse_other_bytes(table)
    _refuse_empty(table)
    _refuse_twins(table)
    labels, classes = _number(table.columns["label"])
    refuse_lookalikes(classes, path)
    parts = _parts(table)
    _refuse_if_all_missing(table)
    paths, columns = table.paths, {name: each.texts() for name, each in _carried(table.columns)}
    # What follows needs as much memory again.
    del table
    return {
        part: _listing(paths, labels, classes, columns, np.flatnonzero(parts == number))
        for number, part in enumerate(_PART_NAMES)
        if (parts == number).any()
    }


def _number(labels: Repeated) -> tuple[npt.NDArray[np.int32], list[str]]:
    """As `number_labels`, of which each different label is asked once."""
    numbers, classes = number_labels(labels.values)
    return numbers.astype(np.int32)[labels.numbers], classes


def number_labels(names: Sequence[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Indices `[N]` of `names [N]` into the classes, and these: in lexicographic order, or that of numbers where all are such."""
    if all(map(_NUMBER.fullmatch, names)):
        numbers, labels = np.unique([int(name.partition(".")[0]) for name in names], return_inverse=True)
        return labels.astype(np.int64), [str(number) for number in numbers]
    return sort_labels(names)


def sort_labels(names: Sequence[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Indices `[N]` of `names [N]` into the classes, and these, in lexicographic order."""
    places = {name: place for place, name in enumerate(sorted(set(names)))}
    return np.fromiter((places[name] for name in names), np.int64, len(names)), list(places)


def _listing(
    paths: Names,
    labels: npt.NDArray[np.int32],
    classes: list[str],
    columns: dict[str, Column],
    places: Index,
) -> Listing:
    """The images at `places`, sorted, and the classes that they have."""
    counts = np.bincount(labels[places], minlength=len(classes))
    order = places[np.argsort(labels[places], kind="stable")]
    # Class by class, and within a large one some at a time: there are never strings for all.
    for some in np.split(order, np.cumsum(counts)[:-1]):
        some[:] = _by_name(paths, some)
    present = np.flatnonzero(counts)
    return Listing(
        classes=[classes[number] for number in present],
        paths=paths.subset(order),
        labels=np.repeat(np.arange(len(present)), counts[present]),
        columns={name: values[order] for name, values in columns.items()},
    )


def _by_name(paths: Names, places: Index) -> Index:
    """`places` in the order of their `paths`."""
    runs = []
    for first in range(0, len(places), _SORTED_AT_ONCE):
        some = places[first : first + _SORTED_AT_ONCE]
        names = list(paths.subset(some))
        runs.append(some[sorted(range(len(some)), key=names.__getitem__)])
    if len(runs) < 2:
        return runs[0] if runs else places
    # An array gives objects of numpy's, one by one; a view of its memory gives numbers.
    merged = heapq.merge(*(run.data for run in runs), key=paths.__getitem__)
    return np.fromiter(merged, dtype=np.int64, count=len(places))


def _read(path: Path) -> _Table:
    """One pass over the rows; what is wrong with them is seen afterwards, in the order in which it matters."""
    paths, columns = NamesBuilder(), defaultdict[str, Repeated](Repeated)
    pathless, count = None, 0
    tidy = _tidier(path.parent)
    for block in _blocks(path):
        names = block.texts.pop("path")
        if pathless is None and "" in names:
            pathless = count + names.index("")
        count += len(names)
        paths.add(map(tidy, names))
        for name, texts in block.texts.items():
            columns[name].add(map(str.strip, texts))
    return _Table(path, paths.finish(), columns, pathless)


def _tidier(folder: Path) -> Callable[[str], str]:
    """A function that writes a path that lies in `folder` relative to it, and as short as it goes."""
    root, given = os.path.realpath(folder) + os.sep, str(folder.absolute()) + os.sep
    return lambda name: os.path.normpath(name).removeprefix(given).removeprefix(root)


def _blocks(path: Path) -> Iterator[_Block]:
    return _parquet_blocks(path) if path.suffix.lower() == ".parquet" else _csv_blocks(path)


def _csv_blocks(path: Path) -> Iterator[_Block]:
    try:
        with path.open("rb") as raw:
            if raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{path}: expected UTF-8, found UTF-16; save it again as CSV in UTF-8")
        # Names of files need not be UTF-8.
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            header, delimiter = _header(file.readline())
            columns, where = _columns(path, header)
            file.seek(0)
            rows = _rows(path, file, delimiter, len(header))
            while some := list(itertools.islice(rows, _ROWS_AT_ONCE)):
                texts = {
                    name: [row[place] for _, row in some] for name, place in zip(columns, where, strict=True)
                }
                yield _Block([number for number, _ in some], texts)
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None


def _header(line: str) -> tuple[list[str], str]:
    """The names in the first line, and what stands between them: a comma, a semicolon or a tab."""
    found = [(next(csv.reader([line], delimiter=each), []), each) for each in _DELIMITERS]
    return next(
        (pair for pair in found if set(_REQUIRED) <= {name.strip().lower() for name in pair[0]}), found[0]
    )


def _columns(path: Path, header: Sequence[str]) -> tuple[list[str], list[int]]:
    """Names of the columns, the known ones in lower case, and their places; `DataError` for one that is missing or there twice."""
    names = [name.strip() for name in header]
    names = [name.lower() if name.lower() in _KNOWN else name for name in names]
    if missing := [name for name in _REQUIRED if name not in names]:
        raise DataError(
            f"{path}: expected columns path and label in its first row, found no {' and no '.join(missing)} "
            f"among {first_of([name or repr(name) for name in names], 10) or 'nothing'}; name them there"
        )
    if doubled := [name for name in _KNOWN if names.count(name) > 1]:
        raise DataError(f"{path}: expected one column {doubled[0]}, found {names.count(doubled[0])}")
    # What a table calls its row numbers has often no name.
    used = {name: place for place, name in enumerate(names) if name}
    return list(used), list(used.values())


def _rows(path: Path, file: Any, delimiter: str, width: int) -> Iterator[tuple[int, list[str]]]:
    """Numbers and values of the rows below the first; empty ones are passed over."""
    reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        next(reader)
        for row in reader:
            if not any(map(str.strip, row)):
                continue
            if len(row) < width or any(row[width:]):
                raise DataError(
                    f"{path}, row {reader.line_num}: expected {width} values, found {len(row)}; "
                    "put those with a comma in them in quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, row {reader.line_num}: cannot be read as CSV: {error}") from None


def _parquet_blocks(path: Path) -> Iterator[_Block]:
    pyarrow = import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BYTES_AT_ONCE, pre_buffer=False) as file:
            plain = [field.name for field in file.schema_arrow if is_plain(field.type)]
            names, where = _columns(path, plain)
            first = 1
            # Threads would each hold on to memory of their own.
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=plain, use_threads=False):
                texts = {
                    name: as_texts(batch.column(place)) for name, place in zip(names, where, strict=True)
                }
                yield _Block(range(first, first + len(batch)), texts)
                first += len(batch)
        pyarrow.default_memory_pool().release_unused()
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from None


def holds_images(path: Path) -> bool:
    """Whether a Parquet file has images in it, as those of Hugging Face do: structs with a field `bytes`."""
    with contextlib.suppress(Exception):
        import pyarrow.parquet

        kinds = [field.type for field in pyarrow.parquet.read_schema(path)]
        return any(pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 for kind in kinds)
    # Whoever opens it as a table will say what is wrong with it.
    return False


def as_texts(column: Any) -> list[str]:
    """A column of Arrow's as text, empty where there is nothing."""
    import pyarrow

    types = pyarrow.types
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    # What Arrow casts with takes 40 MB once it is loaded; most tables can do without.
    if types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind):
        return ["" if value is None else str(value) for value in column.to_pylist()]
    texts: list[str] = column.cast(pyarrow.string()).fill_null("").to_pylist()
    return texts


def is_plain(kind: Any) -> bool:
    """Whether values of this Arrow type can be told as text."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(kind):
        return is_plain(kind.value_type)
    text = (
        types.is_string(kind),
        types.is_large_string(kind),
        types.is_boolean(kind),
        types.is_temporal(kind),
    )
    return any(text) or types.is_integer(kind) or types.is_floating(kind)


def _refuse_other_bytes(table: _Table) -> None:
    """`DataError` for a row with bytes that are no UTF-8, elsewhere than in the name of a file."""
    for name, column in table.columns.items():
        for value in column.values:
            if not value.isascii() and any("\udc80" <= character <= "\udcff" for character in value):
                raise table.refuse(
                    column.first(value),
                    f"expected UTF-8, found other bytes in {name}; save it again in UTF-8",
                )


def _refuse_empty(table: _Table) -> None:
    """`DataError` for a row without a path or a label."""
    labels = table.columns["label"]
    labelless = labels.first("") if "" in labels.values else None
    for name, place in (("path", table.pathless), ("label", labelless)):
        if place is not None:
            raise table.refuse(place, f"expected a {name}, found nothing; fill it in, or remove the row")


def _refuse_twins(table: _Table) -> None:
    """`DataError` for an image that is there twice."""
    hashes = np.fromiter(map(hash, table.paths), dtype=np.int64, count=len(table.paths))
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    equal = np.flatnonzero(hashes[1:] == hashes[:-1])
    places: dict[str, int] = {}
    for place in np.unique(order[np.concatenate([equal, equal + 1])]).tolist():
        if (first := places.setdefault(table.paths[place], place)) != place:
            row, name = table.given(place)
            raise DataError(
                f"{table.path}, row {row}: expected each image once, found {name} in row {table.given(first)[0]} as well; "
                "remove one of the rows"
            )


def _parts(table: _Table) -> npt.NDArray[np.int8]:
    """Which of `_PART_NAMES` each row is of, `[N]`; `DataError` for a name that is not that of a part."""
    column = table.columns.get("split")
    if column is None or not any(column.values):
        return np.zeros(len(table.paths), dtype=np.int8)
    for name in column.values:
        if name.lower() not in PARTS:
            raise table.refuse(
                column.first(name),
                f"expected train, val or test as split, found {name or 'nothing'}; correct it",
            )
    numbers = [_PART_NAMES.index(PARTS[name.lower()]) for name in column.values]
    return np.array(numbers, dtype=np.int8)[column.numbers]


def _refuse_if_all_missing(table: _Table) -> None:
    """A file that is missing is left out later, like any that cannot be read; where none is there, the paths are wrong."""
    root = table.path.parent
    if not any(_exists(root / path) for path in table.paths):
        raise table.refuse(
            0,
            f"expected an image at {str(root / table.paths[0])!r}, found none there nor in any other row; correct the paths",
        )


def _exists(path: Path) -> bool:
    """Also for names that are too long, or have a zero byte in them."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _carried(columns: dict[str, Repeated]) -> Iterator[tuple[str, Repeated]]:
    """The columns that are kept beside paths and labels, if anything is in them."""
    return (
        (name, column)
        for name, column in columns.items()
        if name not in ("label", "split") and any(column.values)
    )
