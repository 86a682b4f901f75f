"""Settings that go well together, under a name; and settings that do not go together at all.

Where they come from, and when to take which, is said in `docs/recipes.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

Recipe = Literal["classic", "fast", "finetune"]

RECIPES: dict[str, dict[str, Any]] = {
    "classic": {},
    "fast": {"model": "quick", "lr": 0.2, "schedule": "onecycle", "label_smoothing": 0.1, "augment": "none"},
    "finetune": {"lr": 0.02, "schedule": "cosine", "warmup_epochs": 1.0},
}
"""What each sets; all else keeps its default. `classic` is the defaults themselves."""
_BELONGING: dict[str, tuple[str, tuple[str, ...]]] = {
    "optimizer": ("sgd", ("lr", "momentum", "weight_decay")),
    "schedule": ("multistep", ("warmup_epochs", "milestones", "gamma")),
}
"""For a setting its default, and what means nothing to another value of it."""

Test = Callable[[Any], bool]
CONFLICTS: tuple[tuple[Test, str], ...] = (
    (lambda c: c.swa and c.ema, "--swa and --ema both average the weights; leave one out"),
    (
        lambda c: c.swa and c.schedule in ("onecycle", "cosine"),
        "--swa averages weights that are still on the move, and with --schedule onecycle or cosine they come to rest; "
        "give --schedule multistep or constant",
    ),
    (
        lambda c: c.swa and c.patience,
        "--patience may end a run before --swa, whose average is that of its last quarter, has begun; leave one out",
    ),
    (
        lambda c: c.patience and c.schedule == "onecycle",
        "--patience may end a run before --schedule onecycle has brought its rate down, when it gains most; "
        "leave --patience out, or give --schedule multistep or constant",
    ),
    (
        lambda c: c.class_weights and c.sampler == "balanced",
        "--class-weights and --sampler balanced both make up for rare classes, which would then count twice over; leave one out",
    ),
    (
        lambda c: c.class_weights and c.loss == "bce",
        "--class-weights belong to one class per image, and --loss bce asks about each class on its own; "
        "give --sampler balanced instead",
    ),
    (
        lambda c: c.loss == "focal" and (c.mixup or c.cutmix),
        "--loss focal wants one true class for each image, and --mixup and --cutmix make two; leave one out",
    ),
    (
        lambda c: c.loss == "focal" and c.label_smoothing,
        "--loss focal and --label-smoothing both keep the model from being sure; leave one out",
    ),
    (
        lambda c: c.drop_path and "backbone" in c.freeze.split(","),
        "--drop-path leaves out branches of the backbone, which --freeze backbone runs as it is; leave one out",
    ),
    (
        lambda c: "backbone" in c.freeze.split(",") and (c.layer_decay or c.backbone_factor != 1),
        "--layer-decay and --backbone-factor are for the rates of what --freeze backbone does not train; leave one out",
    ),
    (
        lambda c: c.distill and c.loss != "cross-entropy",
        "--distill has a loss of its own, of which cross-entropy is a part; leave --loss out",
    ),
    (
        lambda c: c.distill and c.class_weights,
        "--distill learns from a teacher that knows no --class-weights; give --sampler balanced instead",
    ),
    (
        lambda c: c.distill and c.batch_size == "auto",
        "--batch-size auto is tried without the teacher of --distill, which needs memory as well; give --batch-size a number",
    ),
)
"""Pairs of a test on a `TrainConfig` and the sentence that refuses it."""


def with_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings`, and beneath them those of their recipe: `finetune` where there are weights to start from, else `classic`.

    What a recipe says of learning rate, momentum and weight decay goes with its optimizer, of warm-up with its schedule: to others
    than its own it does not apply. An unknown recipe is left for others to refuse.
    """
    recipe = settings.get("recipe") or ("finetune" if settings.get("weights") else "classic")
    beneath = dict(RECIPES.get(recipe, {}))
    for name, (default, belonging) in _BELONGING.items():
        own = beneath.get(name, default)
        if settings.get(name, own) != own:
            beneath = {key: value for key, value in beneath.items() if key not in belonging}
    return {**beneath, "recipe": recipe, **{k: v for k, v in settings.items() if k != "recipe"}}


def conflict(config: Any) -> str | None:
    """Why the settings of `config` do not go together; `None` where they do."""
    return next((sentence for test, sentence in CONFLICTS if test(config)), None)
