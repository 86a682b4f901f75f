"""The model of a run as the page tells of it: what it is made of, and what it needs."""

from __future__ import annotations

from typing import Any

from visus.reporting.reading import RunResults


def examine_model(results: RunResults) -> dict[str, Any] | None:
    """The document of `visus summary` for one image, with `peak_training_mb` for the run's batch; `None` for a model of others.

    Raises whatever building that model raises.
    """
    document = results.checkpoint
    if not document or document["model"] == "custom" or not document.get("preprocess"):
        return None
    from visus.model_summary import summary
    from visus.models.build import build_model
    from visus.models.hollow import build_outline

    arguments = dict(document["model_args"])
    stem, classes = arguments.pop("stem", None), arguments["num_classes"]
    channels, size = arguments["in_channels"], document["preprocess"]["size"]
    model = (
        build_model(document["model"], classes, in_channels=channels, stem=stem)
        if stem
        else build_outline(document["model"], classes, in_channels=channels)
    )
    batch = int(results.config.get("batch_size", 1))
    found = summary(
        model, (channels, *size), batch_size=batch, optimizer=results.config.get("optimizer", "sgd")
    )
    return found.to_json() | {"flops_per_image": found.flops / batch, "input": [channels, *size]}
