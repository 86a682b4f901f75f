"""How good a model is, with intervals.

`N` images, `K` classes, `U` units that intervals resample: images, or groups of images. Shares are fractions; an interval is
(low, high), at the level asked for: 0.95 in what is named `ci95`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from visus.display import Display
from visus.errors import DataError, UsageError
from visus.inference import predict_logits
from visus.ops.abstention import Abstention, Point, coverage_area, coverage_curve, threshold_for
from visus.ops.calibration_error import (
    Bin,
    calibration_error_interval,
    debiased_calibration_error,
    plain_calibration_error,
    reliability_bins,
    smooth_calibration_error,
)
from visus.ops.confusion import Counts, averages, confusion_matrix
from visus.ops.intervals import Interval, Method
from visus.ops.resampling import Units, units_of
from visus.ops.slices import LeftOut, Slice, as_attributes, slice_scores, small_values
from visus.outcomes import Outcomes, collect, follow, how_many
from visus.score_tables import describe
from visus.scoring import (
    TOP,
    Average,
    ClassScores,
    Wanted,
    average,
    balanced_interval,
    check_groups,
    class_scores,
    rank_classes,
    resample,
    share,
)


@dataclass(frozen=True)
class Scores:
    """What an evaluation found."""

    n: int
    loss: float
    """Mean cross-entropy in nats, without smoothing or weights."""
    accuracy: float
    accuracy_ci95: Interval
    top5: float
    """1.0 with five classes or fewer."""
    confusion: Counts
    """`[true, predicted]`."""
    per_class: list[ClassScores]
    ece: float
    """How far confidence is from accuracy: `debiased_calibration_error`."""
    ece_plain: float
    """The same as most others reckon it: `plain_calibration_error`."""
    loss_ci95: Interval | None
    top5_ci95: Interval | None
    brier: float
    """Mean squared distance of the probabilities from the truth, 0 to 2."""
    brier_ci95: Interval | None
    balanced_accuracy: float
    """The mean of the classes' accuracies."""
    balanced_accuracy_ci95: Interval | None
    macro: Average
    """Every class counts the same."""
    weighted: Average
    """Every image counts the same."""
    ece_ci95: Interval | None
    smooth_ece: float
    """`smooth_calibration_error`."""
    reliability: list[Bin]
    coverage: list[Point]
    """Accuracy on the most confident images, at a hundred shares of them."""
    coverage_area: float
    """Under that curve."""
    abstention: Abstention | None
    """The threshold of the accuracy that was asked for; `None` where none was, or none can be promised."""
    slices: list[Slice]
    """Each part of the images that was looked at, and whether it is worse than the rest beyond chance."""
    slices_left_out: list[LeftOut]
    """Columns, and values of columns, that were not looked at, and why."""
    majority: dict[str, Any]
    """`name`, `accuracy`: of answering the commonest class always."""
    without_prediction: int
    """Images with an output that is NaN or infinite; they count as wrong, and take no part in the calibration."""
    groups: int | None
    """Groups that intervals resample whole."""
    ci_level: float
    ci_method: Method
    skipped: int = 0
    """Images that could not be used."""

    def to_json(self) -> dict[str, Any]:
        """As plain values; a figure that is not finite is null. Where the level is not 0.95, `ci95` in keys is `ci`."""
        document = _plain(asdict(self))
        if self.ci_level != 0.95:
            document = _renamed(document)
        return dict(document)

    def to_text(self) -> str:
        """As people read it: the totals, what is worth knowing, and a row for each class."""
        return describe(_renamed(_plain(asdict(self))))

    def __str__(self) -> str:
        return self.to_text()


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    classes: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    amp: str = "off",
    display: Display | None = None,
    wanted: Wanted | None = None,
) -> Scores:
    """Score `model` on batches of `(images [N, C, H, W], targets [N] or [N, K])`, streaming.

    `amp` is `off`, `bf16` or `fp16`; `display` shows progress. `DataError` where there is no image, or a target that the model has
    no output for.
    """
    outputs = predict_logits(model, batches, device=device, amp=amp)
    followed = follow(outputs, display=display, iterations=how_many(batches))
    return score(collect(followed), classes, wanted)


