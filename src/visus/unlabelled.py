"""Images that nobody has said anything about: predictions are all there is to have of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visus.checkpoint import Checkpoint
from visus.data.arrays import load_npz, to_pixels
from visus.data.batching import EvaluationBatches
from visus.data.files import FileImages
from visus.data.folders import is_image
from visus.data.images import ArrayImages, Data, Images, Skipped, Split
from visus.data.tabular import TABLE_SUFFIXES
from visus.data.trees import FolderTree
from visus.devices import select_device
from visus.errors import UsageError
from visus.inference import predict_logits
from visus.tables import column_names, read_columns
from visus.testing import as_trained, decode_for, record_outcomes


@dataclass(frozen=True)
class Unlabelled:
    """What came of images without labels."""

    n: int
    predictions: str
    """The table that holds them."""
    skipped: tuple[Skipped, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of `visus evaluate --json`."""
        return {"n": self.n, "labelled": 0, "accuracy": None, "predictions": self.predictions} | {
            "skipped": len(self.skipped)
        }

    def __str__(self) -> str:
        return (
            f"no labels, so nothing to score: what the model says of {self.n} images is in {self.predictions}"
        )


def open_unlabelled(source: str) -> Split | None:
    """The images of a `source` that says nothing of their classes; `None` for another one, which the usual way is for.

    That is a folder of images without folders beside them, a table with a column `path` and none called `label`, or an `.npz`
    file with `images` and no `labels`.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file() and suffix in TABLE_SUFFIXES:
        names = column_names(path)
        if "path" in names and "label" not in map(str.lower, names):
            (paths,) = read_columns(path, ["path"])
            return _split(FileImages(path.parent, paths, table=path), paths)
    if path.is_file() and suffix == ".npz":
        arrays = load_npz(path)
        if "images" in arrays and "labels" not in arrays:
            pixels = torch.from_numpy(to_pixels(arrays["images"], path))
            return _split(ArrayImages(pixels), [str(place) for place in range(len(pixels))])
    return None


def _in_folder(path: Path) -> Split | None:
    folders, files = FolderTree(path).entries("")
    images = [] if folders else [each for each in files if is_image(each)]
    return _split(FileImages(path, images), images) if images else None


def _split(images: Images, paths: list[str]) -> Split:
    return Split("test", images, np.full(len(paths), -1, dtype=np.int64), (), paths)


def predict_unlabelled(
    checkpoint: Checkpoint,
    source: str,
    split: Split,
    *,
    predictions: Path | None,
    device: torch.device | str = "auto",
) -> Unlabelled:
    """Write what the model of `checkpoint` says of the images of `split`, from `source`: a table as that of `visus evaluate`.

    Its labels are empty. `UsageError` where no table is named.
    """
    if predictions is None:
        raise UsageError(
            f"{source}: expected labelled images to score, found {len(split)} without labels; "
            "put them in a folder for each class, or name a table for what the model says of them with --predictions FILE"
        )
    chosen = select_device(device)
    split = replace(split, classes=checkpoint.classes)
    data = decode_for(checkpoint, Data(source, checkpoint.classes, test=split))
    assert data.test is not None
    batches = EvaluationBatches(
        data.test, checkpoint.preprocessing, checkpoint.config.get("val_batch_size", 100)
    )
    with as_trained(checkpoint, chosen) as (model, amp):
        outcomes = record_outcomes(
            predict_logits(model, batches, device=chosen, amp=amp), data.test, predictions
        )
    return Unlabelled(len(outcomes.labels), str(predictions), data.skipped)
