"""What comes after training: the best weights are tested once, and the outcome is written down."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from visus.assembling import Assembly
from visus.checkpoint import divide_logits, load_checkpoint, load_tensors, model_digest
from visus.display import Display, plural
from visus.errors import UsageError
from visus.files import write_json
from visus.models.lora import merge_lora
from visus.plots import plot_confusion, plot_reliability
from visus.profiling import Profile
from visus.recording import RunRecorder
from visus.runs import History, RunFolder
from visus.tables import usual_suffix

if TYPE_CHECKING:
    from visus.evaluation import Scores


@dataclass(frozen=True)
class Run:
    """What a run came to."""

    run: str
    epochs: int
    steps: int
    seconds: float
    """Of the training phases."""
    images_per_second: float
    best: dict[str, Any]
    final: dict[str, Any]
    test: dict[str, Any] | None
    checkpoints: dict[str, str]
    digest: str
    """Of the final weights."""
    skipped: int
    """Files that were left out."""
    findings: int
    skipped_steps: int = 0
    """Updates that were left out, since their loss or gradient was not finite."""
    failure: str | None = None
    """What could not be written, if anything."""

    def to_json(self) -> dict[str, Any]:
        """The document of `visus train --json`."""
        document = dataclasses.asdict(self)
        del document["failure"]
        return document


def finish(
    assembly: Assembly, recorder: RunRecorder, history: History, inexact: set[str], findings: int
) -> Run:
    """What comes after training, in the first process."""
    run, display = assembly.run, assembly.display
    if inexact:
        _say_inexact(assembly, recorder, inexact)
    # Before the best weights take the place of the final ones.
    digest = model_digest(assembly.state.model.state_dict())
    scores = _test(assembly, recorder)
    result = _result(assembly, scores, recorder, history, digest, findings)
    recorder.attempt(run.summary, lambda: write_json(run.summary, result.to_json()))
    display.line(
        f"Best model: {run.best}\nFinal model: {run.last}\nCurves: {run.path / 'loss_accuracy.png'}\n"
        f"Confusion matrix: {run.path / 'confusion.png'}"
    )
    return result


def keep_profile(profiling: Profile, run: RunFolder, recorder: RunRecorder, display: Display) -> None:
    """Say where the time went, and keep it, with a trace."""
    if not profiling.steps:
        return
    recorder.attempt(run.profile, lambda: write_json(run.profile, profiling.to_json()))
    recorder.attempt(run.trace, lambda: profiling.write_trace(run.trace))
    display.line(f"{profiling}\nTrace for ui.perfetto.dev: {run.trace}")


def _say_inexact(assembly: Assembly, recorder: RunRecorder, operations: set[str]) -> None:
    """Tell, and keep in `environment.json`, what makes this run differ from its repetition."""
    names, path = sorted(operations), assembly.run.environment
    assembly.display.line(f"not the same bits each time: no deterministic kernel for {', '.join(names)}")

    def add() -> None:
        environment = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, environment | {"not_deterministic": names})

    recorder.attempt(path, add)


def _test(assembly: Assembly, recorder: RunRecorder) -> Scores:
    """Evaluate the best weights once: on the test part, or where there is none on the validation part.

    Where the best could not be written, those of the last epoch.
    """
    from visus.scoring import Wanted  # loads scipy, which training needs no room for
    from visus.testing import Evaluation, notes_on_groups, score_split

    config, prepared, display = assembly.config, assembly.prepared, assembly.display
    data, run, model = prepared.data, assembly.run, assembly.state.weights
    part = data.test or prepared.val
    temperature = 1.0
    if run.best.exists():
        merge_lora(model)
        best = load_checkpoint(run.best)
        load_tensors(model, best.model_tensors, run.best)
        if (temperature := best.temperature) != 1:
            divide_logits(model, temperature)
    began = time.perf_counter()
    table = run.path / f"predictions{usual_suffix()}"
    options: Any = {
        "batch_size": config.val_batch_size,
        "device": assembly.device,
        "amp": config.amp,
        "workers": config.workers,
    }
    try:
        scores = score_split(model, part, prepared.preprocessing, predictions=table, **options)
    except (OSError, UsageError) as error:
        display.line(f"{table}: could not be written ({error})")
        scores = score_split(model, part, prepared.preprocessing, **options)
    for other in {run.path / "predictions.csv", run.path / "predictions.parquet"} - {table}:
        with contextlib.suppress(OSError):
            other.unlink(missing_ok=True)
    found = Evaluation(part.name, scores, (), (), prepared.tested, temperature)
    recorder.attempt(run.evaluation, lambda: write_json(run.evaluation, found.to_json()))
    picture = run.path / "confusion.png"
    recorder.attempt(
        picture, lambda: plot_confusion(scores.confusion, data.classes, picture, warn=display.line)
    )
    reliability = run.path / "reliability.png"
    recorder.attempt(reliability, lambda: plot_reliability({part.name: scores.reliability}, reliability))
    low, high = scores.accuracy_ci95
    over = "" if scores.groups is None else f" over {plural(scores.groups, 'group')}"
    for note in notes_on_groups(part, Wanted()):
        display.line(note)
    display.line(
        f"Accuracy of the best model on the {scores.n} {part.name} images: {100 * scores.accuracy:.2f}% "
        f"(95 % interval{over} {100 * low:.2f} to {100 * high:.2f}; {time.perf_counter() - began:.2f}s)"
    )
    return scores


def _result(
    assembly: Assembly,
    scores: Scores,
    recorder: RunRecorder,
    history: History,
    digest: str,
    findings: int,
) -> Run:
    run, state, data = assembly.run, assembly.state, assembly.prepared.data
    test = {
        "n": scores.n,
        "accuracy": scores.accuracy,
        "accuracy_ci95": list(scores.accuracy_ci95),
        "groups": scores.groups,
    }
    return Run(
        run=str(run.path),
        epochs=state.epoch,
        steps=state.step,
        seconds=state.seconds,
        images_per_second=state.images / state.seconds,
        best={"epoch": state.best_epoch, "accuracy": state.best_accuracy},
        final={"loss": history["loss"]["val"][-1], "accuracy": history["acc"]["val"][-1]},
        test=test if data.test else None,
        checkpoints={"best": str(run.best), "last": str(run.last)},
        digest=digest,
        skipped=len(data.skipped),
        findings=findings,
        skipped_steps=state.skipped_steps,
        failure=recorder.failure,
    )
