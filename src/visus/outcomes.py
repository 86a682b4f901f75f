"""What a model made of each image: what scores are made of.

`N` images, `K` classes. A few numbers are kept for each image, and of the probabilities, which may be many, one copy.
"""

from __future__ import annotations

import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from visus.display import Display, Progress
from visus.errors import DataError
from visus.ops.confusion import Counts
from visus.ops.metrics import no_prediction, ranks

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

_BLOCK = 4096
_MEMORY_BYTES = 1 << 30


class ByColumn:
    """Rows `[N, K]`, added some at a time and read column by column.

    One copy of them is kept, in blocks of 4,096 rows: in memory up to 1 GiB, beyond in a temporary file, which goes when this
    object does. Rows are copied to a block as they come: many small arrays, kept while those of a model come and go, would leave
    the free memory in pieces too small for it.
    """

    def __init__(self, dtype: npt.DTypeLike = np.float32, *, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._dtype = np.dtype(dtype)
        self._memory_bytes = memory_bytes
        self._blocks: list[Array] = []
        self._open: Array | None = None
        self._filled = 0
        self._bytes = 0
        self._file: Any = None

    def add(self, rows: Array) -> None:
        """The next `[n, K]`."""
        while len(rows):
            if self._open is None:
                self._open, self._filled = np.empty((_BLOCK, rows.shape[1]), self._dtype), 0
            some = rows[: _BLOCK - self._filled]
            end = self._filled + len(some)
            self._open[self._filled : end] = some
            rows, self._filled = rows[len(some) :], end
            if end == _BLOCK:
                self._close()

    def column(self, place: int) -> Array:
        """`[N]`."""
        return np.concatenate([block[place] for block in self.blocks()])

    def blocks(self) -> tuple[Array, ...]:
        """`[K, n]` each, in order, n 4,096 but for the last; no row is added after that."""
        self._close()
        return tuple(self._blocks)

    def _close(self) -> None:
        if self._open is None:
            return
        block = np.ascontiguousarray(self._open[: self._filled].T)
        self._open = None
        self._bytes += block.nbytes
        self._blocks.append(block if self._bytes <= self._memory_bytes else self._on_disk(block))

    def _on_disk(self, block: Array) -> Array:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="visus-")  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        place = self._file.seek(0, 2)
        block.tofile(self._file)
        self._file.flush()
        return np.memmap(self._file, dtype=self._dtype, mode="r", offset=place, shape=block.shape)


@dataclass(frozen=True)
class Outcomes:
    """Of each image, in order."""

    classes: int
    labels: Counts
    """`[N]`"""
    predictions: Counts
    """`[N]`; K where there is `no_prediction`."""
    confidences: Floats
    """The probability of the predicted class `[N]`; 0 where there is none."""
    losses: Floats
    """Cross-entropy in nats `[N]`."""
    briers: Floats
    """Brier's score `[N]`: the squared distance of the probabilities from the truth, 0 to 2 (Brier, 1950)."""
    ranks: Counts
    """How many classes come before the true one `[N]`; K where there is `no_prediction`."""
    probabilities: ByColumn
    """`[N, K]`, float32."""

    @property
    def correct(self) -> Bools:
        """`[N]`"""
        found: Bools = self.labels == self.predictions
        return found


@dataclass(frozen=True)
class Outputs:
    """What was found of some images, where their logits are."""

    logits: Tensor
    labels: Tensor
    predictions: Tensor
    losses: Tensor


def follow(
    outputs: Iterable[tuple[Tensor, Tensor]], *, display: Display | None = None, iterations: int | None = None
) -> Iterator[Outputs]:
    """Labels, predictions and losses of pairs of logits `[n, K]` and targets `[n]` or `[n, K]`, while `display` shows progress."""
    total_loss: Tensor | float = 0.0
    hits: Tensor | int = 0
    seen = 0
    began = time.perf_counter()
    for done, (logits, targets) in enumerate(outputs, start=1):
        labels = targets.argmax(dim=1) if targets.dim() == 2 else targets
        # A label without an output is found later, where the device is waited for anyway; here it must not index anything.
        inside = labels.clamp(0, logits.shape[1] - 1)
        losses = F.cross_entropy(logits.double(), inside, reduction="none")
        found = Outputs(logits, labels, predict(logits), losses)
        total_loss = total_loss + losses.sum()
        hits, seen = hits + (found.predictions == labels).sum(), seen + len(labels)
        if display and display.due():
            seconds, means = time.perf_counter() - began, (float(losses.mean()), float(total_loss) / seen)
            display.progress(Progress(done, iterations, seconds, *means, int(hits), seen, phase="val"))
        yield found
    if not seen:
        raise DataError("expected images to evaluate, found none")


def how_many(batches: Iterable[Any]) -> int | None:
    """The number of `batches`, where it is known beforehand."""
    return len(batches) if isinstance(batches, Sized) else None


def collect(batches: Iterable[Outputs]) -> Outcomes:
    """All that scores need of `batches`, on the CPU."""
    kept, figures = ByColumn(), ByColumn(np.float64)
    width = 0
    for batch in batches:
        width = batch.logits.shape[1]
        probabilities = batch.logits.softmax(dim=1)
        inside = batch.labels.clamp(0, width - 1)
        exact = probabilities.double()
        own = exact.gather(1, inside[:, None])[:, 0]
        brier = exact.square().sum(dim=1) - 2 * own + 1
        confidences = probabilities.amax(dim=1).nan_to_num(0.0)
        found = (
            batch.labels,
            batch.predictions,
            confidences,
            batch.losses,
            brier,
            ranks(batch.logits, inside),
        )
        figures.add(torch.stack([each.double() for each in found], dim=1).cpu().numpy())
        kept.add(probabilities.cpu().numpy())
    labels, predictions, confident, losses, briers, places = map(figures.column, range(6))
    labels, predictions, places = (each.astype(np.int64) for each in (labels, predictions, places))
    return Outcomes(width, labels, predictions, confident, losses, briers, places, kept)


def predict(logits: Tensor) -> Tensor:
    """The class of each image; K, which is none, where there is `no_prediction`."""
    return torch.where(no_prediction(logits), logits.shape[1], logits.argmax(dim=1))
