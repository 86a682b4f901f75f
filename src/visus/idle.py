"""Settings that change nothing beside the others of a run: who gives one by hand is refused.

A recipe may set them, and the config that a run stores has them all. What a run of more epochs would come to is only told, as a run
may be given more epochs when it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from visus.errors import UsageError
from visus.models.adapt import parse_freeze
from visus.ops.averaging import last_quarter
from visus.ops.optim import is_optimizer, resolve_optimizer, takes_momentum

Test = Callable[[Any], Any]
LengthTest = Callable[[Any, int], Any]
_SET_ASIDE = "is for data without a validation part, and --val gives one; leave one of them out"
IDLE: tuple[tuple[str, Test, str], ...] = (
    ("val_fraction", lambda c: c.val, f"--val-fraction {_SET_ASIDE}"),
    ("split_seed", lambda c: c.val, f"--split-seed {_SET_ASIDE}"),
    (
        "distill_digest",
        lambda c: c.distill_digest and not c.distill,
        "--distill-digest is that of a teacher, and there is none; give --distill, or leave it out",
    ),
    (
        "momentum",
        lambda c: not takes_momentum(c.optimizer),
        "--momentum is not for --optimizer {c.optimizer}, which takes none; leave it out",
    ),
    (
        "weight_decay_on",
        lambda c: (
            c.weight_decay_on == "weights"
            and is_optimizer(c.optimizer)
            and not resolve_optimizer(c).weight_decay
        ),
        "--weight-decay-on weights is of no effect with a --weight-decay of 0; give another, or leave it out",
    ),
    (
        "gamma",
        lambda c: c.schedule != "multistep",
        "--gamma belongs to --schedule multistep, not to {c.schedule}; leave it out",
    ),
    (
        "ema_decay",
        lambda c: not c.ema,
        "--ema-decay is that of an average which is not made; give --ema, or leave it out",
    ),
)
"""A setting, a test on a `TrainConfig`, and the sentence that refuses it, of which `c` is the config."""

UNREACHED: tuple[tuple[LengthTest, str], ...] = (
    (
        # The first epoch is better than nothing, so that the wait begins after it.
        lambda c, _: c.patience and c.patience >= c.epochs - 1,
        "--patience {c.patience} cannot end a run of --epochs {c.epochs} before it is over",
    ),
    (
        lambda c, _: (parse_freeze(c.freeze).every or 0) >= c.epochs,
        "--freeze {c.freeze} thaws nothing in --epochs {c.epochs}",
    ),
    (
        lambda c, _: c.schedule == "multistep" and c.milestones and min(c.milestones) >= c.epochs,
        "--milestones are all beyond the end, with --epochs {c.epochs}: the rate stays as it is",
    ),
    (
        lambda c, _: c.warmup_epochs >= c.epochs,
        "--warmup-epochs {c.warmup_epochs:g} lets the rate rise for all of --epochs {c.epochs}: it never is what --lr says",
    ),
    (
        lambda c, updates: c.swa and last_quarter(updates) + 1 >= updates,
        "--swa averages nothing in --epochs {c.epochs}: the last quarter of its updates ({updates} in all) is a single one",
    ),
)
"""A test on a `TrainConfig` and its updates, and the sentence that tells what only a run of more epochs would come to."""


def refuse_idle(config: Any, given: Collection[str]) -> None:
    """`UsageError` for the first of the settings that were `given` that changes nothing in a run of `config`."""
    for name, test, sentence in IDLE:
        if name in given and test(config):
            raise UsageError(sentence.format(c=config))


def unreached(config: Any, updates: int) -> list[str]:
    """A sentence for each setting that has no part, or not all of it, in a run of so few epochs, which make so many `updates`."""
    return [
        sentence.format(c=config, updates=updates) for test, sentence in UNREACHED if test(config, updates)
    ]