def score(outcomes: Outcomes, classes: Sequence[str] | None = None, wanted: Wanted | None = None) -> Scores:
    """The scores of `outcomes`; as `evaluate`."""
    wanted = wanted or Wanted()
    if wanted.accuracy and wanted.groups is not None:
        raise UsageError(
            "--wanted-accuracy: what it promises is for images that are independent; leave --groups out"
        )
    names = classes or [str(each) for each in range(outcomes.classes)]
    table = confusion_matrix(outcomes.labels, outcomes.predictions, outcomes.classes)
    n, correct = len(outcomes.labels), outcomes.correct
    units = None if wanted.groups is None else units_of(n, check_groups(wanted.groups, n), most=n)
    resampled = resample(outcomes, wanted)
    rankings = rank_classes(outcomes, units, wanted.level)
    means = averages(table.sum(axis=1), table[:, :-1].sum(axis=0), table[:, :-1].diagonal())
    in_top = outcomes.ranks < TOP if outcomes.classes > TOP else np.ones(n, dtype=bool)
    per_class = class_scores(table, names, wanted, resampled, rankings.per_class)
    accuracy_ci95 = share(int(correct.sum()), n, wanted, resampled["accuracy"])
    resampled["weighted_recall"] = accuracy_ci95
    resampled["macro_recall"] = balanced_interval(per_class, wanted, resampled["macro_recall"])
    commonest = int(table.sum(axis=1).argmax())
    columns, left_out = as_attributes(wanted.attributes)
    attributes = {"class": [names[label] for label in outcomes.labels], **columns}
    return Scores(
        n=n,
        loss=float(outcomes.losses.mean()),
        accuracy=float(correct.mean()),
        accuracy_ci95=accuracy_ci95 or (0.0, 1.0),
        top5=float(in_top.mean()),
        confusion=table[:, :-1],
        per_class=per_class,
        loss_ci95=resampled["loss"],
        top5_ci95=share(int(in_top.sum()), n, wanted, resampled["top5"]),
        brier=float(outcomes.briers.mean()),
        brier_ci95=resampled["brier"],
        balanced_accuracy=float(means.macro_recall),
        balanced_accuracy_ci95=resampled["macro_recall"],
        macro=average("macro", means, resampled, rankings.macro),
        weighted=average("weighted", means, resampled, rankings.weighted),
        **_calibration(outcomes, units, wanted.level),
        coverage=coverage_curve(outcomes.confidences, correct),
        coverage_area=coverage_area(outcomes.confidences, correct),
        abstention=threshold_for(wanted.accuracy, outcomes.confidences, correct, wanted.level)
        if wanted.accuracy
        else None,
        slices=slice_scores(attributes, correct, level=wanted.level, units=units),
        slices_left_out=left_out + small_values(attributes),
        majority={"name": names[commonest], "accuracy": float(table.sum(axis=1).max() / n)},
        without_prediction=int(table[:, -1].sum()),
        groups=None if units is None else int(units.max()) + 1,
        ci_level=wanted.level,
        ci_method=wanted.method if units is None else "bootstrap",
    )


def _calibration(outcomes: Outcomes, units: Units | None, level: float) -> dict[str, Any]:
    """How honest the confidences are of those images that have one."""
    has = outcomes.predictions < outcomes.classes
    if not has.any():
        none = dict.fromkeys(("ece", "ece_plain", "smooth_ece"), math.nan)
        return {**none, "ece_ci95": None, "reliability": []}
    told = outcomes.confidences[has], outcomes.correct[has]
    together = None if units is None else units[has]
    return {
        "ece": debiased_calibration_error(*told),
        "ece_plain": plain_calibration_error(*told),
        "smooth_ece": smooth_calibration_error(*told),
        "ece_ci95": calibration_error_interval(*told, level, together),
        "reliability": reliability_bins(*told, level, together),
    }


def predict_labels(
    model: nn.Module, batches: Iterable[Any], *, device: torch.device | str = "cpu"
) -> tuple[Counts, Counts]:
    """The true and the predicted classes, two integer arrays `[N]`; of equal outputs the first class is predicted."""
    pairs = [
        (targets.argmax(dim=1) if targets.dim() == 2 else targets, logits.argmax(dim=1))
        for logits, targets in predict_logits(model, batches, device=device)
    ]
    if not pairs:
        raise DataError("expected images to predict, found none")
    true, predicted = (torch.cat(column).cpu().numpy() for column in zip(*pairs, strict=True))
    return true, predicted


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _renamed(value: Any) -> Any:
    """`value` with `ci` for `ci95` in its keys."""
    if isinstance(value, dict):
        return {key.replace("ci95", "ci"): _renamed(each) for key, each in value.items()}
    return [_renamed(each) for each in value] if isinstance(value, list) else value
