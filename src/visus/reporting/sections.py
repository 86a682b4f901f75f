"""What each section of the page says of a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from visus.display import plural
from visus.reporting.audited import describe_findings
from visus.reporting.reading import PARTS, RunResults, clean
from visus.reporting.wording import (
    count,
    decimal,
    isolated,
    part_name,
    percent,
    percent_range,
)
from visus.score_tables import none_of

_MOST_IN_MATRIX = 60
_FEW = 12
"""Classes whose matrix leaves room beside it."""
_SMALLEST_SHARE = 0.01
_TOP = 5
_TARGETS = (0.99, 0.995, 0.999)
_VERSIONS = ("visus", "torch", "torchvision", "timm", "numpy", "pillow", "python", "platform")


def best_epoch(results: RunResults) -> int | None:
    """The epoch whose weights are kept: the first with the highest accuracy on validation."""
    validated = results.phase("val")
    return max(validated, key=lambda record: record["accuracy"])["epoch"] if validated else None


def about_data(results: RunResults, pictures: Mapping[str, int] | None = None) -> dict[str, Any]:
    """What is known of the data; `pictures` are the numbers of those that there are, by what the audit calls the image."""
    listing = results.listing
    parts = [part for part in PARTS if listing and listing.count(part)]
    names = sorted(set(results.classes) | set(listing.classes if listing else ()))
    table = [(name, [listing.count(part, name) for part in parts]) for name in names] if listing else []
    told = "Which images were in which part was not kept."
    if listing:
        counts = ", ".join(f"{count(listing.count(part))} {part_name(part)}" for part in parts)
        told = f"{plural(len(names), 'class', 'classes')}; images: {counts}. From {isolated(str(results.config.get('data', '')))}."
    audit = results.audit
    return {
        "about_data": told,
        "parts": parts,
        "classes_table": table,
        "audit": None if audit is None else describe_findings(audit, pictures or {}),
        "audit_notes": [clean(str(note)) for note in (audit or {}).get("notes", [])],
        "audited": (audit or {}).get("images", 0),
    }


def about_training(results: RunResults) -> dict[str, Any]:
    """How training went, and a row for each epoch."""
    train, val = results.phase("train"), {record["epoch"]: record for record in results.phase("val")}
    best = best_epoch(results)
    if not train:
        told = "No epoch is over yet."
    elif best is None:
        told = f"{plural(len(train), 'epoch')}, none of them validated."
    else:
        told = (
            f"{plural(results.epochs_done, 'epoch')}; the weights kept are those after epoch {best}, with "
            f"{percent(val[best]['accuracy'])} right on validation. Point at a curve for its values."
        )
    rows = [
        {
            "epoch": record["epoch"],
            "cells": [
                decimal(record["loss"]),
                decimal(other["loss"]) if other else "",
                percent(record["accuracy"], 2),
                percent(other["accuracy"], 2) if other else "",
                decimal(record["lr"]),
                count(record["images_per_second"]),
            ],
        }
        for record, other in ((record, val.get(record["epoch"])) for record in train)
    ]
    return {"about_training": told, "best_epoch": best, "epochs": rows, "time": _time(results)}


def _time(results: RunResults) -> list[tuple[str, float, float]]:
    """What took how many seconds, and which share of all that is known."""
    parts = _measured_phases(results) or {
        "training": sum(record["seconds"] for record in results.phase("train")),
        "validation": sum(record["seconds"] for record in results.phase("val")),
    }
    total = sum(parts.values())
    return [(name, seconds, seconds / total) for name, seconds in parts.items() if seconds] if total else []


def _measured_phases(results: RunResults) -> dict[str, float]:
    """Seconds by the names that `--profile` gives to what took them, the small ones together."""
    if not results.profile:
        return {}
    from visus.profiling import PHASES

    found = {each["phase"]: each for each in results.profile.get("phases", [])}
    large = {name: each for name, each in found.items() if each["share"] >= _SMALLEST_SHARE}
    rest = sum(each["seconds"] for name, each in found.items() if name not in large)
    return {PHASES.get(name, name): each["seconds"] for name, each in large.items()} | {"the rest": rest}


def about_evaluation(results: RunResults, document: Mapping[str, Any]) -> dict[str, Any]:
    """How good the weights kept are; `document` is what the page's script draws from."""
    evaluation = results.evaluation
    per_class = list((evaluation or {}).get("per_class", []))
    lows = [row["ci95"][0] for row in per_class if row.get("ci95")]
    part = part_name((evaluation or {}).get("split", "test"))
    told = "No part was evaluated yet; what validation says while training goes on is above."
    if evaluation:
        told = f"The weights kept, once, on the {count(evaluation['n'])} images of the {part} part."
        if part == "validation":
            told += " There is no test part: these images have chosen the epoch, so that the figures flatter."
        if evaluation.get("groups"):
            told += f" Intervals are over {plural(evaluation['groups'], 'group')} of images."
    return {
        "about_evaluation": told,
        "scores": _scores(evaluation) if evaluation else [],
        "per_class": [{**row, "none_of": none_of(row)} for row in per_class],
        "averages": _averages(evaluation) if evaluation else [],
        "smooth_error": (evaluation or {}).get("smooth_ece"),
        "least": int(10 * min(lows)) / 10 if lows else 0.0,
        "has_cells": bool(document["cells"]),
        "few_classes": len(document["classes"]) <= _FEW,
        "many_classes": len(document["classes"]) > _MOST_IN_MATRIX,
        "has_reliability": bool(document["reliability"]) and bool(document["coverage"]),
        "slices": [each for each in (evaluation or {}).get("slices", []) if each.get("beyond_chance")],
        "slices_left_out": (evaluation or {}).get("slices_left_out", []),
        "about_coverage": _about_coverage(document["coverage"]),
        "about_mistakes": _about_mistakes(results, document, part),
        "mistakes": document["mistakes"],
    }


