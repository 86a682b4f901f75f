"""Checkpoints: one safetensors file with everything that is needed to use a model, or to go on training it.

Tensors are named `model.*`, `ema.*`, `optimizer.<parameter>.*` and `state.*`; a JSON document in the header holds the rest.
The format is described in `docs/architecture.md`. No pickle is written or read here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from visus.document import CUSTOM, check_document
from visus.errors import CheckpointError, UnreadableError, UsageError
from visus.models.lora import merged
from visus.ops.optim import match_layout
from visus.preprocessing import Preprocessing
from visus.runs import RunFolder
from visus.tensorfile import read_header, read_tensors, write_tensors

FORMAT = 1
CHECKPOINT_KEY = "visus"
"""Of the document in the header."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole."""

    path: Path
    document: dict[str, Any]
    tensors: Tensors

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the model's outputs."""
        return tuple(self.document["classes"])

    @property
    def preprocessing(self) -> Preprocessing:
        """What happens to an image before the model sees it."""
        return Preprocessing.from_json(self.document["preprocess"])

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run that wrote it."""
        return dict(self.document["config"])

    @property
    def model_tensors(self) -> Tensors:
        """The weights to use, by the model's own names: the averaged ones where there are any."""
        return merged(with_prefix(self.tensors, "ema.") or with_prefix(self.tensors, "model."))

    @property
    def temperature(self) -> float:
        """What `visus calibrate` found that logits are to be divided by; 1 before."""
        return float(self.document.get("temperature", 1.0))


def with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in C order, as they stand in the file (little-endian, as every platform that torch supports)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    content: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return content.data


def model_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors in name order, of name, dtype, shape and bytes: equal digests mean equal weights, bit for bit.

    Before each tensor's bytes goes a line `name dtype shape` in JSON, as in `["fc.bias","float32",[10]]`.
    """
    digest = hashlib.sha256()
    _update(digest, tensors)
    return digest.hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """Tensors as they were at one moment, each stored once, on the CPU; nothing that happens to the originals changes it."""

    tensors: Tensors
    aliases: dict[str, str]
    """The other names of those that are tied."""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.aliases.get(name, name)]

    def with_prefix(self, prefix: str) -> Tensors:
        """The tensors whose names begin with `prefix`, without it; tied ones under each of their names."""
        names = [name for name in (*self.tensors, *self.aliases) if name.startswith(prefix)]
        return {name.removeprefix(prefix): self[name] for name in names}


def snapshot(tensors: Tensors) -> Snapshot:
    """A copy of `tensors`, to be written while training goes on."""
    kept, aliases = _without_ties(tensors)
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in kept.items()
    }
    return Snapshot(copies, aliases)


def save_checkpoint(
    path: str | os.PathLike[str],
    tensors: Tensors | Snapshot,
    document: Mapping[str, Any],
    *,
    before: Callable[[], object] = str,
) -> str:
    """Write a checkpoint, atomically and durably, read it back before it takes its place, and return the digest of `model.*`.

    `before` is called once it is whole, about to take its place. `document` needs `model`, `classes` and `preprocess` for the
    file to be used by the command line. `OSError` where the disk is full, the folder cannot be written or what was written reads
    back otherwise; the file that was there is then untouched.
    """
    taken = tensors if isinstance(tensors, Snapshot) else snapshot(tensors)
    digest = model_digest(taken.with_prefix("model."))
    full = {**document, "format": FORMAT, "digest": digest, "aliases": taken.aliases}
    full["checksum"] = _checksum(taken.tensors, full)

    def check(temporary: Path) -> None:
        _verify(temporary)
        before()

    write_tensors(path, taken.tensors, {CHECKPOINT_KEY: _canonical(full)}, check=check)
    return digest


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """`path` itself, or of a run's folder its best checkpoint, or the last where no best was kept."""
    given = Path(path)
    if not given.is_dir():
        return given
    run = RunFolder(given)
    found = next((each for each in (run.best, run.last) if each.is_file()), None)
    if found is None:
        raise CheckpointError(f"{path}: expected a checkpoint or a run's folder with one in it, found none")
    return found


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint and verify its checksum; `CheckpointError` where it is damaged, foreign or of a newer format."""
    document = read_document(path)
    tensors = read_tensors(path)
    if document.get("checksum") != _checksum(tensors, document):
        raise CheckpointError(
            f"{path}: the checksum does not match; the file is damaged, use another checkpoint"
        )
    for alias, name in document["aliases"].items():
        if name not in tensors:
            raise CheckpointError(
                f"{path}: {alias} stands for {name}, which is not there; use another checkpoint"
            )
        tensors[alias] = tensors[name]
    return Checkpoint(Path(path).absolute(), document, tensors)


def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON document of a checkpoint, without reading its tensors; its checksum is not verified."""
    metadata = read_header(path)
    if CHECKPOINT_KEY not in metadata:
        raise CheckpointError(
            f"{path}: expected a checkpoint of visus, found a file of weights alone; give it as --weights"
        )
    try:
        document = json.loads(metadata[CHECKPOINT_KEY])
        newer = int(document["format"]) > FORMAT
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path}: the header is damaged; use another checkpoint") from None
    if newer:
        raise UnreadableError(
            f"{path}: written by a newer visus (format {document['format']}, this one reads {FORMAT}); upgrade"
        )
    check_document(document, path)
    return dict(document)


