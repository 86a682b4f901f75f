"""What `visus evaluate` does: the model of a checkpoint on a part of a data set.

`N` images, `K` classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from visus.amp import amp_that_works
from visus.checkpoint import Checkpoint, rebuild_model
from visus.config import absolute
from visus.data.attributes import file_attributes
from visus.data.batching import Batch, EvaluationBatches
from visus.data.cache import Cache
from visus.data.images import Data, Skipped, Split, map_classes
from visus.data.keeping import decode_once
from visus.data.listing import part_fingerprint
from visus.data.sources import open_named, read_source
from visus.devices import available_memory_bytes, computing, default_threads, own_device
from visus.errors import UsageError, first_of
from visus.evaluation import Scores, score
from visus.inference import predict_logits
from visus.ops.groups import counted_groups, is_one_group, named_apart
from visus.outcomes import Outcomes, collect, follow
from visus.preprocessing import Preprocessing
from visus.processes import ALONE, Processes, joined, refuse_other_data
from visus.scoring import Wanted
from visus.tables import WriteColumns, writing_columns

_MIRRORED = "probabilities are means over each image and its mirror image"
_NOT_INDEPENDENT = (
    "what --wanted-accuracy promises is for images that are independent, and so are all intervals beside it; some of these share a "
    "group"
)
_EXACT = "exact intervals are over images that are independent; some of these share a group"
ONE_GROUP = "all images are of one group: intervals are over images, and hold for others of that group only"


@dataclass(frozen=True)
class Evaluation:
    """The scores of a checkpoint, and what they were made on."""

    part: str
    """`train`, `val` or `test`; `all` of another source than that of the training, which has one part to train on alone."""
    scores: Scores
    notes: tuple[str, ...]
    """What was understood of the data, for people to read."""
    skipped: tuple[Skipped, ...]
    """Files that could not be used."""
    fingerprint: str
    """Of the images: `part_fingerprint`."""
    temperature: float
    """That logits were divided by."""
    tta: bool = False
    """Whether probabilities are means over an image and its mirror image."""

    def to_json(self) -> dict[str, Any]:
        """The document of `visus evaluate --json`, which is also a run's `evaluation.json`."""
        return {
            "split": self.part,
            **self.scores.to_json(),
            "fingerprint": self.fingerprint,
            "temperature": self.temperature,
            "tta": self.tta,
        }


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    source: str,
    *,
    part: str | None = None,
    device: torch.device | str = "auto",
    predictions: Path | None = None,
    wanted: Wanted | None = None,
    groups: str | None = None,
    tta: bool = False,
) -> Evaluation:
    """Score the model of `checkpoint` on a part of `source`: its test part, else validation, else all.

    The threads, kernels, precision and batch size are those of the training run, so that its figures come out again digit for
    digit. `predictions` is a file for every image's probabilities. `groups` names a column of the source: images with the same
    value there are resampled together, and `group` is that column where none is named, as for `score_split`. With `tta` every image
    is seen as its mirror image, too. Of several processes, as `torchrun` starts them, each calls this alike, runs the model on its
    share of the batches, and gets the same scores.
    Raises `DataError` for classes that the model lacks.
    """
    with joined() as processes:
        own = own_device(device, processes.local_rank, processes.local_size)
        data, fingerprint = choose_part(checkpoint, source, part)
        # Of several on one machine one decodes, and the others wait for its file.
        data = decode_for(
            checkpoint, data, cache="disk" if processes.local_size > 1 else "found", processes=processes
        )
        refuse_other_data(processes, source, (fingerprint, data.skipped))
        split = data.test
        assert split is not None
        wanted = wanted or Wanted()
        if groups is not None:
            wanted = replace(wanted, groups=_column(split, groups, source))
        with as_trained(checkpoint, own, processes) as (model, amp):
            scores = score_split(
                model,
                split,
                checkpoint.preprocessing,
                batch_size=checkpoint.config.get("val_batch_size", 100),
                device=own,
                amp=amp,
                predictions=predictions,
                wanted=wanted,
                tta=tta,
                processes=processes,
            )
    return Evaluation(
        split.name,
        replace(scores, skipped=len(data.skipped)),
        (*data.notes, *[_MIRRORED] * tta, *notes_on_groups(split, wanted)),
        data.skipped,
        fingerprint,
        checkpoint.temperature,
        tta,
    )


