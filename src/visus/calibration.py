"""What `visus calibrate` does: a temperature that makes a model's confidence honest, stored in its checkpoint.

`N` images, `K` classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import optimize, sparse
from torch import Tensor

from visus.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from visus.config import absolute
from visus.data.batching import EvaluationBatches
from visus.data.files import FileImages
from visus.data.images import Data, Skipped, Split
from visus.data.sources import open_named
from visus.devices import select_device
from visus.errors import DataError, UsageError, VisusError, first_of
from visus.inference import predict_logits
from visus.ops.calibration_error import (
    Bin,
    calibration_error_interval,
    debiased_calibration_error,
    reliability_bins,
    smooth_calibration_error,
)
from visus.ops.groups import counted_groups
from visus.ops.intervals import Interval
from visus.ops.resampling import accelerated_interval, bootstrap, units_of
from visus.ops.rng import permutation
from visus.runs import RunFolder
from visus.scoring import interval_of
from visus.testing import as_trained, choose_part, decode_for, groups_of

_LOWEST, _HIGHEST = 0.05, 20.0
_FOLDS = 5
Groups = Sequence[Any] | None
"""The group of each image, where groups are to be counted."""

_ADVICE = "give data with a part val, or --split train for images that the model has not seen"
_MORE = "take more images, or harder ones"


@dataclass(frozen=True)
class Honesty:
    """How honest the probabilities are."""

    loss: float
    """Mean cross-entropy in nats."""
    loss_ci95: Interval | None
    ece: float
    """`debiased_calibration_error`."""
    ece_ci95: Interval | None
    smooth_ece: float
    reliability: list[Bin]


@dataclass(frozen=True)
class Calibration:
    """What was found, and stored in the checkpoint."""

    checkpoint: str
    split: str
    n: int
    temperature: float
    before: Honesty
    """With the temperature 1."""
    after: Honesty
    """Each image with a temperature that was fitted without it and its fold, a fifth of the images."""
    digest: str
    """Of the weights, which stay as they were."""
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The document of `visus calibrate --json`."""
        document = asdict(self)
        del document["notes"]
        return document | {"skipped": len(self.skipped)}

    def __str__(self) -> str:
        rows = (("before", self.before), ("after", self.after))
        lines = [
            f"{name:>6}: loss {each.loss:.4f}{_extent(each.loss_ci95)}, calibration error "
            f"{each.ece:.4f}{_extent(each.ece_ci95)}, smooth {each.smooth_ece:.4f}"
            for name, each in rows
        ]
        if self.after.loss >= self.before.loss:
            lines.append(
                "on images that a temperature was not fitted to, the loss did not fall: so few images do not "
                "settle it; it is stored all the same, and more images would replace it"
            )
        return "\n".join(
            [
                f"temperature {self.temperature:.4f}, from {self.n} images ({self.split}), 95 % intervals",
                *lines,
            ]
        )


