"""A closer look at mistakes: where on each image the model saw what it says, and the training images that are most like it there.

`N` images, `D` features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from visus.checkpoint import Checkpoint, load_checkpoint
from visus.data.batching import Batch, EvaluationBatches
from visus.data.images import Data, Split
from visus.devices import select_device
from visus.display import Display
from visus.errors import DataError, UsageError
from visus.explaining import explain, passes_for
from visus.features import Features, embed
from visus.ops.nearest import unit_rows
from visus.overlays import overlay
from visus.reporting.gallery import spread
from visus.reporting.reading import RunResults, clean
from visus.reporting.thumbnails import encode
from visus.runs import open_run
from visus.testing import as_trained, decode_for

_BATCH_SIZE = 16
_SIDE = 320
"""Of the picture of what the model saw with the map beside it, in pixels."""
_NEAREST = 3
_MOST_COMPARED = 2000
"""Training images, evenly spread: what ten epochs over them cost is thirty times as much."""
_FEWEST_PASSES, _MOST_PASSES = 100, 1000
"""Of images through the model, for the maps of a page: as many as there are training images, within these bounds."""


@dataclass(frozen=True)
class CloserLook:
    """At one image."""

    seen: str
    """What the model saw, and beside it what spoke for the class that it said, as a `data:` address."""
    nearest: tuple[tuple[str, str, float], ...]
    """Path, class and similarity (the cosine between features) of the training images most like it, the most similar first."""


def look_closer(
    results: RunResults, data: Data, part: str, said: Mapping[str, str], display: Display
) -> tuple[dict[str, CloserLook], int]:
    """A look at images in `part` of the run's `data`, of those that are still there; and how many training images were compared.

    `said` are their paths, the first ones the most wanted, and the classes that the model said. Maps are `explain`'s for those;
    features are what the classifier of the best weights gets, else of the last. `display` shows how far it is. Raises `VisusError`
    or `OSError` for a model that visus did not build, a part that is gone, or data that cannot be read.
    """
    run = open_run(results.path)
    checkpoint = load_checkpoint(run.best if run.best.exists() else run.last)
    asked, train = {"train": data.train, "val": data.val, "test": data.test}[part], _trained_on(results, data)
    if asked is None or train is None:
        raise DataError(f"{data.source}: expected its {part} and its training part, found one of them gone")
    device, record = _device_of(checkpoint), checkpoint.preprocessing
    with as_trained(checkpoint, device) as (model, amp):
        passes = passes_for(model, (1, record.channels, *record.size))
        most = min(max(_FEWEST_PASSES, len(train)), _MOST_PASSES) // passes
        wanted = dict(list(said.items())[: max(1, most)])
        shown = asked.subset(_places(asked, wanted))
        some = train.subset(np.array(spread(len(train), _MOST_COMPARED), dtype=np.int64))
        parts = replace(data, train=some, val=None, test=shown)
        decoded = decode_for(checkpoint, parts, progress=partial(display.count, "report: decoded"))
        assert decoded.train is not None
        assert decoded.test is not None
        shown, some = decoded.test, decoded.train
        names, classes = [clean(path) for path in shown.paths], [clean(name) for name in checkpoint.classes]
        batches, others = (EvaluationBatches(each, record, _BATCH_SIZE) for each in (shown, some))
        targets = torch.tensor([classes.index(wanted[name]) for name in names])
        seen = _maps(model, batches, targets, partial(display.count, "report: mistakes explained"))
        features = embed(model, batches, device=device, amp=amp)
        told = _counted(others, len(some), partial(display.count, "report: training images compared"))
        theirs = embed(model, told, device=device, amp=amp)
    looks = map(CloserLook, seen, _nearest(features, theirs, some))
    return dict(zip(names, looks, strict=True)), len(some)


def _maps(
    model: nn.Module, batches: EvaluationBatches, targets: Tensor, progress: Callable[[int, int], object]
) -> list[str]:
    """Each image beside what speaks for its class in `targets` `[N]`."""
    return [
        encode(overlay(image, heat, batches.preprocessing).transpose(2, 0, 1), _SIDE)
        for batch in _counted(batches, len(targets), progress)
        for image, heat in zip(
            batch.images, explain(model, batch.images, targets[batch.indices]), strict=True
        )
    ]


def _counted(
    batches: EvaluationBatches, total: int, progress: Callable[[int, int], object]
) -> Iterator[Batch]:
    """`batches`, of `total` images; each is told of when it is done."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.images)
        progress(done, total)


def _trained_on(results: RunResults, data: Data) -> Split | None:
    """The training part as the run had it, if that is known: without what it left out."""
    if data.train is None or results.listing is None:
        return data.train
    listed = {path for paths in results.listing.images.get("train", {}).values() for path in paths}
    return data.train.subset(_places(data.train, listed))


def _places(part: Split, paths: Mapping[str, object] | set[str]) -> npt.NDArray[np.int64]:
    return np.array([place for place, path in enumerate(part.paths) if clean(path) in paths], dtype=np.int64)


def _device_of(checkpoint: Checkpoint) -> torch.device:
    """That of the run, the first of several; the CPU where there is none such here."""
    try:
        return select_device(str(checkpoint.config.get("device", "auto")).split(",")[0])
    except UsageError:
        return torch.device("cpu")


def _nearest(features: Features, others: Features, train: Split) -> list[tuple[tuple[str, str, float], ...]]:
    """For each image the training images most like it; none where its features are no numbers."""
    (unit, known), (theirs, usable) = _directions(features), _directions(others)
    similar = np.where(known[:, None] & usable, unit @ theirs.T, -np.inf)
    order = np.argsort(-similar, axis=1, kind="stable")[:, :_NEAREST]
    return [
        tuple(
            (clean(train.paths[place]), train.classes[train.labels[place]], float(row[place]))
            for place in places
            if np.isfinite(row[place])
        )
        for places, row in zip(order.tolist(), similar, strict=True)
    ]


def _directions(features: Features) -> tuple[Features, npt.NDArray[np.bool_]]:
    """Each brought to length 1, and which of them are numbers; zeros in the place of the others."""
    finite = np.asarray(np.isfinite(features).all(axis=1))
    return unit_rows(np.where(finite[:, None], features, np.float32(0))), finite