@contextmanager
def as_trained(
    checkpoint: Checkpoint, device: torch.device, processes: Processes = ALONE
) -> Iterator[tuple[nn.Module, str]]:
    """The model of `checkpoint` on `device`, and the precision to run it in, under the threads and kernels of its run.

    One of several `processes` takes no more threads than its share of the machine's.
    """
    config = checkpoint.config
    threads = config.get("threads")
    if processes.size > 1:
        share = default_threads(processes.local_size)
        threads = min(threads or share, share)
    with computing(threads=threads, deterministic=config.get("deterministic", True)):
        model = rebuild_model(checkpoint).to(device).to(memory_format=torch.channels_last)
        yield model, amp_that_works(config.get("amp", "off"), device)


def score_split(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    device: torch.device,
    amp: str = "off",
    predictions: Path | None = None,
    wanted: Wanted | None = None,
    workers: int | None = None,
    tta: bool = False,
    processes: Processes = ALONE,
) -> Scores:
    """Score `model` on `split`, whose classes are the model's; `predictions` is a file (CSV or Parquet) to write, if any.

    Its columns are `path`, `label` and `prediction` (both by class name), and `p_<class>` for each class. Where `wanted` names no
    groups and asks for no accuracy, images that have the same value in a column `group` are resampled together, if it has several.
    Of several `processes` the first one scores and writes.
    """
    batches = _MeasuredBatches(split, preprocessing, batch_size, processes.rank, processes.size, workers)
    outputs = predict_logits(model, batches, device=device, amp=amp, tta=tta)
    if processes.first:
        outcomes = record_outcomes(outputs, split, predictions)
    else:
        deque(outputs, maxlen=0)
    brightness = _dealt_back(processes.from_each(batches.brightness))
    scores = None
    if processes.first:
        wanted = _with_groups(wanted or Wanted(), split)
        columns = {**split_columns(split), **file_attributes(split.images), "brightness": brightness}
        scores = score(outcomes, split.classes, replace(wanted, attributes={**columns, **wanted.attributes}))
    return processes.from_first(scores)  # type: ignore[return-value]


def split_columns(split: Split) -> Mapping[str, Sequence[Any]]:
    """The columns that the source has for each image besides its path and label."""
    return {name: values.tolist() for name, values in split.columns.items()}


def choose_part(
    checkpoint: Checkpoint, source: str, part: str | None, *, advice: str = "name one of these with --split"
) -> tuple[Data, str]:
    """`source` with only the part to evaluate, as `test`, its classes brought to the model's; and its fingerprint.

    Only the source that the model was trained on has a validation part made by rule; another one that has training images alone is
    the part `all` where none is named. `UsageError` for a part that is not there, which says what to do by `advice`.
    """
    config = checkpoint.config
    own = config.get("data") == absolute(source)
    data = open_named(config) if own else read_source(source)
    chosen = _choose(data, part, advice)
    if chosen is data.train and part is None and not own:
        chosen = replace(chosen, name="all")
    fingerprint, split = part_fingerprint(chosen), map_classes(chosen, checkpoint.classes)
    absent = split.absent_classes
    notes = (*data.notes, *([f"classes without an image here: {first_of(absent)}"] if absent else []))
    return replace(data, classes=split.classes, train=None, val=None, test=split, notes=notes), fingerprint


def decode_for(
    checkpoint: Checkpoint,
    data: Data,
    *,
    cache: Cache | Literal["found"] = "found",
    progress: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
) -> Data:
    """`data` decoded as the model of `checkpoint` wants its images; those that cannot be are left out, however many they are.

    `cache` and `processes` are as for `decode_once`, and `progress(done, total)` is called for each file.
    """
    record = checkpoint.preprocessing
    return decode_once(
        data,
        channels=record.channels,
        resize=record.resize,
        interpolation=record.interpolation,
        max_bad=1.0,
        max_pixels=round(checkpoint.config.get("max_pixels", 100) * 1e6),
        memory_bytes=available_memory_bytes() // (2 * processes.local_size),
        cache=cache,
        progress=progress,
        processes=processes,
    )


