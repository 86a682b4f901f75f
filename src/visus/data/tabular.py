"""Tables that list images: CSV or Parquet with columns `path` and `label`, and if they like `split`, `group` and others.

`N` images.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visus.data.folders import PARTS, Listing, refuse_lookalikes
from visus.errors import DataError, first_of
from visus.tables import import_pyarrow

TABLE_SUFFIXES = frozenset([".csv", ".tsv", ".parquet"])
_REQUIRED = ("path", "label")
_KNOWN = (*_REQUIRED, "split", "group")
_DELIMITERS = ",;\t"
_NUMBER = re.compile(r"(0|[1-9]\d{0,17})(\.0+)?")


@dataclass(frozen=True)
class _Table:
    """The columns of a table as text, `path` and `label` among them; empty where there is nothing."""

    path: Path
    columns: dict[str, list[str]]
    rows: Sequence[int]
    """`[N]`: how people count the row that each image has."""

    def refuse(self, place: int, sentence: str) -> DataError:
        return DataError(f"{self.path}, row {self.rows[place]}: {sentence}")


def read_table(path: Path) -> dict[str, Listing]:
    """The parts that a table lists, `{"train": all}` where it does not say; images in the order of classes and paths.

    Paths are relative to the table's folder, or absolute; those that lie in the folder become relative. The order of rows does not
    matter. `DataError` naming the row where a value is missing or unknown, or an image is there twice.
    """
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if not table.rows:
        raise DataError(f"{path}: expected rows with a path and a label, found none")
    _refuse_empty(table)
    paths = _unique_paths(table)
    labels, classes = number_labels(table.columns["label"])
    refuse_lookalikes(classes, path)
    parts = _parts(table)
    _refuse_if_all_missing(table, paths)
    columns = {name: np.array(values, dtype=object) for name, values in _carried(table.columns)}
    return {
        part: _listing(paths, labels, classes, columns, np.flatnonzero(parts == part))
        for part in ("train", "val", "test")
        if (parts == part).any()
    }


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
    paths: list[str],
    labels: npt.NDArray[np.int64],
    classes: list[str],
    columns: dict[str, npt.NDArray[np.object_]],
    places: npt.NDArray[np.int64],
) -> Listing:
    """The images at `places`, sorted, and the classes that they have."""
    order = np.array(sorted(places, key=lambda place: (labels[place], paths[place])), dtype=np.int64)
    present, numbers = np.unique(labels[order], return_inverse=True)
    return Listing(
        classes=[classes[number] for number in present],
        paths=[paths[place] for place in order],
        labels=numbers.tolist(),
        columns={name: values[order] for name, values in columns.items()},
    )


def _read_csv(path: Path) -> _Table:
    try:
        with path.open("rb") as raw:
            if raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{path}: expected UTF-8, found UTF-16; save it again as CSV in UTF-8")
        # Names of files need not be UTF-8.
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            header, delimiter = _header(file.readline())
            columns, where = _columns(path, header)
            values: dict[str, list[str]] = {name: [] for name in columns}
            rows = []
            file.seek(0)
            for number, row in _rows(path, file, delimiter, len(header)):
                rows.append(number)
                for name, place in zip(columns, where, strict=True):
                    values[name].append(row[place])
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
    table = _Table(path, values, rows)
    for name in (each for each in columns if each != "path"):
        for place, value in enumerate(values[name]):
            if not value.isascii() and any("\udc80" <= character <= "\udcff" for character in value):
                raise table.refuse(
                    place, f"expected UTF-8, found other bytes in {name}; save it again in UTF-8"
                )
    return table


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


def _read_parquet(path: Path) -> _Table:
    pyarrow = import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            plain = [field.name for field in file.schema_arrow if is_plain(field.type)]
            names, where = _columns(path, plain)
            table = file.read(columns=plain)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from None
    values = {name: as_texts(table.column(place)) for name, place in zip(names, where, strict=True)}
    return _Table(path, values, range(1, table.num_rows + 1))


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


def _refuse_empty(table: _Table) -> None:
    """`DataError` for a row without a path or a label; values but paths lose the space around them."""
    for name, values in table.columns.items():
        if name != "path":
            values[:] = [value.strip() for value in values]
    for name in _REQUIRED:
        if "" in table.columns[name]:
            place = table.columns[name].index("")
            raise table.refuse(place, f"expected a {name}, found nothing; fill it in, or remove the row")


def _unique_paths(table: _Table) -> list[str]:
    """The paths, those under the table's folder relative to it; `DataError` for an image that is there twice."""
    root = os.path.realpath(table.path.parent) + os.sep
    given = str(table.path.parent.absolute()) + os.sep
    paths = []
    places: dict[str, int] = {}
    for place, name in enumerate(table.columns["path"]):
        path = os.path.normpath(name).removeprefix(given).removeprefix(root)
        if (first := places.setdefault(path, place)) != place:
            raise table.refuse(
                place,
                f"expected each image once, found {name} in row {table.rows[first]} as well; remove one of the rows",
            )
        paths.append(path)
    return paths


def _parts(table: _Table) -> npt.NDArray[np.object_]:
    """The part of each row, `[N]`; `DataError` for a name that is not that of a part."""
    names = table.columns.get("split", [])
    if not any(names):
        return np.full(len(table.rows), "train", dtype=object)
    for place, name in enumerate(names):
        if name.lower() not in PARTS:
            raise table.refuse(
                place, f"expected train, val or test as split, found {name or 'nothing'}; correct it"
            )
    return np.array([PARTS[name.lower()] for name in names], dtype=object)


def _refuse_if_all_missing(table: _Table, paths: list[str]) -> None:
    """A file that is missing is left out later, like any that cannot be read; where none is there, the paths are wrong."""
    root = table.path.parent
    if not any(_exists(root / path) for path in paths):
        raise table.refuse(
            0,
            f"expected an image at {root / paths[0]}, found none there nor in any other row; correct the paths",
        )


def _exists(path: Path) -> bool:
    """Also for names that are too long, or have a zero byte in them."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _carried(columns: dict[str, list[str]]) -> Iterator[tuple[str, list[str]]]:
    """The columns that are kept beside paths and labels, if anything is in them."""
    return (
        (name, values)
        for name, values in columns.items()
        if name not in (*_REQUIRED, "split") and any(values)
    )
