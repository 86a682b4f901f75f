"""Weights brought into a model: for other classes, channels and sizes, and under other names."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from visus.errors import CheckpointError
from visus.models.heads import head_layers

_AUXILIARY = ("aux", "AuxLogits")
_COUNTER = "num_batches_tracked"


def load_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    origin: str,
    *,
    replaced: Collection[str] = (),
    say: Callable[[str], object] = str,
) -> list[str]:
    """Load `tensors` into `model`, fitted to it, and return the names of those that stay new."""
    fitted = fit_weights(model, tensors, origin, replaced=replaced, say=say)
    model.load_state_dict(fitted, strict=False)
    return [name for name in model.state_dict() if name not in fitted]


def fit_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    origin: str,
    *,
    replaced: Collection[str] = (),
    say: Callable[[str], object] = str,
) -> dict[str, Tensor]:
    """`tensors` as `model` can load them, by its names; a head of another number of classes is left out, as it stays new.

    A first convolution for other channels is adapted, as timm does: summed for grey, else repeated and scaled. Position embeddings
    of another image size are resized, by the model's own library. Auxiliary heads that the model lacks are left out, and layers
    that were `replaced` stay new where they do not fit. Where all names differ but the shapes fit in their order, tensors are taken
    in that order, and `say` is told. `CheckpointError`, naming layers, where anything else differs.
    """
    new = (*head_layers(model), *replaced)
    fitted, wrong = _fit(model, tensors, new)
    if wrong and (converted := _by_library(model, tensors)):
        fitted_again, still_wrong = _fit(model, converted, new)
        if not still_wrong:
            fitted, wrong = fitted_again, []
    if wrong and (renamed := _in_order(model, tensors, new)):
        fitted, wrong = _fit(model, renamed, new)
        say(_order_is_a_guess(origin, tensors, renamed))
    if wrong or not fitted:
        listed = "; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise CheckpointError(f"{Path(origin).name}: the weights are not those of this model: {listed}")
    return fitted


def _fit(
    model: nn.Module, tensors: Mapping[str, Tensor], new: Collection[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Those that fit, by name, and what is wrong with the others but for the layers in `new`."""
    own = model.state_dict()
    first = _first_layers(model)
    fitted: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, tensor in own.items():
        given = tensors.get(name)
        if given is not None and name in first:
            given = _adapt_channels(given, tensor)
        if given is not None and given.shape == tensor.shape:
            fitted[name] = given
        elif name.rpartition(".")[0] not in new and not (given is None and name.endswith(_COUNTER)):
            found = "nothing" if given is None else str(list(given.shape))
            wrong.append(f"{name}: {list(tensor.shape)} expected, {found} found")
    wrong += [
        f"{name}: not in the model"
        for name in tensors
        if name not in own and name.rpartition(".")[0] not in new and not name.startswith(_AUXILIARY)
    ]
    return fitted, wrong


def _first_layers(model: nn.Module) -> set[str]:
    """The weights that the channels of an image meet."""
    stated = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    names = [stated] if isinstance(stated, str) else list(stated or ())
    names += [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][:1]
    return {f"{name}.weight" for name in names}


def _adapt_channels(weight: Tensor, like: Tensor) -> Tensor:
    """`[O, I, h, w]` to the channels of `like`; the response to a grey image is kept where that can be.

    A convolution after pixels were stacked (space to depth) has several groups of red, green and blue.
    """
    if not weight.dim() == like.dim() == 4:
        return weight
    given, channels = weight.shape[1], like.shape[1]
    groups = given // 3 if given % 3 == 0 and given > 3 and channels % (given // 3) == 0 else 1
    base, wanted = given // groups, channels // groups
    if base == wanted or base not in (1, 3):
        return weight
    colours = weight.reshape(weight.shape[0], groups, base, *weight.shape[2:])
    if wanted == 1:
        return colours.sum(dim=2)
    repeated = colours.repeat(1, 1, -(-wanted // base), 1, 1)[:, :, :wanted] * (base / wanted)
    return repeated.flatten(1, 2)


def _by_library(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors as the model's library converts them: from older names, for another size of the images."""
    if isinstance(model, torchvision.models.VisionTransformer) and "encoder.pos_embedding" in tensors:
        state: Any = dict(tensors)
        resize = torchvision.models.vision_transformer.interpolate_embeddings
        # It takes a position for each patch, and one for the class, to be given; whatever else it meets is no such file.
        return _or_none(lambda: resize(model.image_size, model.patch_size, state))
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return None if convert is None else _or_none(lambda: convert(dict(tensors), model))


def _or_none(convert: Callable[[], Any]) -> dict[str, Tensor] | None:
    """What comes of files of other models is any error there is."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # How a library calls torch is no news to who loads weights.
            warnings.simplefilter("ignore")
            return dict(convert())
    except Exception:
        return None


def _in_order(
    model: nn.Module, tensors: Mapping[str, Tensor], new: Collection[str]
) -> dict[str, Tensor] | None:
    """`tensors` under the model's names, where both have the same kinds and shapes in the same order.

    A kind is the last part of a name (`weight`, `running_mean`). A name that both have must stand at the same place. Of the layers
    in `new` the kind is enough, as they may be for other classes.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_COUNTER)}
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}
    if len(own) != len(given):
        return None
    first = _first_layers(model)
    for (name, tensor), (other_name, other) in zip(own.items(), given.items(), strict=True):
        as_adapted = _adapt_channels(other, tensor) if name in first else other
        same_shape = tensor.shape == as_adapted.shape or name.rpartition(".")[0] in new
        same_kind = name.rpartition(".")[2] == other_name.rpartition(".")[2]
        if not (same_shape and same_kind) or (name != other_name and (name in given or other_name in own)):
            return None
    return dict(zip(own, given.values(), strict=True))


def _order_is_a_guess(origin: str, tensors: Mapping[str, Tensor], renamed: Mapping[str, Tensor]) -> str:
    given = [name for name in tensors if not name.endswith(_COUNTER)]
    pairs = [f"{other} as {name}" for name, other in zip(renamed, given, strict=True)]
    return (
        f"{Path(origin).name}: names its tensors otherwise than the model does, so they were taken in their order, in which all "
        f"{len(pairs)} have the right kind and shape ({pairs[0]}, ..., {pairs[-1]}); see that the first results are good"
    )