def _choose(data: Data, part: str | None, advice: str) -> Split:
    parts = {"test": data.test, "val": data.val, "train": data.train}
    there = {name: each for name, each in parts.items() if each is not None and len(each)}
    if part is not None and part not in there:
        raise UsageError(f"{data.source}: expected a part {part}, found {', '.join(there)}; {advice}")
    return there[part] if part else next(iter(there.values()))


def _column(split: Split, name: str, source: str) -> Sequence[Any]:
    columns = split_columns(split)
    if name not in columns:
        there = first_of(list(columns)) or "none besides paths and labels"
        raise UsageError(f"{source}: expected a column {name!r} of groups, found {there}")
    return named_apart(columns[name])


def notes_on_groups(split: Split, wanted: Wanted) -> list[str]:
    """Where `score_split` counts images though they share values in a column `group`: what follows, for people to read."""
    groups = groups_of(split)
    if wanted.groups is not None or counted_groups(groups) is None:
        return [ONE_GROUP] if wanted.groups is None and is_one_group(groups) else []
    return [_NOT_INDEPENDENT] * bool(wanted.accuracy) + [_EXACT] * (wanted.method == "exact")


def _with_groups(wanted: Wanted, split: Split) -> Wanted:
    """Over the groups of `split`, where nobody asked for what is for images only."""
    if wanted.groups is not None or wanted.accuracy or wanted.method == "exact":
        return wanted
    return replace(wanted, groups=counted_groups(groups_of(split)))


def groups_of(split: Split) -> Sequence[str]:
    """What the column `group` says of each image; nothing where there is none."""
    return split.columns["group"].tolist() if "group" in split.columns else []


@dataclass(frozen=True)
class _MeasuredBatches(EvaluationBatches):
    """Those blocks, and the mean brightness, 0 to 1, of the images in each that was read."""

    brightness: list[list[float]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Batch]:
        mean, std = torch.tensor(self.preprocessing.mean), torch.tensor(self.preprocessing.std)
        for batch in super().__iter__():
            means = (batch.images.mean(dim=(2, 3)) * std + mean).mean(dim=1)
            self.brightness.append(means.tolist())
            yield batch


def _dealt_back(blocks: Sequence[Sequence[list[float]]]) -> list[float]:
    """The values of the blocks of every process in the order of the images: blocks were dealt one after the other."""
    rounds = zip_longest(*blocks, fillvalue=[])
    return [value for each in rounds for block in each for value in block]


def record_outcomes(
    outputs: Iterable[tuple[Tensor, Tensor]], split: Split, predictions: Path | None
) -> Outcomes:
    """What became of the images of `split`, whose `outputs` are pairs of logits and labels, and a table of it, if asked for."""
    header = ["path", "label", "prediction", *(f"p_{name}" for name in split.classes)]
    # Opened first: where nothing can be written, that is said before the model runs.
    with writing_columns(predictions, header) if predictions else nullcontext() as write:
        outcomes = collect(follow(outputs))
        if write:
            _write_rows(outcomes, split, write)
    return outcomes


def _write_rows(outcomes: Outcomes, split: Split, write: WriteColumns) -> None:
    """A row for every image; the prediction of an output that is NaN is empty."""
    end = 0
    names = (*split.classes, "")
    for probabilities in outcomes.probabilities.blocks():
        begin, end = end, end + probabilities.shape[1]
        labels, predictions = (each[begin:end].tolist() for each in (outcomes.labels, outcomes.predictions))
        write(
            [
                [split.paths[place] for place in range(begin, end)],
                ["" if label < 0 else split.classes[label] for label in labels],
                [names[best] for best in predictions],
                *probabilities,
            ]
        )