def _extent(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"


def calibrate_checkpoint(
    path: Path, source: str, *, part: str = "val", device: torch.device | str = "auto"
) -> Calibration:
    """Fit a temperature to the model at `path` on a part of `source`, and store it in the checkpoint, in one step.

    `path` is a checkpoint, or a run's folder for its best one. One temperature for all classes (Guo et al., On Calibration of
    Modern Neural Networks, 2017): accuracy, weights and their digest stay as they are. A temperature that was there is replaced.
    `UsageError` for the test part, which is never used to choose anything, and for what the model was trained on.
    """
    if part == "test":
        raise UsageError("--split test: what is called test is never used to choose anything; take val")
    # A run writes its checkpoints itself while it goes on.
    with RunFolder(path).locked() if path.is_dir() else nullcontext():
        checkpoint = load_checkpoint(find_checkpoint(path))
        if part == "train" and checkpoint.config.get("data") == absolute(source):
            raise UsageError(f"{source}: expected images that the model was not trained on; take --split val")
        logits, labels, groups, notes, skipped = _logits(checkpoint, source, part, device)
        temperature = fit_temperature(logits, labels)
        found = Calibration(
            checkpoint=str(checkpoint.path),
            split=part,
            n=len(labels),
            temperature=temperature,
            before=_honesty(logits, labels, groups),
            after=_honesty(_cross_fitted(logits, labels, groups), labels, groups),
            digest=checkpoint.document["digest"],
            notes=notes,
            skipped=skipped,
        )
        document = {**checkpoint.document, "temperature": temperature}
        save_checkpoint(checkpoint.path, checkpoint.tensors, document)
    return found


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature from 0.05 to 20 that makes the mean cross-entropy of `logits [N, K] / temperature` least.

    `DataError` where the images do not settle it: all are right, or the outputs say nothing.
    """

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits.double() / math.exp(log_temperature), labels))

    if bool((logits.argmax(dim=1) == labels).all()):
        raise _unsettled(labels, f"all are right, so that no temperature is low enough; {_MORE}")
    bounds = math.log(_LOWEST), math.log(_HIGHEST)
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    temperature = math.exp(found.x)
    if temperature < _LOWEST * 1.01:
        raise _unsettled(labels, f"the best is below {_LOWEST:g}; {_MORE}")
    if temperature > _HIGHEST / 1.01:
        raise _unsettled(
            labels, f"the best is above {_HIGHEST:g}, since the outputs tell nothing; train for longer"
        )
    return temperature


def _unsettled(labels: Tensor, reason: str) -> DataError:
    return DataError(f"expected images that settle a temperature, found {len(labels)} that do not: {reason}")


def _logits(
    checkpoint: Checkpoint, source: str, part: str, device: torch.device | str
) -> tuple[Tensor, Tensor, Groups, tuple[str, ...], tuple[Skipped, ...]]:
    """Logits `[N, K]` and labels `[N]` of a part of `source`, as they are without a temperature; and their groups to be counted."""
    chosen = select_device(device)
    plain = replace(checkpoint, document={**checkpoint.document, "temperature": 1.0})
    listed, _ = choose_part(plain, source, part, advice=_ADVICE)
    notes = _refuse_training_images(plain, listed, source)
    data = decode_for(plain, listed)
    assert data.test is not None
    batches = EvaluationBatches(data.test, plain.preprocessing, plain.config.get("val_batch_size", 100))
    with as_trained(plain, chosen) as (model, amp):
        pairs = list(predict_logits(model, batches, device=chosen, amp=amp))
    logits, labels = (torch.cat(each).cpu() for each in zip(*pairs, strict=True))
    if bad := int((~logits.isfinite()).any(dim=1).sum()):
        raise DataError(
            f"{checkpoint.path}: expected numbers as outputs, found NaN or infinite ones for {bad} images; take another checkpoint"
        )
    return logits, labels, counted_groups(groups_of(data.test)), (*data.notes, *notes), data.skipped


def _refuse_training_images(checkpoint: Checkpoint, data: Data, source: str) -> tuple[str, ...]:
    """`UsageError` where files of the part that is chosen are among those that the model was trained on.

    A note where these cannot be listed; where they are gone, none of them can be here.
    """
    trained_on = checkpoint.config.get("data")
    # Of one source, the parts are others by themselves.
    if trained_on is None or trained_on == absolute(source) or not Path(trained_on).exists():
        return ()
    try:
        trained = set(_files(open_named(checkpoint.config).train))
    except VisusError as error:
        return (f"whether the model was trained on these images was not seen: {error}",)
    assert data.test is not None
    pairs = zip(data.test.paths, _files(data.test), strict=False)
    if known := [path for path, file in pairs if file in trained]:
        raise UsageError(
            f"{source}: expected images that the model was not trained on, found {len(known)} of {len(data.test)} that it was "
            f"({first_of(known, 3)}); take others"
        )
    return ()


def _files(part: Split | None) -> Iterator[str]:
    """Where each image of `part` is, whatever links there are to its folder; nothing of images in arrays and archives."""
    if part is None or not isinstance(part.images, FileImages) or part.images.archive:
        return
    real = cache(os.path.realpath)
    for path in part.paths:
        # A `Path` for each of a million images takes long.
        folder, name = os.path.split(os.path.join(part.images.root, path))  # noqa: PTH118
        yield f"{real(folder)}/{name}"


def _cross_fitted(logits: Tensor, labels: Tensor, groups: Groups) -> Tensor:
    """Logits divided by the temperature that the other four fifths of the images want, or of their groups."""
    scaled = torch.empty_like(logits, dtype=torch.float64)
    units = torch.from_numpy(units_of(len(labels), groups, most=len(labels)))
    order = torch.from_numpy(permutation(0, "calibration", 0, int(units.max()) + 1))
    for held_out in order.tensor_split(min(_FOLDS, len(order))):
        inside = torch.isin(units, held_out)
        scaled[inside] = logits[inside].double() / _any_temperature(logits[~inside], labels[~inside])
    return scaled


def _any_temperature(logits: Tensor, labels: Tensor) -> float:
    """As `fit_temperature`; 1 where these images do not settle one."""
    try:
        return fit_temperature(logits, labels)
    except DataError:
        return 1.0


def _honesty(logits: Tensor, labels: Tensor, groups: Groups) -> Honesty:
    losses = F.cross_entropy(logits.double(), labels, reduction="none").numpy()
    probabilities = logits.double().softmax(dim=1)
    confidences, predictions = (each.numpy() for each in probabilities.max(dim=1))
    correct = predictions == labels.numpy()
    units = units_of(len(losses), groups)
    together = None if groups is None else units
    sums = np.stack([np.bincount(units, losses), np.bincount(units)], axis=1)
    loss = float(losses.mean())
    samples = bootstrap(sparse.csr_array(sums), lambda drawn: drawn[:, :1] / drawn[:, 1:])[:, 0]
    return Honesty(
        loss=loss,
        loss_ci95=interval_of(accelerated_interval(loss, samples, sums[:, 0] - loss * sums[:, 1])),
        ece=debiased_calibration_error(confidences, correct),
        ece_ci95=calibration_error_interval(confidences, correct, units=together),
        smooth_ece=smooth_calibration_error(confidences, correct),
        reliability=reliability_bins(confidences, correct, units=together),
    )
