"""Weights that a model starts from: a library's own, or a file's."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torchvision
from torch import Tensor

from visus.errors import UsageError, unknown_name
from visus.models.lora import merged
from visus.models.names import resolve_model
from visus.preprocessing import Preprocessing
from visus.tensorfile import read_header, read_tensors

HUB = "hf-hub:"
"""Before the name of a repository of Hugging Face's that holds weights of timm's."""


def pretrained_tensors(library: str, name: str, weights: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors that `weights` means: those of a file, of a library for the model `name`, or of a repository.

    `default` is what the library recommends, `IMAGENET1K_V1` or `a1_in1k` one of its other sets, `hf-hub:OWNER/NAME` a repository.
    `UsageError` where there are none, or no network to fetch them.
    """
    if is_file(library, name, weights):
        tensors = read_tensors(weights)
        # In a checkpoint of visus the averaged weights are those to use; other files have no such names.
        parts = [[name for name in tensors if name.startswith(prefix)] for prefix in ("ema.", "model.")]
        names = parts[0] or parts[1] or list(tensors)
        return merged({each.removeprefix("ema.").removeprefix("model."): tensors[each] for each in names})
    text = str(weights)
    if text.startswith(HUB):
        return _fetched(text, lambda: timm.models.load_state_dict_from_hf(text.removeprefix(HUB)))
    what = f"the weights {text} of {name}"
    if library == "timm":
        full_name = name if text == "default" else f"{name}.{text}"
        return _fetched(what, lambda: timm.create_model(full_name, pretrained=True).state_dict())
    if library == "torchvision":
        chosen = _torchvision_weights(name, text)
        return _fetched(what, lambda: chosen.get_state_dict(progress=False))
    raise UsageError(f"{name} has no default weights; leave --weights out or give a file")


def is_file(library: str, name: str, weights: str | os.PathLike[str]) -> bool:
    """Whether `weights` is a path; what is there is one before it is a name. `UsageError` for what can be neither."""
    text = str(weights)
    if Path(text).exists():
        return True
    known = ["default", *weight_names(library, name)]
    if text.startswith(HUB) or text in known:
        return False
    if text == Path(text).stem:
        raise unknown_name("file or set of weights", text, known)
    return True


def weight_names(library: str, name: str) -> list[str]:
    """The sets of weights that the library has for the model `name`."""
    if library == "timm":
        found = timm.list_pretrained(f"{name}.*")
        return [each.partition(".")[2] for each in found if each.startswith(f"{name}.")]
    return (
        [] if library != "torchvision" else [each.name for each in torchvision.models.get_model_weights(name)]
    )


def pretrained_preprocessing(model: str, weights: str | os.PathLike[str]) -> Preprocessing | None:
    """What the model `model` expects of an image when it starts from `weights`; `None` where nobody says.

    A checkpoint of visus says it itself; for other files, as for `default`, it is what the model's library states.
    """
    text = str(weights)
    if Path(text).suffix == ".safetensors" and (stored := read_header(weights).get("visus")):
        return Preprocessing.from_json(json.loads(stored)["preprocess"])
    library, name = resolve_model(model)
    chosen = "default" if is_file(library, name, weights) else text
    if chosen.startswith(HUB):
        stated = _fetched(text, lambda: timm.models.load_model_config_from_hf(text.removeprefix(HUB))[0])
        return _timm_preprocessing(stated)
    if library == "timm":
        configuration = timm.get_pretrained_cfg(name if chosen == "default" else f"{name}.{chosen}")
        return None if configuration is None else _timm_preprocessing(configuration.to_dict())
    if library == "torchvision":
        return _torchvision_preprocessing(name, _torchvision_weights(name, chosen))
    return None


def _fetched(what: str, fetch: Callable[[], Any]) -> dict[str, Any]:
    try:
        return dict(fetch())
    # The libraries pass on whatever their client of the day raises: URLError, LocalEntryNotFoundError, RuntimeError, ...
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(
            f"{what} cannot be had ({type(error).__name__}: {reason}); without a network give --weights FILE"
        ) from None


def _torchvision_weights(name: str, chosen: str) -> Any:
    sets = torchvision.models.get_model_weights(name)
    return sets.DEFAULT if chosen == "default" else sets[chosen]


def _timm_preprocessing(configuration: dict[str, Any]) -> Preprocessing:
    stated = timm.data.resolve_data_config(pretrained_cfg=configuration)
    channels, height, width = stated["input_size"]
    resize = math.floor(min(height, width) / stated["crop_pct"])
    # `random` chooses anew for every image; evaluation needs one.
    interpolation: Any = "bicubic" if stated["interpolation"] == "random" else stated["interpolation"]
    return Preprocessing((height, width), channels, stated["mean"], stated["std"], resize, interpolation)


def _torchvision_preprocessing(name: str, weights: Any) -> Preprocessing:
    stated = weights.transforms()
    side, resize = stated.crop_size[0], stated.resize_size[0]
    mean, std = tuple(stated.mean), tuple(stated.std)
    if name in ("googlenet", "inception_v3"):
        # With weights, torchvision builds these two so that they bring ImageNet's statistics back to these themselves.
        mean = std = (0.5, 0.5, 0.5)
    return Preprocessing((side, side), 3, mean, std, resize, stated.interpolation.value)
