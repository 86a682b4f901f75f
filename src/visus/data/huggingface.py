"""Data sets of the Hugging Face library `datasets`: given in Python, saved to disk, or as Parquet files laid out like them.

Images are taken as the bytes that are stored, and decoded as those in files are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visus.data.decode import UndecodableError
from visus.data.files import FileImages
from visus.data.folders import PARTS, Listing, parts_by_name
from visus.data.images import Column, Data
from visus.data.names import collect_names
from visus.data.parts import listed_data
from visus.data.tabular import as_texts, is_plain, number_labels, sort_labels
from visus.errors import DataError, UsageError, first_of, one_line
from visus.ops.rng import hash64

_LABELS = ("label", "labels", "class", "target")
_ROWS_AT_ONCE = 1000


def is_huggingface(source: object) -> bool:
    """Whether `source` is one of the library's own, without importing it."""
    return any(each.__module__.partition(".")[0] == "datasets" for each in type(source).__mro__)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` has written `folder`."""
    names = ("state.json", "dataset_info.json")
    return (folder / "dataset_dict.json").is_file() or all((folder / name).is_file() for name in names)


def read_saved(folder: Path) -> Data:
    """What `save_to_disk` has written to `folder`."""
    datasets = _library(folder)
    try:
        found = datasets.load_from_disk(str(folder))
    # What is damaged raises whatever JSON, Arrow or the library itself do.
    except Exception as error:
        raise DataError(
            f"{folder}: cannot be read as a saved data set: {one_line(error)}; save it again"
        ) from None
    return read_huggingface(found, str(folder))


def read_parquet_files(source: Path, files: Sequence[Path]) -> Data:
    """Parquet files with images in them, whose names say which part they belong to, as `train-00000-of-00001.parquet`.

    The library brings them into a form in its own cache in which any row can be read by itself.
    """
    datasets = _library(source)
    names = [each.name if each == source else str(each.relative_to(source)) for each in files]
    parts = parts_by_name(names, source)
    by_part = {
        part: [str(file) for file, of in zip(files, parts, strict=True) if of == part] for part in parts
    }
    try:
        with _quiet(datasets):
            found = datasets.load_dataset("parquet", data_files=by_part)
    except Exception as error:
        raise DataError(f"{source}: cannot be read as Parquet with images: {one_line(error)}") from None
    return read_huggingface(found, str(source))


def read_huggingface(source: Any, name: str | None = None) -> Data:
    """A `Dataset` or `DatasetDict` with a column of images and one of labels; what else is in it is kept as text.

    Parts are those of a `DatasetDict`, by their usual names. A `ClassLabel` keeps the order of its names. `UsageError` for one
    that is streamed, or has a transform; `DataError` for one without such columns, or an image without a label.
    """
    if not hasattr(source, "select_columns") or type(source).__name__.startswith("Iterable"):
        raise UsageError(
            f"expected a data set of which any image can be asked for, found {type(source).__name__}; "
            "load it without streaming, or save it to disk first"
        )
    parts, notes = _parts(source)
    columns = {part: _columns(each, name or type(source).__name__) for part, each in parts.items()}
    found = {part: _listing(part, parts[part], *columns[part]) for part in parts}
    notes += [f"{part}: no label in it, passed over" for part, listing in found.items() if listing is None]
    listings = {part: listing for part, listing in found.items() if listing is not None}
    images = {part: each.select_columns([columns[part][0]]) for part, each in parts.items()}
    identity = name or f"datasets:{'-'.join(each._fingerprint for each in parts.values())}"
    archive = DatasetArchive(images, identity)
    if not listings:
        raise DataError(f"{identity}: expected labels, found none")
    data = listed_data(
        name or type(source).__name__,
        "a Hugging Face data set",
        listings,
        lambda part, paths: FileImages(
            Path(identity), collect_names(f"{part}/{path}" for path in paths), archive=archive
        ),
    )
    return replace(data, notes=(*data.notes, *notes))


class DatasetArchive:
    """The images in data sets of one column, `parts`, each by the name of its part and its row, as `train/12`."""

    def __init__(self, parts: Mapping[str, Any], identity: str) -> None:
        self.identity = identity
        self._parts = {name: each.with_format("arrow") for name, each in parts.items()}
        self._sizes: dict[str, npt.NDArray[np.int64]] = {}

    def read(self, name: str, limit_bytes: int) -> bytes:
        """As `Archive`."""
        part, _, row = name.partition("/")
        cell = self._parts[part][int(row)].column(0)[0].as_py() or {}
        content = cell.get("bytes")
        if content is None and cell.get("path"):
            content = _read_file(cell["path"], limit_bytes)
        if content is None:
            raise UndecodableError("expected an image, found nothing")
        if len(content) > limit_bytes:
            raise UndecodableError(f"too large: {len(content):,} bytes, the limit is {limit_bytes:,}")
        return bytes(content)

    def sizes_bytes(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """As `Archive`; -1 where there is no image."""
        return self._of_rows(names, self._sizes_of)

    def times(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """A number for what the library calls the fingerprint of the part."""
        marks = {
            part: int(hash64(0, "stamp", [each._fingerprint])[0] >> 1) for part, each in self._parts.items()
        }
        return np.fromiter((marks[name.partition("/")[0]] for name in names), np.int64, len(names))

    def _of_rows(self, names: Sequence[str], values: Any) -> npt.NDArray[np.int64]:
        pairs = (name.partition("/") for name in names)
        return np.fromiter((values(part)[int(row)] for part, _, row in pairs), np.int64, len(names))

    def _sizes_of(self, part: str) -> npt.NDArray[np.int64]:
        """Of all rows of a part, found once."""
        if part not in self._sizes:
            sizes = [np.empty(0, dtype=np.int64)]
            for block in self._parts[part].iter(batch_size=_ROWS_AT_ONCE):
                sizes.append(_sizes(block.column(0).combine_chunks()))
            self._sizes[part] = np.concatenate(sizes)
        return self._sizes[part]


def _sizes(cells: Any) -> npt.NDArray[np.int64]:
    """Of a column of structs with `bytes` and `path`."""
    import pyarrow.compute

    found = pyarrow.compute.binary_length(pyarrow.compute.struct_field(cells, "bytes")).fill_null(-1)
    sizes: npt.NDArray[np.int64] = found.to_numpy(zero_copy_only=False).astype(np.int64)
    for place in np.flatnonzero(sizes < 0).tolist():
        path = (cells[place].as_py() or {}).get("path")
        with contextlib.suppress(OSError):
            sizes[place] = Path(path).stat().st_size if path else -1
    return sizes


def _read_file(path: str, limit_bytes: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(limit_bytes + 1)
    except OSError as error:
        raise UndecodableError(error.strerror or str(error), lasting=False) from None


def _parts(source: Any) -> tuple[dict[str, Any], list[str]]:
    """The parts of a data set, and what there is to say of those that are passed over."""
    if not isinstance(source, Mapping):
        return {"train": source}, []
    if len(source) == 1:
        return {PARTS.get(name.lower(), "train"): each for name, each in source.items()}, []
    parts: dict[str, Any] = {}
    others = []
    for name, each in source.items():
        part = PARTS.get(name.lower())
        if part in parts:
            raise DataError(f"expected one part for {part}, found two, {name} the second; leave one out")
        if part:
            parts[part] = each
        else:
            others.append(name)
    if not parts:
        raise DataError(
            f"expected parts called train, validation or test, found {first_of(others)}; rename them"
        )
    in_order: dict[str, Any] = {name: parts[name] for name in ("train", "val", "test") if name in parts}
    return in_order, [f"parts passed over: {', '.join(others)}"] * bool(others)


def _columns(part: Any, origin: str) -> tuple[str, str]:
    """The names of the columns of images and of labels."""
    if part.format["type"] == "custom":
        raise UsageError(
            f"{origin}: expected images as they are, found a transform; leave it out, visus prepares and augments them"
        )
    kinds = part.features
    images = [name for name, kind in kinds.items() if type(kind).__name__ == "Image" or _is_struct(kind)]
    classes = [name for name, kind in kinds.items() if type(kind).__name__ == "ClassLabel"]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    label = next((name for name in _LABELS if name in kinds), classes[0] if len(classes) == 1 else None)
    if image is None and "image" in kinds:
        kind = type(kinds["image"]).__name__
        raise DataError(
            f"{origin}: expected images in the column image, found {kind}; cast_column('image', datasets.Image()) makes them"
        )
    if image is None or label is None:
        lacking = "image" if image is None else "label"
        raise DataError(
            f"{origin}: expected a column {lacking}, found {first_of(list(kinds))}; give it that name with rename_column"
        )
    return image, label


def _is_struct(kind: Any) -> bool:
    """How images look in files that do not say what they are."""
    return isinstance(kind, Mapping) and "bytes" in kind


def _listing(name: str, part: Any, image: str, label: str) -> Listing | None:
    """What a part holds, in the order of its rows; `None` where no image has a label, as in the test part of a contest."""
    plain = [
        each for each in part.column_names if each != image and is_plain(part.data.schema.field(each).type)
    ]
    if label not in plain:
        raise DataError(f"{name}: expected numbers or names as {label}, found {part.features[label]}")
    table = part.select_columns(plain).with_format("arrow")[:]
    texts = _texts(name, table, label)
    given = getattr(part.features[label], "names", None)
    unlabelled = [place for place, text in enumerate(texts) if text in ("", "-1")]
    if texts and len(unlabelled) == len(texts):
        return None
    if unlabelled:
        more = f", nor in {len(unlabelled) - 1} more" if len(unlabelled) > 1 else ""
        raise DataError(
            f"{name}, row {unlabelled[0]} from 0: expected a label, found none{more}; leave such rows out"
        )
    if given:
        labels, classes = np.array([int(text) for text in texts], dtype=np.int64), list(given)
        if len(labels) and labels.max() >= len(classes):
            raise DataError(
                f"{name}: expected labels below {len(classes)}, found {labels.max()}; correct them"
            )
    else:
        number = sort_labels if table.schema.field(label).type in _text_types() else number_labels
        labels, classes = number(texts)
    return Listing(
        classes=classes,
        paths=collect_names(map(str, range(len(texts)))),
        labels=labels,
        columns={each: _named(name, part, table, each) for each in plain if each != label},
    )


def _texts(name: str, table: Any, column: str) -> list[str]:
    """A column of the part `name` as text."""
    try:
        return as_texts(table.column(column))
    except UnicodeDecodeError:
        raise DataError(
            f"{name}: expected UTF-8 in {column}, found other bytes; save it again in UTF-8"
        ) from None


def _named(name: str, part: Any, table: Any, column: str) -> Column:
    """A column as text; the numbers of classes as their names."""
    texts = _texts(name, table, column)
    if names := getattr(part.features[column], "names", None):
        texts = [names[int(text)] if text.isdecimal() and int(text) < len(names) else "" for text in texts]
    return np.array(texts, dtype=object)


def _text_types() -> tuple[Any, ...]:
    import pyarrow

    return pyarrow.string(), pyarrow.large_string()


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the library's own bars."""
    were_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            datasets.enable_progress_bars()


def _library(source: Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"{source}: images in Parquet or Arrow need datasets; install it with: pip install 'visus[hf]'"
        ) from None
    return datasets
