"""What `visus predict` does: the model of a checkpoint on image files, one prediction for each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visus.amp import amp_that_works
from visus.checkpoint import Checkpoint, rebuild_model
from visus.data.crops import centre_crop
from visus.data.decode import Pixels, UndecodableError
from visus.data.files import FileImages, decode_all
from visus.data.folders import list_images
from visus.data.normalising import normalise
from visus.devices import computing, select_device
from visus.errors import DataError
from visus.inference import predict_logits
from visus.preprocessing import Preprocessing
from visus.tables import writing_table

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Prediction:
    """What the model says of one file: its likeliest classes, or why there are none."""

    path: str
    top: tuple[tuple[str, float], ...] = ()
    """Classes and their probabilities, the likeliest first."""
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        return {"path": self.path, "top": [{"class": name, "probability": p} for name, p in self.top]}

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {100 * probability:.2f}%" for name, probability in self.top)
        return f"{self.path}: {shares if self.error is None else self.error}"


def list_files(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The files that `paths` name: a folder means all images under it. `DataError` where a folder has none."""
    files: list[str] = []
    for path in [os.fspath(each) for each in paths]:
        if not Path(path).is_dir():
            files.append(path)
        elif found := list_images(Path(path)):
            files += found
        else:
            raise DataError(f"{path}: expected images in this folder, found none")
    return files


def predict_files(
    checkpoint: Checkpoint,
    files: Sequence[str],
    *,
    topk: int = 5,
    device: torch.device | str = "auto",
    tta: bool = False,
) -> Iterator[Prediction]:
    """What the model of `checkpoint` says of each of `files`, in their order; of fewer than `topk` classes, all.

    A file that is no image is a prediction with an error, and stops nothing. Files are decoded as they are needed. With `tta`
    probabilities are means over an image and its mirror image.
    """
    device = select_device(device)
    model = rebuild_model(checkpoint).to(device).to(memory_format=torch.channels_last)
    amp = amp_that_works(checkpoint.config.get("amp", "off"), device)
    with closing(decode_all(images_of(files, checkpoint.preprocessing))) as images:
        for first in range(0, len(files), _BATCH_SIZE):
            decoded = list(itertools.islice(images, _BATCH_SIZE))
            some = files[first : first + _BATCH_SIZE]
            with computing(threads=checkpoint.config.get("threads")):
                predictions = _predict(checkpoint, model, some, decoded, topk, device, amp, tta)
            yield from predictions


def write_predictions(predictions: Sequence[Prediction], path: str | os.PathLike[str]) -> None:
    """A table (CSV or Parquet by the suffix) of `path`, `error`, and `class_1`, `probability_1`, ... for each rank."""
    ranks = range(max((len(each.top) for each in predictions), default=0))
    names = [f"{kind}_{rank + 1}" for rank in ranks for kind in ("class", "probability")]
    empty = [None] * len(names)
    with writing_table(path, ["path", "error", *names]) as write:
        write(
            [each.path, each.error, *([cell for pair in each.top for cell in pair] or empty)]
            for each in predictions
        )


def _predict(
    checkpoint: Checkpoint,
    model: nn.Module,
    files: Sequence[str],
    decoded: Sequence[Pixels | UndecodableError],
    topk: int,
    device: torch.device,
    amp: str,
    tta: bool,
) -> list[Prediction]:
    batches = batches_of(decoded, checkpoint.preprocessing)
    found = {
        int(position): _top(probabilities, checkpoint.classes, topk)
        for logits, positions in predict_logits(model, batches, device=device, amp=amp, tta=tta)
        for position, probabilities in zip(positions, logits.softmax(dim=1), strict=True)
    }
    return [
        Prediction(path, error=str(result))
        if isinstance(result, UndecodableError)
        else Prediction(path, found[position])
        for position, (path, result) in enumerate(zip(files, decoded, strict=True))
    ]


def images_of(paths: Sequence[str], preprocessing: Preprocessing) -> FileImages:
    """The files at `paths` after the first stage of `preprocessing`, decoded when asked for."""
    return FileImages(
        Path(),
        paths,
        channels=preprocessing.channels,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
    )


def batches_of(
    decoded: Sequence[Pixels | UndecodableError], preprocessing: Preprocessing
) -> Iterator[tuple[Tensor, Tensor]]:
    """One batch of the images that could be decoded, and their positions; none where there are none."""
    good = [position for position, each in enumerate(decoded) if isinstance(each, np.ndarray)]
    if good:
        pixels = [centre_crop(torch.from_numpy(decoded[position]), preprocessing.size) for position in good]
        yield normalise(torch.stack(pixels), preprocessing), torch.tensor(good)


def _top(probabilities: Tensor, classes: Sequence[str], topk: int) -> tuple[tuple[str, float], ...]:
    values, indices = probabilities.topk(min(topk, len(classes)))
    return tuple(
        (classes[index], value) for value, index in zip(values.tolist(), indices.tolist(), strict=True)
    )