def load_tensors(model: nn.Module, tensors: Tensors, origin: object) -> None:
    """Load a state dict; `CheckpointError` naming `origin` where names or shapes differ."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{origin}: the weights do not fit the model: {reason}") from None


def rebuild_model(checkpoint: Checkpoint) -> nn.Module:
    """The model of a checkpoint with the weights to use, its logits divided by the checkpoint's temperature.

    `UsageError` for one that visus did not build.
    """
    from visus.models.build import build_model  # loads timm and torchvision

    name = checkpoint.document["model"]
    if name == CUSTOM:
        raise UsageError(
            f"{checkpoint.path}: holds a model that visus did not build; in Python, make the module and call "
            "module.load_state_dict(visus.load_checkpoint(path).model_tensors)"
        )
    try:
        model = build_model(name, **checkpoint.document["model_args"])
    # It may name what another version of a library has, or what there never was.
    except (UsageError, TypeError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{checkpoint.path}: its model cannot be built here: {error}") from None
    load_tensors(model, checkpoint.model_tensors, checkpoint.path)
    if checkpoint.temperature != 1:
        divide_logits(model, checkpoint.temperature)
    return model


def divide_logits(model: nn.Module, temperature: float) -> None:
    """Let `model` divide what it returns by `temperature` from now on; its weights and their names stay as they are."""
    model.register_forward_hook(lambda _module, _inputs, logits: logits / temperature)


def pack_optimizer(optimizer: Optimizer, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
    """The state of an optimizer, its tensors by parameter name, and what it keeps in plain values."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors: Tensors = {}
    plain: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            name = f"{names[parameter]}.{key}"
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                plain[name] = value
    return tensors, {
        "state": plain,
        "groups": [_group_state(optimizer, group) for group in optimizer.param_groups],
    }


def restore_optimizer(
    optimizer: Optimizer, model: nn.Module, tensors: Tensors, plain: Mapping[str, Any], origin: object = "it"
) -> None:
    """Give `optimizer` the state that `pack_optimizer` took; `CheckpointError` naming `origin` where it does not fit."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, value in {**tensors, **plain["state"]}.items():
        owner, _, key = name.rpartition(".")
        parameter = parameters.get(owner)
        if parameter is None or (isinstance(value, Tensor) and value.shape not in (parameter.shape, ())):
            raise CheckpointError(f"{origin}: the state of the optimizer does not fit the model: {name}")
        optimizer.state[parameter][key] = value
    match_layout(optimizer)
    for group, values in zip(optimizer.param_groups, plain["groups"], strict=True):
        for key, value in values.items():
            group[key] = _to_scalar(value) if isinstance(value, dict) else value


def _group_state(optimizer: Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer counts in its groups (as LAMB and schedule-free ones do); its settings come from the config."""
    settings = {"params", "lr", "initial_lr", *optimizer.defaults}
    counted = {key: value for key, value in group.items() if key not in settings}
    return {
        key: _from_scalar(value) if isinstance(value, Tensor) else value
        for key, value in counted.items()
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.dim() == 0)
    }


def _from_scalar(tensor: Tensor) -> dict[str, Any]:
    """A tensor of one number as plain values, exactly."""
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "value": tensor.item()}


def _to_scalar(values: dict[str, Any]) -> Tensor:
    return torch.tensor(values["value"], dtype=getattr(torch, values["dtype"]))


def _without_ties(tensors: Tensors) -> tuple[Tensors, dict[str, str]]:
    """Tensors that share their storage once, and the other names of each; safetensors stores no tensor twice."""
    kept: Tensors = {}
    aliases: dict[str, str] = {}
    owner: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in owner:
            aliases[name] = owner[place]
        else:
            owner[place] = name
            kept[name] = tensor
    return kept, aliases


def _verify(path: Path) -> None:
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        raise OSError(f"what was written reads back otherwise: {error}") from None


def _checksum(tensors: Tensors, document: Mapping[str, Any]) -> str:
    """SHA-256 over the document (without this entry) and all tensors, as `model_digest` takes them."""
    digest = hashlib.sha256(_canonical({k: v for k, v in document.items() if k != "checksum"}).encode())
    _update(digest, tensors)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    for name in sorted(tensors):
        tensor = tensors[name]
        line = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        digest.update(tensor_bytes(tensor))


def _canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def iterate_parts(tensors: Mapping[str, Tensors]) -> Iterator[tuple[str, Tensor]]:
    """`{"model": {"fc.bias": t}}` as `("model.fc.bias", t), ...`."""
    for part, members in tensors.items():
        for name, tensor in members.items():
            yield f"{part}.{name}", tensor
