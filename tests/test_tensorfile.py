"""Every common layout is read; nothing that is damaged or hostile is more than one sentence."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from visus.errors import CheckpointError
from visus.tensorfile import read_header, read_tensors, write_tensors

WEIGHTS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, 2.0])}


def assert_weights(tensors):
    assert sorted(tensors) == sorted(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)


@pytest.fixture
def file(tmp_path):
    write_tensors(tmp_path / "a.safetensors", WEIGHTS, {"visus": "{}"})
    return tmp_path / "a.safetensors"


def test_what_is_written_is_read(file):
    assert_weights(read_tensors(file))
    assert read_header(file) == {"visus": "{}"}
    assert os.listdir(file.parent) == [file.name]


def test_a_channels_last_tensor_is_written(tmp_path):
    images = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    write_tensors(tmp_path / "a.safetensors", {"a": images}, {})
    torch.testing.assert_close(read_tensors(tmp_path / "a.safetensors")["a"], images, check_stride=False)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w},
        lambda w: {"net": w, "acc": 0.9, "classes": ["a", "b"]},
        lambda w: {f"module.{name}": tensor for name, tensor in w.items()},
        lambda w: {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in w.items()}},
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt"])
def test_the_common_layouts_are_read(tmp_path, wrap, suffix):
    torch.save(wrap(WEIGHTS), tmp_path / f"a.{suffix}")
    assert_weights(read_tensors(tmp_path / f"a.{suffix}"))


def test_the_checkpoint_of_the_notes_is_refused_with_the_line_that_saves_it(tmp_path):
    model = nn.Linear(3, 2)
    path = tmp_path / "resnet18.ckpt"
    torch.save({"net": model.state_dict(), "opt": torch.optim.SGD(model.parameters(), lr=0.1)}, path)
    with pytest.raises(CheckpointError, match=r"weights_only=False\)\['net'\]"):
        read_tensors(path)


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize("content", [Hostile(), {"state_dict": Hostile()}, {**WEIGHTS, "x": Hostile()}])
def test_no_code_in_a_file_is_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "a.pth")
    with pytest.raises(CheckpointError):
        read_tensors("a.pth")
    assert not Path("ran").exists()


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/9", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="more than its own size"):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["/tmp/visus-escaped", "../../visus-escaped", "archive/../../visus-escaped"])
def test_names_that_lead_out_of_an_archive_lead_nowhere(tmp_path, name):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as archive:
        archive.writestr(name, b"x")
    with zipfile.ZipFile(tmp_path / "only.pth", "w") as archive:
        archive.writestr(name, b"x")
    for path in ("a.pth", "only.pth"):
        with pytest.raises(CheckpointError):
            read_tensors(tmp_path / path)
    assert not list(tmp_path.parent.parent.rglob("visus-escaped"))
    assert not Path("/tmp/visus-escaped").exists()


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {"optimizer": {"lr": 0.1}}])
def test_what_is_no_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100, b"\xff" * 100, b"PK\x03\x04" + b"x" * 50])
def test_a_file_of_something_else_is_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.") as caught:
        read_tensors(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_damaged_file_never_does_worse_than_an_error(tmp_path, name):
    path = tmp_path / name
    if name == "a.pth":
        torch.save(WEIGHTS, path)
    else:
        write_tensors(path, WEIGHTS, {"visus": "{}"})
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for place in random.integers(0, len(damaged), size=3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(read_tensors(path), dict)
        except CheckpointError:
            continue


@pytest.mark.parametrize("length", [0, 10**9, 2**63])
def test_a_header_of_an_impossible_length_is_refused(tmp_path, length):
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="header"):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("read", [read_header, read_tensors])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(CheckpointError, match=r"no\.safetensors"):
        read(tmp_path / "no.safetensors")
