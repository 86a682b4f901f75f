"""What `visus evaluate` does: the model of a checkpoint on a part of a data set.

`N` images, `K` classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from visus.amp import amp_that_works
from visus.checkpoint import Checkpoint, rebuild_model
from visus.config import absolute
from visus.data.batching import EvaluationBatches
from visus.data.images import Data, Skipped, Split, map_classes
from visus.data.keeping import decode_once
from visus.data.sources import open_source, read_source
from visus.devices import available_memory_bytes, computing, select_device
from visus.errors import UsageError
from visus.evaluation import Scores, score
from visus.inference import predict_logits
from visus.preprocessing import Preprocessing
from visus.tables import WriteRows, writing_table


@dataclass(frozen=True)
class Evaluation:
    """The scores of a checkpoint, and what they were made on."""

    part: str
    """`train`, `val` or `test`."""
    scores: Scores
    notes: tuple[str, ...]
    """What was understood of the data, for people to read."""
    skipped: tuple[Skipped, ...]
    """Files that could not be used."""


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    source: str,
    *,
    part: str | None = None,
    device: torch.device | str = "auto",
    predictions: Path | None = None,
) -> Evaluation:
    """Score the model of `checkpoint` on a part of `source`: its test part, else validation, else all.

    The threads, kernels, precision and batch size are those of the training run, so that its figures come out again digit for
    digit. `predictions` is a file for every image's probabilities. Raises `DataError` for classes that the model lacks.
    """
    config, device = checkpoint.config, select_device(device)
    data = _open(checkpoint, source, part)
    split = data.test
    assert split is not None
    with computing(threads=config.get("threads"), deterministic=config.get("deterministic", True)):
        model = rebuild_model(checkpoint).to(device).to(memory_format=torch.channels_last)
        scores = score_split(
            model,
            split,
            checkpoint.preprocessing,
            batch_size=config.get("val_batch_size", 100),
            device=device,
            amp=amp_that_works(config.get("amp", "off"), device),
            predictions=predictions,
        )
    return Evaluation(split.name, replace(scores, skipped=len(data.skipped)), data.notes, data.skipped)


def score_split(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    device: torch.device,
    amp: str = "off",
    predictions: Path | None = None,
) -> Scores:
    """Score `model` on `split`, whose classes are the model's; `predictions` is a file (CSV or Parquet) to write, if any.

    Its columns are `path`, `label` and `prediction` (both by class name), and `p_<class>` for each class.
    """
    batches = EvaluationBatches(split, preprocessing, batch_size)
    outputs = predict_logits(model, batches, device=device, amp=amp)
    if predictions is None:
        return score(outputs, split.classes)
    header = ["path", "label", "prediction", *(f"p_{name}" for name in split.classes)]
    with writing_table(predictions, header) as write:
        return score(_recorded(outputs, split, write), split.classes)


def _open(checkpoint: Checkpoint, source: str, part: str | None) -> Data:
    """`source` with only the part to evaluate, as `test`, decoded, its classes brought to the model's.

    Only the source that the model was trained on has a validation part made by rule.
    """
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    trained_on = config.get("data") == absolute(source)
    made = {name: config[name] for name in ("val", "val_fraction", "split_seed") if name in config}
    data = open_source(source, **made) if trained_on else read_source(source)
    split = map_classes(_choose(data, part), checkpoint.classes)
    absent = [name for index, name in enumerate(split.classes) if not (split.labels == index).any()]
    notes = (*data.notes, *([f"classes without an image here: {', '.join(absent)}"] if absent else []))
    return decode_once(
        replace(data, classes=split.classes, train=None, val=None, test=split, notes=notes),
        channels=preprocessing.channels,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
        max_bad=1.0,
        max_pixels=round(config.get("max_pixels", 100) * 1e6),
        memory_bytes=available_memory_bytes() // 2,
    )


def _choose(data: Data, part: str | None) -> Split:
    parts = {"test": data.test, "val": data.val, "train": data.train}
    there = {name: each for name, each in parts.items() if each is not None and len(each)}
    if part is not None and part not in there:
        raise UsageError(f"{data.source}: expected one of the parts {', '.join(there)}, found --split {part}")
    return there[part] if part else next(iter(there.values()))


def _recorded(
    outputs: Iterable[tuple[Tensor, Tensor]], split: Split, write: WriteRows
) -> Iterator[tuple[Tensor, Tensor]]:
    """`outputs`, passed on, with a row written for every image."""
    position = 0
    for logits, targets in outputs:
        probabilities = logits.softmax(dim=1).cpu().numpy()
        predicted = logits.argmax(dim=1).tolist()
        places = range(position, position + len(logits))
        write(
            [split.paths[place], split.classes[split.labels[place]], split.classes[best], *row]
            for place, best, row in zip(places, predicted, probabilities, strict=True)
        )
        position = places.stop
        yield logits, targets
