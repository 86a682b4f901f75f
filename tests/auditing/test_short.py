import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from visus.auditing.short import short_audit
from visus.config import make_config
from visus.data.images import Data
from visus.data.sources import open_source
from visus.display import Display
from visus.errors import DataError, UsageError
from visus.training import resume, train


@pytest.fixture
def arrays(tmp_path):
    """60 images of each of two classes, of which image 7 is there again as image 100, under the other label."""
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    labels = np.arange(120) % 2
    images[100] = images[7]
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    return tmp_path / "set.npz"


def test_copies_are_found_across_the_parts_of_arrays(arrays):
    data = open_source(arrays, val_fraction=0.5)
    found = short_audit(data)
    (copy,) = [each for each in found.findings if each.kind == "exact_duplicate"]
    assert set(copy.paths) == {"7", "100"}
    assert [each.kind for each in found.findings if each.severity == "high"][-1] == "conflicting_label"
    assert found.images == 120


def test_an_index_that_several_parts_have_is_called_with_its_part():
    part = open_source("digits", val_fraction=0).train.subset(np.arange(40))
    data = Data("twice", part.classes, train=part, test=part)
    found = short_audit(data)
    leaks = [each for each in found.findings if each.kind == "leakage"]
    assert len(leaks) == 40
    assert all(sorted(name.split("/")[0] for name in each.paths) == ["test", "train"] for each in leaks)
    assert all(each.drop == (each.paths[0],) and each.drop[0].startswith("train/") for each in leaks)


def test_it_is_quick_for_sixty_thousand_small_images():
    import time

    import torch

    from visus.data.images import ArrayImages, Split

    pixels = torch.randint(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8)
    labels = np.arange(60_000) % 10
    part = Split(
        "train", ArrayImages(pixels), labels, tuple(map(str, range(10))), list(map(str, range(60_000)))
    )
    began = time.process_time()
    assert not short_audit(Data("many", part.classes, train=part)).findings
    assert time.process_time() - began < 3


def settings(arrays, tmp_path, **others):
    return make_config(
        data=str(arrays), model="small", epochs=1, batch_size=20, out=str(tmp_path / "runs"), **others
    )


def test_training_says_what_is_wrong_and_keeps_it(arrays, tmp_path, capsys):
    run = train(settings(arrays, tmp_path), display=Display(sys.stderr))
    assert f"audit: every finding: {Path(run.run, 'audit.json')}" in capsys.readouterr().err.splitlines()
    document = json.loads((tmp_path / "runs/set-small/audit.json").read_text())
    assert run.findings == len(document["findings"]) == 2
    assert resume(run.run).findings == 2


def test_an_excluded_image_is_gone_and_no_other_moves(arrays, tmp_path):
    def parts(run):
        with Path(run.run, "split.csv").open() as file:
            return {row["path"]: row["split"] for row in csv.DictReader(file)}

    (tmp_path / "list.csv").write_text("path,kind,reason\n7,exact_duplicate,\n100,exact_duplicate,\nnone,,\n")
    whole, less = (
        train(settings(arrays, tmp_path, **e)) for e in ({}, {"exclude": str(tmp_path / "list.csv")})
    )
    assert parts(less) == {path: part for path, part in parts(whole).items() if path not in ("7", "100")}
    assert less.findings == 0
    assert resume(less.run).digest == less.digest
    (tmp_path / "list.csv").write_text("path\n7\n")
    with pytest.raises(DataError, match=r"the data has changed.*1 new \(100\)"):
        resume(less.run, epochs=2)
    (tmp_path / "list.csv").unlink()
    with pytest.raises(UsageError, match=r"--exclude .*cannot be read"):
        resume(less.run, epochs=2)
