"""Three sentences: how good the model is, whether its confidence can be believed, and what is wrong with the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from visus.display import plural
from visus.ops.intervals import Interval, wilson
from visus.reporting.reading import Predictions, RunResults, clean
from visus.reporting.wording import count, isolated, part_name, percent, percent_range

Tone = Literal["good", "doubtful", "bad", "unknown"]
_CALIBRATED = 0.02
"""Of the calibration error: two points between what is said and what is so disturb few decisions."""
_UNTOLD = 0.1
"""A calibration error that may be as large is not called small, whatever it came to."""
_TONES: dict[str, Tone] = {"high": "bad", "medium": "doubtful"}
_GRAVE: tuple[tuple[Tone, str], ...] = (
    ("bad", "The data has faults that matter"),
    ("doubtful", "The data is worth a look"),
)


@dataclass(frozen=True)
class Sentence:
    """One of the three."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class Verdict:
    """What the first screen says. Accuracies are fractions."""

    accuracy: float | None
    interval: Interval | None
    n: int
    part: str
    """`test` or `val`."""
    baseline: float | None
    """The accuracy of always answering the commonest class of the training part."""
    baseline_class: str | None
    sentences: list[Sentence]


def judge(results: RunResults, against: str = "") -> Verdict:
    """The verdict on one run; `against` another, if it is not empty, is told after its accuracy."""
    accuracy, n, part = _accuracy(results)
    interval = _interval(results, accuracy, n)
    baseline_class, baseline = _majority(results, part)
    verdict = Verdict(accuracy, interval, n, part, baseline, baseline_class, [])
    groups = (results.evaluation or {}).get("groups")
    over = f" over {plural(groups, 'group')}" if groups else ""
    verdict.sentences.extend(
        [_on_accuracy(verdict, over, against), _on_calibration(results), _on_data(results)]
    )
    return verdict


def _accuracy(results: RunResults) -> tuple[float | None, int, str]:
    """The accuracy on the evaluated part; before there is one, the best on validation so far."""
    evaluation = results.evaluation
    if evaluation and evaluation.get("accuracy") is not None:
        return evaluation["accuracy"], evaluation["n"], evaluation.get("split", "test")
    if validated := results.phase("val"):
        best = max(validated, key=lambda record: record["accuracy"])
        return best["accuracy"], best["n"], "val"
    return None, 0, "val"


def _interval(results: RunResults, accuracy: float | None, n: int) -> Interval | None:
    stated = (results.evaluation or {}).get("accuracy_ci95")
    if stated:
        return stated[0], stated[1]
    return wilson(round(accuracy * n), n) if accuracy is not None and n else None


def _majority(results: RunResults, part: str) -> tuple[str | None, float | None]:
    """The commonest class in training, and its share of `part`."""
    listing = results.listing
    if listing is None or not listing.count("train") or not listing.count(part):
        return None, None
    commonest = max(sorted(listing.images["train"]), key=lambda name: listing.count("train", name))
    return commonest, listing.count(part, commonest) / listing.count(part)


def _on_accuracy(verdict: Verdict, over: str, against: str) -> Sentence:
    if verdict.accuracy is None or verdict.interval is None:
        return Sentence("Nothing has been measured yet: the first epoch is not over.", "unknown")
    low, high = verdict.interval
    told = (
        f"It is right on {percent(verdict.accuracy)} of {verdict.n:,} {part_name(verdict.part)} images "
        f"(95\u00a0% interval{over} {percent_range(low, high)})"
    )
    beyond, tone = _against_majority(verdict, low)
    chosen = ""
    if verdict.part == "val":
        chosen = ", which flatters, as the best epoch was chosen on them"
        tone = "doubtful" if tone == "good" else tone
    return Sentence(f"{told}{against}{chosen}{beyond}.", tone)


def _against_majority(verdict: Verdict, low: float) -> tuple[str, Tone]:
    if verdict.baseline is None or verdict.baseline_class is None:
        return "", "good"
    always = f"always answering {isolated(verdict.baseline_class)}, the commonest training class"
    if low > verdict.baseline:
        return f"; {always}, would be right on {percent(verdict.baseline)}", "good"
    return f", which is not shown to be better than {always} ({percent(verdict.baseline)})", "bad"