def _scores(evaluation: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and interval of the figures that are there."""
    shares = [("Accuracy", "accuracy"), ("Balanced accuracy", "balanced_accuracy")]
    if len(evaluation.get("per_class", [])) > _TOP:
        shares.append((f"Among the first {_TOP}", "top5"))
    scores = [
        (name, percent(evaluation[key], 2), _interval(evaluation, key, 100))
        for name, key in shares
        if evaluation.get(key) is not None
    ]
    scores += _means(evaluation.get("macro") or {})
    for name, key in (("Log loss", "loss"), ("Brier score", "brier")):
        if evaluation.get(key) is not None:
            scores.append((name, decimal(evaluation[key]), _interval(evaluation, key, 1)))
    if evaluation.get("ece") is not None:
        scores.append(("Calibration error", percent(evaluation["ece"]), _interval(evaluation, "ece", 100)))
    return scores


def _averages(evaluation: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What each mean over the classes is called, and its scores."""
    names = (("Mean of the classes", "macro"), ("Weighted by images", "weighted"))
    return [(name, evaluation[key]) for name, key in names if evaluation.get(key)]


def _means(macro: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Of the classes, each of which counts the same."""
    found = []
    if macro.get("f1") is not None:
        found.append(("Mean F1", percent(macro["f1"], 2), _interval(macro, "f1", 100)))
    for name, key in (("Mean AUROC", "auroc"), ("Mean average precision", "average_precision")):
        if macro.get(key) is not None:
            found.append((name, decimal(macro[key]), _interval(macro, key, 1)))
    return found


def _interval(evaluation: Mapping[str, Any], key: str, scale: int) -> str:
    """The interval of a figure, where it has one."""
    found = evaluation.get(f"{key}_ci95")
    if not found or None in found:
        return ""
    return percent_range(*found) if scale == 100 else f"{decimal(found[0])} to {decimal(found[1])}"


def _about_coverage(points: list[dict[str, Any]]) -> str:
    """What it must decline to be right more often than it is."""
    for target in _TARGETS:
        if points and points[-1]["accuracy"] < target:
            enough = [point for point in points if point["accuracy"] >= target]
            if not enough:
                return f"However few it answers, it does not reach {percent(target)}."
            best = max(enough, key=lambda point: float(point["coverage"]))
            declined = percent(1 - best["coverage"])
            return (
                f"Of these images it would have been right on {percent(target)} of those that it answers, had it declined the "
                f"{declined} of which it is least sure. What can be promised of others is less; visus evaluate "
                f"--wanted-accuracy {target:g} says it."
            )
    return ""


def _about_mistakes(results: RunResults, document: Mapping[str, Any], part: str) -> str:
    if results.predictions is None:
        return "The run has no table of predictions, so that its mistakes cannot be shown."
    wrong, listed = document["mistakes"], len([row for row in document["images"] if row[1] != row[2]])
    if not wrong:
        return f"None, on the {count(len(results.predictions))} images of the {part} part."
    told = f"{plural(wrong, 'image')} of the {part} part. Those that it is surest of tell most: look for wrong labels first."
    return told if listed == wrong else f"{told} The {count(listed)} surest are listed here."


def about_model(results: RunResults, model: Mapping[str, Any]) -> dict[str, Any]:
    """What the model is; `model` is the document of its summary, empty where there is none."""
    name = str(results.config.get("model", "A model"))
    document, facts = results.checkpoint or {}, []
    if not model:
        told = f"{name}. Its layers are not told here."
    else:
        shape = "x".join(map(str, model["input"]))
        told = f"{name}, for images of {shape} (channels, height, width)."
        trained = (
            ""
            if model["trainable_params"] == model["total_params"]
            else f"{count(model['trainable_params'])} trained"
        )
        facts = [
            ("Parameters", count(model["total_params"]), trained),
            ("Their memory", f"{model['params_mb']:.4g} MiB", "float32"),
            ("One image", _flops(model["flops_per_image"]), "forward"),
        ]
        if peak := model.get("peak_training_mb"):
            facts.append(
                (
                    "A training step",
                    f"{peak:.4g} MiB",
                    f"predicted, {results.config.get('batch_size')} images",
                )
            )
    record = document.get("preprocess") or {}
    if record.get("mean"):
        values = ", ".join(
            f"{mean:.3g} ± {deviation:.3g}"
            for mean, deviation in zip(record["mean"], record["std"], strict=True)
        )
        facts.append(("Normalised by", values, "mean ± standard deviation"))
    layers = [{**layer, "shape": _shape(layer["output_shape"])} for layer in model.get("layers", [])]
    return {"about_model": told, "model_facts": facts, "layers": layers}


def _flops(number: float) -> str:
    return f"{number / 1e9:.3g} GFLOPs" if number >= 1e8 else f"{number / 1e6:.3g} MFLOPs"


def _shape(shape: list[Any]) -> str:
    return " × ".join(map(str, shape)) if all(isinstance(each, int) for each in shape) else json.dumps(shape)


def about_repeating(results: RunResults) -> dict[str, Any]:
    """What it takes to make the run again."""
    environment, document = results.environment or {}, results.checkpoint or {}
    inexact = environment.get("not_deterministic") or []
    told = (
        f"Not the same bits each time: no deterministic kernel for {', '.join(inexact)}."
        if inexact
        else "With the same versions, hardware and data, this command ends in the same bits."
    )
    devices = [
        f"{each.get('name')} ({each.get('device')}, {count(each.get('memory_mb', 0))} MB)"
        for each in environment.get("devices", [])
    ]
    rows = [
        ("Seed", results.config.get("seed", "")),
        *(("Device", each) for each in devices),
        ("Processes", environment.get("processes", "")),
        ("Threads", results.config.get("threads", "")),
        *((name, environment.get(name, "")) for name in _VERSIONS),
        ("Data, SHA-256", environment.get("data") or document.get("data", "")),
        ("Weights, SHA-256", document.get("digest", "")),
    ]
    settings = [
        (name, ", ".join(value) if isinstance(value, list) else str(value))
        for name, value in results.config.items()
    ]
    return {
        "about_repeating": told,
        "command": f"visus train --config {shlex.quote(str(results.path / 'config.yaml'))}",
        "made_with": [(name, value) for name, value in rows if value not in ("", None)],
        "settings": settings,
    }
