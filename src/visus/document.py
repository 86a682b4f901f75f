"""What the JSON document of a checkpoint must look like before anything is done by it.

Its checksum says that it is as it was written, not who wrote it: a file of unknown origin may ask for anything.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from visus.errors import CheckpointError

CUSTOM = "custom"
"""The model of a checkpoint that visus did not build."""

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Side = Annotated[int, Field(ge=1, le=10_000)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Settings = ConfigDict(strict=True, extra="allow")


class _Arguments(BaseModel):
    """Of `build_model`; weights are not among them, as they would be fetched."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())
    num_classes: Annotated[int, Field(ge=1)]
    in_channels: Literal[1, 3]
    stem: Literal["small"] | None = None
    img_size: _Side | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None


class _Preprocess(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    size: Annotated[list[_Side], Field(min_length=2, max_length=2)]
    channels: Literal[1, 3]
    mean: list[_Number]
    std: list[_Number]
    resize: _Side | None = None
    interpolation: str = "bilinear"


class _Config(BaseModel):
    """Those settings that other commands than `train` follow."""

    model_config = _Settings
    data: str | None = None
    val: str | None = None
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    split_seed: _Count = 0
    val_batch_size: Annotated[int, Field(ge=1, le=10**6)] = 100
    amp: Literal["off", "bf16", "fp16"] = "off"
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    deterministic: bool = True
    max_pixels: Annotated[float, Field(gt=0, le=10**6)] = 100.0


class _Record(BaseModel):
    model_config = _Settings
    epoch: _Count
    phase: Literal["train", "val"]
    loss: _Number | None
    accuracy: _Number
    n: _Count
    lr: _Number
    seconds: _Number
    images_per_second: _Number


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    format: _Count
    digest: str
    checksum: str
    aliases: dict[str, str]
    model: str
    classes: list[str]
    preprocess: _Preprocess | None
    config: _Config
    model_args: _Arguments | None = None
    epoch: _Count = 0
    step: _Count = 0
    accuracy: _Number | None = None
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    state: dict[str, Any] = {}
    records: list[_Record] = []
    data: str = ""
    processes: Annotated[int, Field(ge=1)] = 1
    transform: bool = False


def check_document(document: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """`CheckpointError` naming `path` for a document that is not as visus writes them."""
    try:
        found = _Document(**document)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _refusal(path, f"{place}: {first['msg'].lower()}") from None
    except RecursionError:
        raise _refusal(path, "it is nested too deeply") from None
    if found.model_args is None and found.model != CUSTOM:
        raise _refusal(path, "model_args: field required")
    if found.model_args and found.model_args.num_classes != len(found.classes):
        raise _refusal(path, f"{len(found.classes)} classes for {found.model_args.num_classes} outputs")


def _refusal(path: str | os.PathLike[str], reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a checkpoint as visus writes them ({reason}); use another one")
