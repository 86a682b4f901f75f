"""What a run's folder holds, read so that whatever is missing or damaged leaves a note and nothing else.

`N` images that were predicted, `K` classes. Loads no torch.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from visus.errors import DataError, one_line
from visus.runs import Record, open_run

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
T = TypeVar("T")
_Prediction = tuple[str, str, str, Sequence[Any]]
"""Path, label, prediction, and the probabilities of the classes."""
PARTS = ("train", "val", "test")
_COLUMNS = ["path", "label", "prediction"]
_PREFIX = "p_"


@dataclass(frozen=True)
class Predictions:
    """What the model said of each image of a part."""

    classes: tuple[str, ...]
    paths: list[str]
    true: Ints
    """`[N]`, indices into `classes`."""
    predicted: Ints
    """`[N]`"""
    confidence: Floats
    """`[N]`, the probability of the predicted class; NaN where the model gave none."""
    true_probability: Floats
    """`[N]`, the probability of the true class."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """`[N]`"""
        return np.equal(self.true, self.predicted)


@dataclass(frozen=True)
class Listing:
    """Which images a run had: `split.csv`."""

    images: dict[str, dict[str, list[str]]]
    """By part and class, the paths."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Those that have an image, by name."""
        return tuple(sorted({name for part in self.images.values() for name in part}))

    def count(self, part: str, name: str | None = None) -> int:
        """Images in `part`, of one class or of all."""
        classes = self.images.get(part, {})
        return sum(map(len, classes.values())) if name is None else len(classes.get(name, ()))


@dataclass(frozen=True)
class RunResults:
    """All that a run's folder tells; `None` for what is not there."""

    path: Path
    config: dict[str, Any]
    """Every value as text."""
    records: list[Record]
    environment: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    audit: dict[str, Any] | None = None
    profile: dict[str, Any] | None = None
    listing: Listing | None = None
    predictions: Predictions | None = None
    checkpoint: dict[str, Any] | None = None
    """The document of the best checkpoint, or the last one."""
    notes: tuple[str, ...] = ()
    """What could not be read, and why."""
    label: str = ""

    @property
    def name(self) -> str:
        """Of the folder, unless the run was given another."""
        return self.label or clean(self.path.name)

    @property
    def classes(self) -> tuple[str, ...]:
        """In the model's order, as far as that is known."""
        if self.checkpoint and self.checkpoint.get("classes"):
            return tuple(map(clean, self.checkpoint["classes"]))
        if self.predictions:
            return self.predictions.classes
        return self.listing.classes if self.listing else ()

    @property
    def epochs_asked(self) -> int:
        """How long the run was to be."""
        return int(self.config.get("epochs", len(self.phase("val"))))

    @property
    def epochs_done(self) -> int:
        """How many epochs are over, validation and all."""
        return max((record["epoch"] for record in self.phase("val")), default=0)

    def phase(self, name: str) -> list[Record]:
        """The records of `train` or of `val`, an entry for each epoch."""
        return [record for record in self.records if record["phase"] == name]


def read_run(path: str | Path) -> RunResults:
    """Everything in the folder of a run; `UsageError` where it is none."""
    run = open_run(path)
    notes: list[str] = []
    tables = [run.path / f"predictions.{suffix}" for suffix in ("parquet", "csv")]
    weights = [path for path in (run.best, run.last) if path.exists()]

    def read(path: Path, how: Callable[[Path], T]) -> T | None:
        return _attempt(path, how, notes)

    return RunResults(
        path=run.path,
        config=read(run.config, _read_settings) or {},
        records=read(run.metrics, lambda _: run.records()) or [],
        environment=read(run.environment, _read_json),
        summary=read(run.summary, _read_json),
        evaluation=read(run.evaluation, _read_json),
        audit=read(run.audit, _read_json),
        profile=read(run.profile, _read_json),
        listing=read(run.split, read_listing),
        predictions=next(filter(None, (read(path, read_predictions) for path in tables)), None),
        checkpoint=next(filter(None, (read(path, _read_checkpoint) for path in weights)), None),
        notes=tuple(notes),
    )


