"""What a model that is at hand says of the images of an audit: features, and probabilities of those it was not trained on.

`N` images, `D` features, `K` classes.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from visus.auditing.scanning import Pool, pool_images
from visus.checkpoint import find_checkpoint, load_checkpoint, rebuild_model
from visus.data.batching import EvaluationBatches
from visus.data.images import Data
from visus.data.keeping import decode_once
from visus.devices import available_memory_bytes
from visus.errors import DataError, UsageError, first_of
from visus.features import embed
from visus.inference import predict_logits
from visus.models.build import build_model
from visus.models.weights import pretrained_preprocessing
from visus.preprocessing import Preprocessing
from visus.runs import open_run

Array = npt.NDArray[Any]
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Seen:
    """The images of a data set as a model takes them, and which of them the audit calls what."""

    data: Data
    preprocessing: Preprocessing
    val: str | None

    def batches(self) -> tuple[Pool, list[EvaluationBatches]]:
        """All images that can be decoded, and their batches, part by part."""
        record = self.preprocessing
        decoded = decode_once(
            self.data,
            channels=record.channels,
            resize=record.resize,
            interpolation=record.interpolation,
            max_bad=1.0,
            memory_bytes=available_memory_bytes() // 2,
        )
        pool, parts = pool_images(decoded, self.val)
        return pool, [EvaluationBatches(part, record, _BATCH_SIZE) for part in parts]


def features_by_name(data: Data, val: str | None, name: str, weights: str) -> dict[str, Array]:
    """The features `[D]` of each image that can be decoded, by a model of the libraries with pretrained weights."""
    record = pretrained_preprocessing(name, weights)
    if record is None:
        raise UsageError(
            f"--weights {weights}: expected weights whose preprocessing is known, found none for {name}"
        )
    model = build_model(name, weights=weights)
    pool, batches = Seen(data, record, val).batches()
    rows = np.concatenate([embed(model, each) for each in batches])
    return dict(zip(pool.names, rows, strict=True))


def held_out_probabilities(data: Data, val: str | None, run: str) -> dict[str, Array]:
    """The probabilities `[K]` of each image that the best model of `run` was not trained on, classes in the order of `data`."""
    checkpoint = load_checkpoint(find_checkpoint(run))
    if unknown := [name for name in data.classes if name not in checkpoint.classes]:
        raise DataError(
            f"--run {run}: expected a model that knows these classes, found it lacks {first_of(unknown)}"
        )
    trained = _trained_on(open_run(run).split)
    columns = [checkpoint.classes.index(name) for name in data.classes]
    pool, batches = Seen(data, checkpoint.preprocessing, val).batches()
    rows = _probabilities(rebuild_model(checkpoint), batches)[:, columns]
    return {name: row for name, row in zip(pool.names, rows, strict=True) if name not in trained}


def _probabilities(model: nn.Module, batches: list[EvaluationBatches]) -> Array:
    outputs = [
        logits.double().softmax(dim=1).cpu().numpy()
        for each in batches
        for logits, _ in predict_logits(model, each)
    ]
    return np.concatenate(outputs)


def _trained_on(split: Path) -> set[str]:
    """What the audit may call the images that a run was trained on."""
    try:
        with split.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            paths = [row["path"] for row in csv.DictReader(file) if row["split"] == "train"]
    except (OSError, KeyError) as error:
        raise UsageError(
            f"{split}: expected the list of what the run was trained on, found none ({error})"
        ) from None
    return {*paths, *(f"train/{path}" for path in paths)}
