"""Weights that a model starts from: a library's own, or a file's."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torchvision
from torch import Tensor, nn

from visus.errors import CheckpointError, UsageError
from visus.models.names import resolve_model
from visus.preprocessing import Preprocessing
from visus.tensorfile import read_header, read_tensors

_AUXILIARY = ("aux", "AuxLogits")


def pretrained_tensors(library: str, name: str, weights: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors that `weights` means: a file's, or with `default` those the library has for the model `name`.

    `UsageError` where there are none, or no network to fetch them.
    """
    if str(weights) != "default":
        tensors = read_tensors(weights)
        # In a checkpoint of visus the averaged weights are those to use; other files have no such names.
        parts = [[name for name in tensors if name.startswith(prefix)] for prefix in ("ema.", "model.")]
        names = parts[0] or parts[1] or list(tensors)
        return {each.removeprefix("ema.").removeprefix("model."): tensors[each] for each in names}
    try:
        if library == "timm":
            return dict(timm.create_model(name, pretrained=True).state_dict())
        if library == "torchvision":
            return dict(torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False))
    # Both libraries pass on whatever their client of the day raises: URLError, LocalEntryNotFoundError, RuntimeError, ...
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(
            f"the default weights of {name} cannot be had ({type(error).__name__}: {reason}); without a network give --weights FILE"
        ) from None
    raise UsageError(f"{name} has no default weights; leave --weights out or give a file")


def pretrained_preprocessing(model: str, weights: str | os.PathLike[str]) -> Preprocessing | None:
    """What the model `model` expects of an image when it starts from `weights`; `None` where nobody says.

    A checkpoint of visus says it itself; for other files, as for `default`, it is what the model's library states.
    """
    if Path(weights).suffix == ".safetensors" and (stored := read_header(weights).get("visus")):
        return Preprocessing.from_json(json.loads(stored)["preprocess"])
    library, name = resolve_model(model)
    if library == "timm":
        return _timm_preprocessing(name)
    if library == "torchvision":
        return _torchvision_preprocessing(name)
    return None


def _timm_preprocessing(name: str) -> Preprocessing | None:
    configuration = timm.get_pretrained_cfg(name)
    if configuration is None:
        return None
    stated = timm.data.resolve_data_config(pretrained_cfg=configuration.to_dict())
    channels, height, width = stated["input_size"]
    resize = math.floor(min(height, width) / stated["crop_pct"])
    # `random` chooses anew for every image; evaluation needs one.
    interpolation: Any = "bicubic" if stated["interpolation"] == "random" else stated["interpolation"]
    return Preprocessing((height, width), channels, stated["mean"], stated["std"], resize, interpolation)


def _torchvision_preprocessing(name: str) -> Preprocessing:
    stated = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    side, resize = stated.crop_size[0], stated.resize_size[0]
    mean, std = tuple(stated.mean), tuple(stated.std)
    if name in ("googlenet", "inception_v3"):
        # With weights, torchvision builds these two so that they bring ImageNet's statistics back to these themselves.
        mean = std = (0.5, 0.5, 0.5)
    return Preprocessing((side, side), 3, mean, std, resize, stated.interpolation.value)


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> list[str]:
    """Load `tensors` into `model`, and return the names of those that stay new: a head of another number of classes.

    A first convolution for other channels is adapted, as timm does: summed for grey, else repeated and scaled. Auxiliary
    heads that the model lacks are left out. `CheckpointError`, naming layers, where anything else differs.
    """
    own = model.state_dict()
    head = _head(own)
    fitted: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, tensor in own.items():
        given = tensors.get(name)
        if given is not None and given.dim() == 4 == tensor.dim() and given.shape[1] == 3 != tensor.shape[1]:
            given = _adapt_channels(given, tensor.shape[1])
        if given is not None and given.shape == tensor.shape:
            fitted[name] = given
        elif name.rpartition(".")[0] != head:
            found = "nothing" if given is None else str(list(given.shape))
            wrong.append(f"{name}: {list(tensor.shape)} expected, {found} found")
    wrong += [
        f"{name}: not in the model" for name in tensors if name not in own and not name.startswith(_AUXILIARY)
    ]
    if wrong or not fitted:
        listed = "; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise CheckpointError(f"{Path(origin).name}: the weights are not those of this model: {listed}")
    model.load_state_dict(fitted, strict=False)
    return [name for name in own if name not in fitted]


def _head(own: Mapping[str, Tensor]) -> str:
    """The last layer with a weight."""
    return next(name for name in reversed(list(own)) if name.endswith(".weight")).rpartition(".")[0]


def _adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """`[O, 3, h, w]` to `[O, C, h, w]`; the response to a grey image is kept where C is 1 or a multiple of 3."""
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels]
    return repeated * (3 / channels)
