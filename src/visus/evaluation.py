"""How good a model is, with intervals.

`N` images, `K` classes. Accuracies are fractions; an interval is (low, high).
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from visus.display import Display, Progress
from visus.errors import DataError
from visus.inference import predict_logits
from visus.ops.calibration_error import debiased_calibration_error, plain_calibration_error
from visus.ops.intervals import Interval, wilson
from visus.ops.losses import cross_entropy_sum
from visus.ops.metrics import correct_counts

Counts = npt.NDArray[np.int64]


class ClassScores(TypedDict):
    """One class; `None` where there is nothing to divide by."""

    name: str
    n: int
    correct: int
    accuracy: float | None
    ci95: Interval | None
    precision: float | None
    recall: float | None
    f1: float | None


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
    skipped: int = 0
    """Images that could not be used."""

    def to_json(self, level: float = 0.95) -> dict[str, Any]:
        """As plain values; a loss that is not finite is null.

        At another `level` than 0.95 the intervals' keys are `accuracy_ci` and `ci`, and `ci_level` stands beside them.
        """
        loss = self.loss if np.isfinite(self.loss) else None
        document = asdict(self) | {"loss": loss, "confusion": self.confusion.tolist()}
        if level == 0.95:
            return document
        correct = round(self.accuracy * self.n)
        document["per_class"] = [_at_level(each, level) for each in self.per_class]
        renamed = {k.removesuffix("95"): v for k, v in document.items()}
        return renamed | {"accuracy_ci": wilson(correct, self.n, level), "ci_level": level}

    def to_text(self, level: float = 0.95) -> str:
        """As people read it: the totals, and a row for each class."""
        correct = round(self.accuracy * self.n)
        header = (
            f"accuracy on {self.n} images: {_percent(self.accuracy)} "
            f"({100 * level:g} % interval {_range(wilson(correct, self.n, level))}), "
            f"top 5: {_percent(self.top5)}, loss: {self.loss:.4f}, calibration error: {self.ece:.4f}"
        )
        return f"{header}\n\n{_table([_at_level(each, level) for each in self.per_class])}"

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
) -> Scores:
    """Score `model` on batches of `(images [N, C, H, W], targets [N] or [N, K])`, streaming.

    `amp` is `off`, `bf16` or `fp16`; `display` shows progress. `DataError` where there is no image, or a target that the model has
    no output for.
    """
    outputs = predict_logits(model, batches, device=device, amp=amp)
    iterations = len(batches) if isinstance(batches, Sized) else None
    return score(outputs, classes, display=display, iterations=iterations)


def score(
    outputs: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[str] | None = None,
    *,
    display: Display | None = None,
    iterations: int | None = None,
) -> Scores:
    """The scores of pairs of logits `[N, K]` and targets; as `evaluate`."""
    loss: Tensor | float = 0.0
    top5: Tensor | int = 0
    hits: Tensor | int = 0
    labels, predictions, confidences = [], [], []
    width = seen = 0
    began = time.perf_counter()
    for logits, targets in outputs:
        hard = targets.argmax(dim=1) if targets.dim() == 2 else targets
        width = logits.shape[1]
        # A label without an output is found below, where the device is waited for anyway; here it must not index anything.
        inside = hard.clamp(0, width - 1)
        batch_loss = cross_entropy_sum(logits.double(), inside)[0]
        loss = loss + batch_loss
        top5 = top5 + correct_counts(logits, inside, (5,))[0]
        labels.append(hard)
        predictions.append(_predict(logits))
        confidences.append(logits.softmax(dim=1).amax(dim=1).nan_to_num(0.0))
        hits, seen = hits + (predictions[-1] == hard).sum(), seen + len(hard)
        if display and display.due():
            seconds, means = time.perf_counter() - began, (float(batch_loss) / len(hard), float(loss) / seen)
            display.progress(Progress(len(labels), iterations, seconds, *means, int(hits), seen, phase="val"))
    if not labels:
        raise DataError("expected images to evaluate, found none")
    true, predicted = torch.cat(labels).cpu().numpy(), torch.cat(predictions).cpu().numpy()
    confidence = torch.cat(confidences).double().cpu().numpy()
    table = confusion_matrix(true, predicted, width)
    n, correct = len(true), int(table.trace())
    return Scores(
        n=n,
        loss=float(loss) / n,
        accuracy=correct / n,
        accuracy_ci95=wilson(correct, n),
        top5=int(top5) / n,
        confusion=table[:, :width],
        per_class=class_scores(table, classes or [str(each) for each in range(width)]),
        ece=debiased_calibration_error(confidence, true == predicted),
        ece_plain=plain_calibration_error(confidence, true == predicted),
    )


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


def confusion_matrix(true: Counts, predicted: Counts, classes: int) -> Counts:
    """Counts `[classes, classes + 1]` by true and predicted class; the last column holds images without a prediction (NaN)."""
    if true.min() < 0 or true.max() >= classes:
        raise DataError(
            f"expected labels from 0 to {classes - 1}, as the model has outputs, found {true.min()} to {true.max()}"
        )
    flat = np.bincount(true * (classes + 1) + predicted, minlength=classes * (classes + 1))
    return flat.reshape(classes, classes + 1)


def class_scores(table: Counts, classes: Sequence[str]) -> list[ClassScores]:
    """Accuracy (which for one class is its recall), precision and F1 of each class."""
    scores: list[ClassScores] = []
    for index, name in enumerate(classes):
        n, correct, predicted = (
            int(table[index].sum()),
            int(table[index, index]),
            int(table[:, index].sum()),
        )
        recall = correct / n if n else None
        scores.append(
            {
                "name": name,
                "n": n,
                "correct": correct,
                "accuracy": recall,
                "ci95": wilson(correct, n) if n else None,
                "precision": correct / predicted if predicted else None,
                "recall": recall,
                "f1": 2 * correct / (n + predicted) if n + predicted else None,
            }
        )
    return scores


def _predict(logits: Tensor) -> Tensor:
    """The class of each image; K, which is none, where an output is NaN."""
    return torch.where(logits.isnan().any(dim=1), logits.shape[1], logits.argmax(dim=1))


def _at_level(scores: ClassScores, level: float) -> dict[str, Any]:
    """With `ci` at `level` in the place of `ci95`."""
    interval = wilson(scores["correct"], scores["n"], level) if scores["n"] else None
    return {("ci" if key == "ci95" else key): value for key, value in scores.items()} | {"ci": interval}


def _table(rows: list[dict[str, Any]]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("class", no_wrap=True)
    for heading in ("n", "correct", "accuracy", "interval", "precision", "f1"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        shares = [
            _percent(row["accuracy"]),
            _range(row["ci"]),
            _percent(row["precision"]),
            _percent(row["f1"]),
        ]
        table.add_row(_plain(row["name"]), str(row["n"]), str(row["correct"]), *shares)
    # Wide enough for any name: what goes to a file must not be cut.
    console = Console(
        width=200 + max(len(row["name"]) for row in rows), color_system=None, file=io.StringIO()
    )
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _plain(name: str) -> Any:
    """A class name as it is: square brackets are no markup, line breaks no lines."""
    from rich.text import Text

    return Text(" ".join(name.split()))


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.2f}%"


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"
