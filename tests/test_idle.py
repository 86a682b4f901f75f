"""Settings that change nothing beside the others, given by hand, by a recipe and by a stored config."""

from pathlib import Path

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn

from visus.config import make_config, plain_settings, remake_config
from visus.errors import UsageError, VisusError
from visus.idle import IDLE, UNREACHED, refuse_idle, unreached
from visus.ops.optim import OptimizerSettings, make_optimizer, takes_momentum
from visus.training import train

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
# The setting that changes nothing, what it is beside, and beside what it would change something.
CASES = [
    ({"val_fraction": 0.2}, {"val": "y"}, {}),
    ({"split_seed": 3}, {"val": "y"}, {}),
    ({"distill_digest": "0a"}, {}, {"distill": "y"}),
    ({"momentum": 0.8}, {"optimizer": "adamw"}, {"optimizer": "sgd"}),
    ({"weight_decay_on": "weights"}, {"optimizer": "lamb"}, {"optimizer": "lamb", "weight_decay": 0.1}),
    ({"gamma": 0.2}, {"schedule": "cosine"}, {}),
    ({"ema_decay": 0.9}, {}, {"ema": True}),
]
# What more epochs would come to, how many are too few, and how many are enough.
TOLD = [
    ({"patience": 4}, 5, 6),
    ({"freeze": "gradual:5"}, 5, 6),
    ({"milestones": (10, 12.5)}, 10, 11),
    ({"warmup_epochs": 5}, 5, 6),
    ({"swa": True}, 7, 8),
]


def test_each_has_its_case():
    assert [name for name, _, _ in IDLE] == [name for case, _, _ in CASES for name in case]


@pytest.mark.parametrize(("setting", "beside", "otherwise"), CASES)
def test_what_changes_nothing_is_refused_in_one_sentence(setting, beside, otherwise):
    (name,) = setting
    with pytest.raises(UsageError) as caught:
        make_config(data="x", **setting, **beside)
    assert str(caught.value).startswith(f"--{name.replace('_', '-')} ")
    assert "{" not in str(caught.value)
    # What it is beside is right by itself, and so is the setting beside another.
    make_config(data="x", **beside)
    make_config(data="x", **setting, **otherwise)


@pytest.mark.parametrize(("setting", "beside", "otherwise"), CASES)
def test_the_documentation_has_a_row_for_each(setting, beside, otherwise):
    (name,) = setting
    rows = PAGE.partition("## What would change nothing")[2].splitlines()
    assert any(f"`--{name.replace('_', '-')}" in row.split("|")[1] for row in rows if row.startswith("| `--"))


def test_each_of_those_that_want_more_epochs_has_its_case():
    assert len(UNREACHED) == len(TOLD)


# With an update to each epoch.
@pytest.mark.parametrize(("setting", "few", "enough"), TOLD)
def test_what_more_epochs_would_come_to_is_told_and_not_refused(setting, few, enough):
    (name,) = setting
    (told,) = unreached(make_config(data="x", epochs=few, **setting), few)
    assert told.startswith(f"--{name.replace('_', '-')} ")
    assert f"--epochs {few}" in told
    assert unreached(make_config(data="x", epochs=enough, **setting), enough) == []
    assert f"| `--{name.replace('_', '-')}" in PAGE.partition("## What would change nothing")[2]


def test_what_a_recipe_says_is_stored_with_it():
    config = make_config(data="x", recipe="finetune", optimizer="adamw")
    assert make_config(**{k: str(v) for k, v in plain_settings(config).items()}) == config


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": "adamv", "weight_decay_on": "weights", "momentum": 0.5}, "unknown optimizer"),
        ({"optimizer": "kron"}, "random numbers of its own"),
    ],
)
def test_an_optimizer_that_is_none_is_the_first_thing_to_say_before_images_are_read(
    tmp_path, settings, sentence
):
    config = make_config(data=str(tmp_path / "nowhere"), **settings)
    state = torch.get_rng_state()
    with pytest.raises(UsageError, match=sentence):
        train(config)
    with pytest.raises(VisusError, match="nowhere"):
        train(make_config(data=str(tmp_path / "nowhere"), model="small"))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_default_is_refused_only_where_it_is_given_by_hand():
    config = make_config(data="x", ema_decay=0.999, momentum=0.9, optimizer="adamw")
    refuse_idle(config, ["optimizer", "epochs"])
    with pytest.raises(UsageError, match="--ema-decay is that of an average"):
        refuse_idle(config, ["ema_decay"])


def test_a_run_that_goes_on_keeps_what_changes_nothing():
    before = make_config(data="x", ema=True, ema_decay=0.9)
    assert remake_config({**plain_settings(before), "ema": False}).ema_decay == 0.9


def test_which_optimizers_take_a_momentum():
    def rates(name, momentum):
        settings = OptimizerSettings(optimizer=name, lr=0.1, momentum=momentum)
        try:
            defaults = make_optimizer(nn.Linear(2, 2), settings).defaults
        except UsageError:
            return None
        return {key: value for key, value in defaults.items() if isinstance(value, float | tuple)}

    # As the optimizers themselves have it: those of which something differs.
    for name in ["sgd", "adamw", *list_optimizers()]:
        first = rates(name, 0.5)
        assert first is None or (first != rates(name, 0.6)) == takes_momentum(name), name
    assert takes_momentum("sdg")
