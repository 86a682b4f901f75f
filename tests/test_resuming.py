"""What is said of a run's data and settings that have changed."""

import dataclasses
import io
import json
import os

import numpy as np
import pytest
from torchvision.transforms import v2

from visus.config import make_config
from visus.data.images import Data, Skipped
from visus.data.listing import split_rows
from visus.data.sources import open_source
from visus.display import Display
from visus.errors import UsageError
from visus.resuming import (
    describe_changes,
    other_versions,
    refuse_changes,
    setting_names,
    written_since,
)
from visus.runs import create_run
from visus.tables import writing_table
from visus.training import resume, train

CONFIG = make_config(data="digits", model="small", lr=0.1)


@pytest.fixture
def run(tmp_path):
    """A run on nine files of three classes."""
    for index in range(9):
        path = tmp_path / "images" / "abc"[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    run = create_run(tmp_path, "run")
    with writing_table(run.split, ["path", "label", "split"]) as write:
        write(split_rows(opened(tmp_path)))
    return run


def opened(tmp_path) -> Data:
    return open_source(tmp_path / "images", val_fraction=0.34)


def test_each_kind_of_change_is_named(run, tmp_path):
    data = opened(tmp_path)
    assert describe_changes(run, data) == "images of the same names have another content"
    (tmp_path / "images/a/new.png").write_bytes(b"x")
    gone = data.train.paths[0]
    (tmp_path / "images" / gone).unlink()
    told = describe_changes(run, opened(tmp_path))
    assert "1 new (a/new.png)" in told
    assert f"1 gone ({gone})" in told


def test_what_is_no_image_any_more_is_named_with_the_reason(run, tmp_path):
    data = opened(tmp_path)
    assert data.train
    broken, rest = data.train.paths[0], np.arange(1, len(data.train))
    now = dataclasses.replace(data, train=data.train.subset(rest), skipped=(Skipped(broken, "cut short"),))
    assert describe_changes(run, now) == f"1 that cannot be used now ({broken}: cut short)"


def test_files_that_were_written_after_the_run_began_are_named(run, tmp_path):
    began = run.split.stat().st_mtime_ns
    for path in (tmp_path / "images").rglob("*.png"):
        os.utime(path, ns=(began, began - 10**9))
    data = opened(tmp_path)
    assert written_since(run, data) is None
    for name in [data.train.paths[0], data.val.paths[0]]:
        os.utime(tmp_path / "images" / name, ns=(began, began + 10**9))
    found = written_since(run, data)
    assert found.startswith(f"2 image files were written after the run began ({data.train.paths[0]}, ")
    run.split.unlink()
    assert written_since(run, data) is None


def test_an_image_that_changed_and_kept_its_size_is_said_on_resume(tmp_path):
    for index in range(20):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P6 8 8 255 " + bytes([index]) * 192)
    options = {"model": "small", "batch_size": 10, "amp": "off", "out": str(tmp_path), "name": "a"}
    trained = train(make_config(data=str(tmp_path / "images"), epochs=1, **options))
    first = io.StringIO()
    resume(trained.run, epochs=2, display=Display(first))
    assert "written after" not in first.getvalue()
    path.write_bytes(b"P6 8 8 255 " + bytes([99]) * 192)
    second = io.StringIO()
    resume(trained.run, epochs=3, display=Display(second))
    assert "1 image files were written after the run began (b/19.ppm)" in second.getvalue()


def test_images_in_another_part_or_class_are_named(run, tmp_path):
    data = opened(tmp_path)
    first, *others = np.arange(len(data.train))
    moved = dataclasses.replace(
        data, train=data.train.subset(others), test=data.train.subset([first], "test")
    )
    assert describe_changes(run, moved) == f"1 in another part ({data.train.paths[0]})"
    labels = data.val.labels.copy()
    labels[:] = (labels + 1) % 3
    other = dataclasses.replace(data, val=dataclasses.replace(data.val, labels=labels))
    assert describe_changes(run, other).startswith(f"{len(labels)} of another class (")


def test_settings_that_differ_are_free_allowed_or_refused():
    other = dataclasses.replace(CONFIG, epochs=20, lr=0.2)
    refuse_changes(CONFIG, CONFIG, ())
    refuse_changes(CONFIG, other, setting_names(["--lr"]))
    with pytest.raises(UsageError, match=r"--lr cannot change .*was 0\.1, not 0\.2.* --allow-change lr"):
        refuse_changes(CONFIG, other, ())
    with pytest.raises(UsageError, match=r"unknown setting .*weight_decay"):
        setting_names(["weight-decoy"])


def test_other_versions_are_said(run):
    run.environment.write_text(json.dumps({"torch": "1.0", "timm": None}))
    assert other_versions(run)[0].startswith("torch 1.0, now 2.")
    assert len(other_versions(run)) == 1
    run.environment.unlink()
    assert other_versions(run) == []


def test_a_run_with_a_transform_goes_on_with_one_to_the_same_bits(tmp_path):
    def config(name, epochs):
        options = {"model": "small", "batch_size": 100, "amp": "off", "out": str(tmp_path)}
        return make_config(data="digits", epochs=epochs, name=name, schedule="constant", **options)

    pipeline = v2.Compose([v2.RandomRotation(20), v2.RandomHorizontalFlip()])
    whole = train(config("whole", 2), transform=pipeline)
    half = train(config("half", 1), transform=pipeline)
    with pytest.raises(UsageError, match="was trained with a transform"):
        resume(half.run, epochs=2)
    assert resume(half.run, epochs=2, transform=pipeline).digest == whole.digest
    plain = train(config("plain", 1))
    assert plain.digest != half.digest
    with pytest.raises(UsageError, match="was trained without a transform"):
        resume(plain.run, epochs=2, transform=pipeline)