def _on_calibration(results: RunResults) -> Sentence:
    evaluation = results.evaluation or {}
    error, predictions = evaluation.get("ece"), results.predictions
    if error is None or (predictions is not None and np.isnan(predictions.confidence).all()):
        return Sentence("Whether its confidence can be believed has not been measured.", "unknown")
    if predictions is None:
        told = f"the calibration error is {percent(error)}"
        return Sentence(
            f"Whether it is too sure, or not sure enough, only its predictions tell; {told}.", "unknown"
        )
    sentence = _on_confidence(evaluation, error, predictions)
    return replace(sentence, text=sentence.text + _fitted_since(results))


def _on_confidence(evaluation: Mapping[str, Any], error: float, predictions: Predictions) -> Sentence:
    """How sure the model is beside how often it is right; `error` is the calibration error."""
    has = np.isfinite(predictions.confidence)
    confidence = float(predictions.confidence[has].mean())
    accuracy = float(predictions.correct[has].mean())
    beyond = f"calibration error {percent(error)}" if error else "no calibration error beyond chance"
    said = f"it is {percent(confidence)} sure on average and right on {percent(accuracy)} ({beyond})"
    if error <= _CALIBRATED:
        highest = (evaluation.get("ece_ci95") or (error, error))[1]
        if highest > _UNTOLD:
            few = f"{int(has.sum()):,} images are too few to tell whether its confidence can be believed"
            return Sentence(f"{few}: {said}, which may be {percent(highest)} as well.", "unknown")
        return Sentence(f"Its confidence can be believed: {said}.", "good")
    # Over groups, where the run's intervals are.
    stated = evaluation.get("accuracy_ci95") if evaluation.get("groups") else None
    low, high = stated or wilson(int(predictions.correct[has].sum()), int(has.sum()))
    if confidence > high:
        return Sentence(f"It is surer than it should be: {said}.", "doubtful")
    if confidence < low:
        return Sentence(f"It is less sure than it could be: {said}.", "doubtful")
    return Sentence(f"Its confidence is right on average and wrong in places: {said}.", "doubtful")


def _fitted_since(results: RunResults) -> str:
    """That `visus calibrate` has come after the evaluation, where it has."""
    fitted, evaluated = (
        float((each or {}).get("temperature", 1.0)) for each in (results.checkpoint, results.evaluation)
    )
    if fitted == evaluated:
        return ""
    return f" A temperature of {fitted:.4f} has been fitted since; visus train --resume of this run evaluates it anew, with it."


def _on_data(results: RunResults) -> Sentence:
    skipped = (results.summary or {}).get("skipped", 0)
    left_out = f" {plural(skipped, 'file')} could not be used, and left out." if skipped else ""
    if results.audit is None:
        return Sentence(f"The data has not been audited.{left_out}", "unknown")
    findings = results.audit.get("findings", [])
    for tone, words in _GRAVE:
        if some := [each for each in findings if tone_of(each) == tone]:
            return Sentence(f"{words}: {_summary(some)}.{left_out}", tone)
    if results.audit.get("form") == "short":
        copies = "" if results.audit.get("notes") else ", no image that is there twice"
        return Sentence(
            f"No broken file{copies} and no class too small was found in the data; near copies, wrong labels and the like are "
            f"looked for by visus audit.{left_out}",
            "good",
        )
    return Sentence(f"The audit of the data found no fault that matters.{left_out}", "good")


def _summary(findings: list[Mapping[str, Any]]) -> str:
    """What one finding says; of several, how many of which kind there are, and what the first says."""
    message = clean(str(findings[0].get("message", ""))).rstrip(".")
    if len(findings) == 1:
        return message
    kinds = Counter(str(each.get("kind", "finding")).replace("_", " ") for each in findings)
    counts = ", ".join(f"{count(number)} of {kind}" for kind, number in kinds.items())
    return f"findings {counts}; the first: {message}"


def tone_of(finding: Mapping[str, Any]) -> Tone:
    """How grave a finding of the audit is."""
    return _TONES.get(str(finding.get("severity", "")), "unknown")
