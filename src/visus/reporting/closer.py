"""A closer look at mistakes: where on each image the model saw what it says, and the training images that are most like it there.

`N` images, `D` features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from visus.checkpoint import load_checkpoint
from visus.data.batching import EvaluationBatches
from visus.data.images import Split
from visus.devices import select_device
from visus.errors import DataError
from visus.explaining import explain
from visus.features import embed
from visus.overlays import overlay
from visus.reporting.gallery import spread
from visus.reporting.reading import RunResults, clean
from visus.reporting.thumbnails import encode
from visus.testing import as_trained, decode_for, open_as_trained

_BATCH_SIZE = 16
_SIDE = 320
"""Of the picture of what the model saw with the map beside it, in pixels."""
_NEAREST = 3
_MOST_COMPARED = 5000
"""Training images, evenly spread: what a run of ten epochs over them costs is thirty times as much."""


@dataclass(frozen=True)
class CloserLook:
    """At one image."""

    seen: str
    """What the model saw, and beside it what spoke for the class that it says, as a `data:` address."""
    nearest: tuple[tuple[str, int, float], ...]
    """Path, class and similarity (the cosine between features) of the training images most like it, the most similar first."""


def look_closer(results: RunResults, part: str, paths: Sequence[str]) -> tuple[dict[str, CloserLook], int]:
    """A look at those of `paths` in `part` of the run's data that are still there; and how many training images were compared.

    Maps are `explain`'s, for the class that the best weights say; features are what their classifier gets. Raises `VisusError` or
    `OSError` for a model that visus did not build, a part that is gone, or data that cannot be read.
    """
    checkpoint = load_checkpoint(results.path / "best.safetensors")
    data = open_as_trained(checkpoint.config)
    parts = {"train": data.train, "val": data.val, "test": data.test}
    asked, train = parts[part], data.train
    if asked is None or train is None:
        raise DataError(f"{data.source}: expected its {part} and its training part, found one of them gone")
    wanted = set(paths)
    places = [place for place, path in enumerate(asked.paths) if clean(path) in wanted]
    some = train.subset(np.array(spread(len(train), _MOST_COMPARED), dtype=np.int64))
    shown = asked.subset(np.array(places, dtype=np.int64))
    decoded = decode_for(checkpoint, replace(data, train=some, val=None, test=shown))
    assert decoded.train is not None
    assert decoded.test is not None
    record = checkpoint.preprocessing
    device = select_device("auto")
    with as_trained(checkpoint, device) as (model, amp):

        def batches(split: Split) -> EvaluationBatches:
            return EvaluationBatches(split, record, _BATCH_SIZE)

        seen = [
            encode(overlay(image, heat, record).transpose(2, 0, 1), _SIDE)
            for images, _ in batches(decoded.test)
            for image, heat in zip(images, explain(model, images), strict=True)
        ]
        features, others = (
            embed(model, batches(split), device=device, amp=amp) for split in (decoded.test, decoded.train)
        )
    nearest = _nearest(features, others, decoded.train)
    names = map(clean, decoded.test.paths)
    looks = (CloserLook(*each) for each in zip(seen, nearest, strict=True))
    return dict(zip(names, looks, strict=True)), len(decoded.train)


def _nearest(
    features: npt.NDArray[np.float32], others: npt.NDArray[np.float32], train: Split
) -> list[tuple[tuple[str, int, float], ...]]:
    similar = _unit(features) @ _unit(others).T
    order = np.argsort(-similar, axis=1, kind="stable")[:, :_NEAREST]
    return [
        tuple((clean(train.paths[place]), int(train.labels[place]), float(row[place])) for place in places)
        for places, row in zip(order.tolist(), similar, strict=True)
    ]


def _unit(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = features / np.maximum(length, np.finfo(np.float32).tiny)
    return unit
