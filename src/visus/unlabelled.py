"""Images that nobody has said anything about: predictions are all there is to have of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visus.checkpoint import Checkpoint
from visus.data.batching import EvaluationBatches
from visus.data.files import FileImages
from visus.data.folders import is_image
from visus.data.images import Data, Skipped, Split
from visus.data.trees import FolderTree
from visus.devices import select_device
from visus.errors import UsageError
from visus.inference import predict_logits
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


def unlabelled_images(source: str) -> list[str]:
    """The images right in the folder `source`, where no folders beside them could be classes; else none."""
    if not Path(source).is_dir():
        return []
    folders, files = FolderTree(Path(source)).entries("")
    return [] if folders else [each for each in files if is_image(each)]


def predict_unlabelled(
    checkpoint: Checkpoint,
    source: str,
    images: list[str],
    *,
    predictions: Path | None,
    device: torch.device | str = "auto",
) -> Unlabelled:
    """Write what the model of `checkpoint` says of `images` in the folder `source`: a table as that of `visus evaluate`.

    Its labels are empty. `UsageError` where no table is named.
    """
    if predictions is None:
        raise UsageError(
            f"{source}: expected labelled images to score, found {len(images)} without labels; "
            "put them in a folder for each class, or name a table for what the model says of them with --predictions FILE"
        )
    chosen = select_device(device)
    split = Split(
        "test",
        FileImages(Path(source), images),
        np.full(len(images), -1, dtype=np.int64),
        checkpoint.classes,
        images,
    )
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
