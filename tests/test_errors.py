import pytest

from visus.errors import CheckpointError, DataError, Interrupted, NonFiniteError, UsageError, unknown_name


@pytest.mark.parametrize(
    ("kind", "code"), [(UsageError, 2), (DataError, 3), (CheckpointError, 3), (NonFiniteError, 3)]
)
def test_every_kind_has_the_exit_code_of_the_contract(kind, code):
    assert kind("a sentence").exit_code == code


def test_an_interruption_carries_the_signals_code():
    assert Interrupted("stopped", 143).exit_code == 143


MANY = ["resnet18", "resnet50", *(f"vgg{number}" for number in range(20))]


def test_a_mistyped_name_gets_the_nearest_ones():
    error = unknown_name("model", "resnet81", MANY)
    assert str(error).startswith("unknown model 'resnet81'; the nearest are resnet18, resnet50")
    assert error.exit_code == 2


def test_a_name_like_no_other_still_gets_examples():
    assert str(unknown_name("model", "zzzz", MANY)).endswith("resnet18, resnet50, vgg0, vgg1, vgg2")


def test_where_there_are_few_all_are_named():
    error = unknown_name("optimizer", "zzzz", ["sgd", "adamw"])
    assert str(error) == "unknown optimizer 'zzzz'; expected one of sgd, adamw"
