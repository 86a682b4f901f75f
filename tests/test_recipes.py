"""Bundles of settings, and settings that fight each other."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from visus.config import TrainConfig, make_config, plain_settings
from visus.errors import UsageError
from visus.recipes import CONFLICTS, RECIPES, conflict, with_recipe

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
FIGHTING = [
    {"swa": True, "ema": True},
    {"swa": True, "schedule": "onecycle"},
    {"swa": True, "patience": 3},
    {"patience": 3, "schedule": "onecycle"},
    {"class_weights": True, "sampler": "balanced"},
    {"class_weights": True, "loss": "bce"},
    {"loss": "focal", "mixup": 0.2},
    {"loss": "focal", "label_smoothing": 0.1},
    {"drop_path": 0.1, "freeze": "backbone,batchnorm"},
    {"layer_decay": 0.5, "freeze": "backbone"},
    {"distill": "x", "loss": "bce"},
    {"distill": "x", "class_weights": True},
    {"distill": "x", "batch_size": "auto"},
]
OTHERS = [
    {"swa": True, "schedule": "cosine"},
    {"loss": "focal", "cutmix": 1.0},
    {"backbone_factor": 0.1, "freeze": "backbone,batchnorm"},
    {"distill": "x", "loss": "focal"},
    {"recipe": "fast", "patience": 3},
]


def test_each_conflict_has_its_case():
    for (test, _), settings in zip(CONFLICTS, FIGHTING, strict=True):
        assert test(replace_in_default(settings))


def replace_in_default(settings):
    """The settings, unchecked."""
    config = TrainConfig(data="x")
    for name, value in settings.items():
        object.__setattr__(config, name, value)
    return config


@pytest.mark.parametrize("settings", FIGHTING + OTHERS)
def test_settings_that_fight_each_other_are_refused_in_one_sentence(settings):
    with pytest.raises(UsageError) as caught:
        make_config(data="x", **settings)
    assert str(caught.value).startswith("--")
    assert "found" not in str(caught.value)
    for name in settings.keys() - {"recipe", "schedule"}:
        assert f"--{name.replace('_', '-')}" in str(caught.value)
    # One of the two alone is right.
    for name in settings:
        make_config(data="x", **{k: v for k, v in settings.items() if k != name})


@pytest.mark.parametrize("settings", FIGHTING)
def test_the_table_in_the_documentation_has_each_pair(settings):
    flags = [f"--{name.replace('_', '-')}" for name in settings]
    rows = [line for line in PAGE.splitlines() if line.startswith("| `--")]
    assert any(all(flag in row.split("|")[1] for flag in flags) for row in rows)


def test_classic_is_the_defaults_themselves():
    assert make_config(data="x", recipe="classic") == make_config(data="x")
    assert RECIPES["classic"] == {}


def test_weights_to_start_from_make_finetune_the_default():
    assert make_config(data="x").recipe == "classic"
    assert make_config(data="x", weights="default").recipe == "finetune"
    assert make_config(data="x", weights="default", recipe="classic").optimizer == "sgd"


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_stands_above_defaults_and_below_what_is_given(name):
    config = make_config(data="x", recipe=name)
    assert {key: getattr(config, key) for key in RECIPES[name]} == RECIPES[name]
    others = {"batch_size": 17, "label_smoothing": 0.3, "lr": 0.7, "weight_decay": 0.0}
    given = make_config(data="x", recipe=name, **others)
    assert {key: getattr(given, key) for key in others} == others


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_stored_config_means_the_same_when_it_is_read(name):
    for options in ({}, {"optimizer": "lamb"}, {"epochs": 3, "lr": 0.01}):
        config = make_config(data="x", recipe=name, **options)
        stored = {key: str(value) for key, value in plain_settings(config).items()}
        assert make_config(**stored) == config
        assert replace(config, epochs=5) == make_config(data="x", recipe=name, **{**options, "epochs": 5})


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_rates_of_a_recipe_are_for_its_own_optimizer(name):
    own = RECIPES[name].get("optimizer", "sgd")
    other = "adamw" if own == "sgd" else "sgd"
    found = with_recipe({"recipe": name, "optimizer": other})
    assert not {"lr", "momentum", "weight_decay"} & found.keys()
    assert with_recipe({"recipe": name, "optimizer": own}).get("lr") == RECIPES[name].get("lr")


def test_the_warm_up_of_a_recipe_is_for_its_own_schedule():
    assert make_config(data="x", recipe="finetune").warmup_epochs == 1
    assert make_config(data="x", recipe="finetune", schedule="onecycle").warmup_epochs == 0
    assert make_config(data="x", recipe="finetune", schedule="onecycle").lr == 0.02


def test_an_unknown_recipe_is_refused():
    with pytest.raises(UsageError, match=r"--recipe: .*'classic'"):
        make_config(data="x", recipe="slow")


def test_the_documentation_states_what_each_recipe_sets():
    for name, settings in RECIPES.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
        for key, value in settings.items():
            flag = f"--{key.replace('_', '-')}"
            assert f"`{flag} {value}`" in row, (name, key)


def test_nothing_is_wrong_with_the_defaults():
    assert conflict(TrainConfig(data="x")) is None
