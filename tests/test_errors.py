import pytest

from visus.errors import CheckpointError, DataError, Interrupted, NonFiniteError, UsageError, unknown_name


@pytest.mark.parametrize(
    ("kind", "code"), [(UsageError, 2), (DataError, 3), (CheckpointError, 3), (NonFiniteError, 3)]
)
def test_every_kind_has_the_exit_code_of_the_contract(kind, code):
    assert kind("a sentence").exit_code == code


def test_an_interruption_carries_the_signals_code():
    assert Interrupted("stopped", 143).exit_code == 143


def test_a_mistyped_name_gets_the_nearest_ones():
    error = unknown_name("model", "resnet81", ["resnet18", "resnet50", "vgg11"])
    assert str(error).startswith("unknown model 'resnet81'; the nearest are resnet18")
    assert error.exit_code == 2


def test_a_name_like_no_other_still_gets_examples():
    assert "sgd" in str(unknown_name("optimizer", "zzzz", ["sgd", "adamw"]))