def read_listing(path: Path) -> Listing:
    """A table of `path,label,split`, and what columns it has besides."""
    images: dict[str, dict[str, list[str]]] = {}
    for name, label, part, *_ in _rows(path, [*_COLUMNS[:2], "split"])[1]:
        images.setdefault(part, {}).setdefault(clean(label), []).append(clean(name))
    return Listing(images)


def read_predictions(path: Path) -> Predictions:
    """A table of `path,label,prediction,p_<class>...`, CSV or Parquet; `DataError` for another one.

    Only three numbers of a row are kept, so that a thousand classes take no more memory than ten.
    """
    header, rows = _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
    classes = [name.removeprefix(_PREFIX) for name in header[len(_COLUMNS) :]]
    places = {name: place for place, name in enumerate(classes)}
    paths, true, predicted, confidence, true_probability = [], [], [], [], []
    for name, label, prediction, probabilities in rows:
        if label not in places:
            continue
        best = places.get(prediction or "", -1)
        paths.append(clean(name))
        true.append(places[label])
        predicted.append(best)
        confidence.append(float(probabilities[best]) if best >= 0 else np.nan)
        true_probability.append(float(probabilities[places[label]]))
    return Predictions(
        tuple(map(clean, classes)),
        paths,
        np.array(true, dtype=np.int64),
        np.array(predicted, dtype=np.int64),
        np.array(confidence, dtype=np.float64),
        np.array(true_probability, dtype=np.float64),
    )


def clean(text: str) -> str:
    """`text` as it can be encoded: bytes of a file's name that are no UTF-8 become replacement characters."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _attempt(path: Path, read: Callable[[Path], T], notes: list[str]) -> T | None:
    """What `read` makes of the file at `path`; where there is one that cannot be read, `notes` get a sentence."""
    if not path.exists():
        return None
    try:
        return read(path)
    # Of a damaged file a reader may raise whatever its format lets it.
    except Exception as error:
        reason = one_line(error)
        notes.append(clean(f"{path.name} could not be read ({reason})"))
        return None


def _read_json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise DataError("expected a JSON object, found something else")
    return document


def _read_checkpoint(path: Path) -> dict[str, Any]:
    from visus.checkpoint import read_document

    return read_document(path)


def _read_settings(path: Path) -> dict[str, Any]:
    import yaml

    settings = yaml.load(path.read_text(encoding="utf-8", errors="replace"), yaml.BaseLoader)
    if not isinstance(settings, dict):
        raise DataError("expected settings as `name: value`, found something else")
    return settings


def _rows(path: Path, expected: Sequence[str]) -> tuple[list[str], Iterator[list[str]]]:
    """The header of a CSV file, which must begin with the `expected` names, and its rows."""
    reader = _read_csv(path)
    header = next(reader, [])
    _check_header(header, expected)
    return header, (row for row in reader if len(row) == len(header))


def _read_csv(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        yield from csv.reader(file)


def _csv_rows(path: Path) -> tuple[list[str], Iterator[_Prediction]]:
    header, rows = _rows(path, _COLUMNS)
    return header, ((row[0], row[1], row[2], row[3:]) for row in rows)


def _parquet_rows(path: Path) -> tuple[list[str], Iterator[_Prediction]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    header = list(file.schema_arrow.names)
    _check_header(header, _COLUMNS)
    return header, (row for batch in file.iter_batches(batch_size=1024) for row in _batch_rows(batch))


def _batch_rows(batch: Any) -> Iterator[_Prediction]:
    names, labels, predictions, *columns = batch.columns
    # Column by column: a thousand classes are a million Python numbers else.
    probabilities = np.column_stack([column.to_numpy(zero_copy_only=False) for column in columns])
    return zip(names.to_pylist(), labels.to_pylist(), predictions.to_pylist(), probabilities, strict=True)


def _check_header(header: Sequence[str], expected: Sequence[str]) -> None:
    if list(header[: len(expected)]) != list(expected):
        raise DataError(f"expected columns {', '.join(expected)}, found {', '.join(header) or 'none'}")
