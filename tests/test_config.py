"""What a run stores of where its data is."""

from pathlib import Path

import pytest

from visus.config import absolute, make_config, resolve_config
from visus.data.batching import measure_preprocessing
from visus.data.sources import open_source


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("digits", "digits-small"),
        ("http://host/sets/pets/", "pets-small"),
        ("sets/train-{000000..000009}.tar", "train-small"),
        ("{0..9}.tar", "data-small"),
        ("sets/pets.csv", "pets-small"),
    ],
)
def test_a_run_is_called_after_its_data(source, name):
    train = open_source("digits").train
    config = make_config(data=source, model="small", amp="off")
    assert resolve_config(config, train, measure_preprocessing(train), "cpu", 1).name == name


def test_places_are_stored_so_that_they_are_right_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    assert absolute("pets") == str(tmp_path / "pets")
    assert absolute("pets/{0..3}.tar") == str(tmp_path / "pets/{0..3}.tar")
    for name in ("digits", "http://host/{0..3}.tar", "memory://a"):
        assert absolute(name) == name
    assert not Path("digits").exists()
