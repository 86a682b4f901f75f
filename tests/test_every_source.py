"""One set of images, told in every way: the same batches, the same weights, and a run that was killed goes on to the same end."""

import csv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from visus import finishing, training
from visus.config import make_config
from visus.data.batching import EvaluationBatches, TrainingBatches, measure_preprocessing
from visus.data.keeping import decode_once
from visus.data.sources import open_source
from visus.packing import pack_source
from visus.recording import RunRecorder

KINDS = ("cat", "dog")


class Killed(BaseException):
    """A process that is no more."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same 50 images: a folder, a zip, tables, shards on disk and at an address, and a Hugging Face data set."""
    root = tmp_path_factory.mktemp("sources")
    names = {}
    for label, kind in enumerate(KINDS):
        (root / "folder" / kind).mkdir(parents=True)
        for number in range(25):
            random = np.random.default_rng([label, number])
            pixels = random.integers(0, 156, (12, 12, 3)) + 100 * label * (np.arange(12)[:, None, None] % 2)
            name = f"{kind}/{number:02}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / "folder" / name)
            names[name] = kind
    with zipfile.ZipFile(root / "zip.zip", "w") as archive:
        for name in names:
            archive.write(root / "folder" / name, name)
    rows = sorted(names.items(), key=lambda pair: pair[0][::-1])
    with (root / "folder" / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    pack_source(str(root / "folder"), root / "shards", shard_bytes=20_000)
    fsspec.filesystem("memory").put(f"{root / 'shards'}/", "/every", recursive=True)
    found = {
        "folder": str(root / "folder"),
        "zip": str(root / "zip.zip"),
        "csv": str(root / "folder" / "table.csv"),
        "shards": str(root / "shards"),
        "memory": "memory://every",
    }
    if parquet := pytest.importorskip("pyarrow.parquet"):
        import pyarrow

        table = pyarrow.table({"path": [name for name, _ in rows], "label": [kind for _, kind in rows]})
        parquet.write_table(table, root / "folder" / "table.parquet")
        found["parquet"] = str(root / "folder" / "table.parquet")
    if find_spec("datasets"):
        save_huggingface(open_source(found["folder"]), root / "huggingface")
        found["huggingface"] = str(root / "huggingface")
    return found


def named(sources, kind):
    if kind not in sources:
        pytest.skip("needs the library of that source")
    return sources[kind]


def save_huggingface(data, folder):
    """Images and labels of `data`, whose rows have no names: a part of their own would be another one, so theirs is given."""
    import datasets

    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(data.classes))}
    )
    parts = {
        name: {
            "image": [
                {"bytes": Path(part.images.source(place)).read_bytes(), "path": None}
                for place in range(len(part))
            ],
            "label": part.labels.tolist(),
        }
        for name, part in (("train", data.train), ("validation", data.val))
    }
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(rows, features=kinds) for name, rows in parts.items()}
    ).save_to_disk(folder)


def opened(source, cache="off"):
    return decode_once(open_source(source), resize=None, memory_bytes=10**9, cache=cache)


@pytest.fixture(scope="module")
def expected(sources):
    data = opened(sources["folder"])
    record = measure_preprocessing(data.train, (12, 12))
    return data, record, list(TrainingBatches(data.train, record, 8, "light")(1))


@pytest.mark.parametrize("kind", ["zip", "csv", "parquet", "shards", "memory", "huggingface"])
def test_every_source_gives_the_same_batches_from_any_step_on(sources, expected, kind):
    folder, record, batches = expected
    data = opened(named(sources, kind))
    names = list(map(str, range(len(folder.val)))) if kind == "huggingface" else list(folder.val.paths)
    assert list(data.val.paths) == names
    assert data.val.labels.tolist() == folder.val.labels.tolist()
    assert measure_preprocessing(data.train, (12, 12)) == record
    for start in (0, 3):
        found = list(TrainingBatches(data.train, record, 8, "light")(1, start))
        assert len(found) == len(batches) - start
        for one, other in zip(found, batches[start:], strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("kind", ["csv", "shards", "memory", "huggingface"])
def test_two_processes_share_each_batch_and_count_each_image_once(sources, expected, kind):
    _, record, batches = expected
    data = opened(named(sources, kind))
    ranks = [TrainingBatches(data.train, record, 8, "light", rank=rank, world_size=2)(1) for rank in range(2)]
    for whole, *shares in zip(batches, *ranks, strict=True):
        assert torch.equal(torch.cat([each.images for each in shares]), whole.images)
    seen = [
        index
        for rank in range(2)
        for batch in EvaluationBatches(data.val, record, 2, rank, 2)
        for index in batch.indices.tolist()
    ]
    assert sorted(seen) == list(range(len(data.val)))


@pytest.fixture
def without_pictures(monkeypatch):
    monkeypatch.setattr(RunRecorder, "draw_curves", lambda self, records: None)
    monkeypatch.setattr(finishing, "plot_confusion", lambda *arguments, **options: None)


def run(source, out, **settings):
    options = {
        "model": "small",
        "augment": "light",
        "amp": "off",
        "threads": 1,
        "lr": 0.01,
        "batch_size": 9,
        "cache": "off",
        "workers": 1,
    }
    return training.train(make_config(data=source, out=str(out), name="run", epochs=2, **options, **settings))


@pytest.mark.usefixtures("without_pictures")
def test_every_source_ends_in_the_same_weights_killed_or_not(sources, tmp_path, monkeypatch):
    done = run(sources["folder"], tmp_path / "folder")
    expected = done.to_json()["digest"]
    for kind in ("csv", "shards", "huggingface"):
        due = RunRecorder.due

        def ask(recorder, now, due=due):
            if now == 8:
                recorder.flush()
                raise Killed
            return due(recorder, now)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(RunRecorder, "due", ask)
            run(named(sources, kind), tmp_path / kind, checkpoint_every="3steps")
        resumed = training.resume(tmp_path / kind / "run")
        assert resumed.to_json()["digest"] == expected
        assert resumed.to_json()["final"] == done.to_json()["final"]
    uninterrupted = run(sources["memory"], tmp_path / "again")
    assert uninterrupted.to_json()["digest"] == expected
