"""How good a model is, with intervals.

`N` images, `K` classes. Accuracies are fractions; an interval is (low, high).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

from visus.errors import DataError
from visus.inference import predict_logits
from visus.ops.losses import cross_entropy_sum
from visus.ops.metrics import correct_counts

Interval = tuple[float, float]
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

    def to_json(self) -> dict[str, Any]:
        """As plain values; a loss that is not finite is null."""
        loss = self.loss if np.isfinite(self.loss) else None
        return asdict(self) | {"loss": loss, "confusion": self.confusion.tolist(), "skipped": 0}

    def __str__(self) -> str:
        low, high = self.accuracy_ci95
        lines = [
            f"accuracy on {self.n} images: {100 * self.accuracy:.2f}% (95 % interval {100 * low:.2f} to {100 * high:.2f}), "
            f"top 5: {100 * self.top5:.2f}%, loss: {self.loss:.4f}"
        ]
        for each in self.per_class:
            share = "none" if each["accuracy"] is None else f"{100 * each['accuracy']:.2f}%"
            lines.append(f"{each['name']}: {share} ({each['correct']} of {each['n']})")
        return "\n".join(lines)


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    classes: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Scores:
    """Score `model` on batches of `(images [N, C, H, W], targets [N] or [N, K])`, streaming.

    `DataError` where there is no image, or a target that the model has no output for.
    """
    loss: Tensor | float = 0.0
    top5: Tensor | int = 0
    labels, predictions = [], []
    outputs = 0
    for logits, targets in predict_logits(model, batches, device=device):
        hard = targets.argmax(dim=1) if targets.dim() == 2 else targets
        outputs = logits.shape[1]
        # A label without an output is found below, where the device is waited for anyway; here it must not index anything.
        inside = hard.clamp(0, outputs - 1)
        loss = loss + cross_entropy_sum(logits.double(), inside)[0]
        top5 = top5 + correct_counts(logits, inside, (5,))[0]
        labels.append(hard)
        predictions.append(_predict(logits))
    if not labels:
        raise DataError("expected images to evaluate, found none")
    true, predicted = torch.cat(labels).cpu().numpy(), torch.cat(predictions).cpu().numpy()
    table = confusion_matrix(true, predicted, outputs)
    n, correct = len(true), int(table.trace())
    return Scores(
        n=n,
        loss=float(loss) / n,
        accuracy=correct / n,
        accuracy_ci95=wilson(correct, n),
        top5=int(top5) / n,
        confusion=table[:, :outputs],
        per_class=class_scores(table, classes or [str(each) for each in range(outputs)]),
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


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's interval for a proportion (Wilson, Probable Inference, 1927)."""
    interval = stats.binomtest(correct, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def _predict(logits: Tensor) -> Tensor:
    """The class of each image; K, which is none, where an output is NaN."""
    return torch.where(logits.isnan().any(dim=1), logits.shape[1], logits.argmax(dim=1))
