"""From what a summary is asked for to a model and the sizes of its inputs; and what is said where the two do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visus.errors import UsageError, VisusError
from visus.models.hollow import build_outline
from visus.models.names import resolve_model
from visus.models.sizes import Size, nearest_sizes, working_sizes
from visus.summaries.examining import Amp, Findings, Item, Sizes, all_sizes, can_run, examine
from visus.summaries.tracing import InputError, first_line

_GIVE_ITEM = "in the place of a size, give a tensor of one item, such as torch.zeros(16, dtype=torch.int64)"


def prepare(
    model_or_name: nn.Module | str, input_size: Any, num_classes: int | None, in_channels: int | None
) -> tuple[nn.Module, Sizes]:
    """The model, or an outline of the one that is named, and the sizes of its inputs; arguments are those of `visus.summary`."""
    if isinstance(model_or_name, str):
        return _outline(model_or_name, input_size, num_classes, in_channels)
    if input_size is None:
        raise UsageError("expected the size of the model's input, such as (3, 224, 224), found none")
    model = model_or_name
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    model = getattr(model, "_orig_mod", model)  # What torch.compile wraps.
    # Not public by that name; what torch.jit.trace makes can be followed.
    if type(model).__name__ == "RecursiveScriptModule":
        raise UsageError(
            "expected a model whose layers can be followed, found one made by torch.jit.script; give the module that it was made of"
        )
    return model, _read_sizes(input_size)


def _outline(
    name: str, input_size: Any, num_classes: int | None, in_channels: int | None
) -> tuple[nn.Module, Sizes]:
    if input_size is None:
        model = build_outline(name, num_classes, in_channels=in_channels or 3)
        return model, ([_own_size(name, model, in_channels or 3)], {})
    sizes = _read_sizes(input_size)
    first, size = all_sizes(sizes)[0], _image_size(sizes)
    if not first:
        raise UsageError(f"{name}: expected an image such as (3, 224, 224) for it, found a single number")
    channels = in_channels or first[0]
    side = size[0] if size and size[0] == size[1] else None
    try:
        return build_outline(name, num_classes, in_channels=channels, img_size=side), sizes
    except VisusError:
        raise
    except Exception as error:
        what = f"images of {size[0]} x {size[1]}" if size else f"inputs of {all_sizes(sizes)}"
        refusal = UsageError(f"{name} cannot be built for {what}: {first_line(error)}")
        raise _with_sizes(refusal, working_sizes(name, size, in_channels=channels) if size else []) from error


def _image_size(sizes: Sizes) -> Size | None:
    """Height and width of the images, where they are the only input."""
    given = all_sizes(sizes)
    only = given[0] if len(given) == 1 else ()
    return (only[1], only[2]) if len(only) == 3 else None


def examined(
    model_or_name: nn.Module | str,
    model: nn.Module,
    sizes: Sizes,
    batch_size: int,
    optimizer: str | None,
    amp: Amp,
) -> Findings:
    """What `examine` finds; its refusal says which images work, where there are any, and what to give to what takes indices."""
    try:
        return examine(model, sizes, batch_size, optimizer, amp)
    except UsageError as error:
        if isinstance(error, InputError) and isinstance(error.module, nn.Embedding | nn.EmbeddingBag):
            raise UsageError(f"{error}; {_GIVE_ITEM}") from error
        size = _image_size(sizes)
        if size is None:
            raise
        channels = all_sizes(sizes)[0][0]
        if isinstance(model_or_name, str):
            works = working_sizes(model_or_name, size, in_channels=channels)
        else:
            works = nearest_sizes(lambda tried: can_run(model, (channels, *tried)), size, 224)
        raise _with_sizes(error, works) from error


def _with_sizes(refusal: UsageError, works: list[Size]) -> UsageError:
    listed = " and ".join(f"{height} x {width}" for height, width in works)
    return UsageError(f"{refusal}; images of {listed} work") if works else refusal


def _own_size(name: str, model: nn.Module, channels: int) -> tuple[int, ...]:
    library, own_name = resolve_model(name)
    if library == "timm":
        config: Any = model.pretrained_cfg
        return (channels, *config["input_size"][1:])
    side = 32 if library == "visus" else 299 if own_name == "inception_v3" else 224
    return channels, side, side


def _read_sizes(given: Any) -> Sizes:
    if isinstance(given, Mapping):
        return [], {name: _read_size(each) for name, each in given.items()}
    if isinstance(given, Sequence) and given and all(isinstance(each, Sequence | Tensor) for each in given):
        return [_read_size(each) for each in given], {}
    return [_read_size(given)], {}


def _read_size(given: Any) -> Item:
    if isinstance(given, Tensor):
        if given.layout != torch.strided:
            raise UsageError(f"expected a tensor whose numbers are all there, found one of {given.layout}")
        return given
    is_list = isinstance(given, Sequence) and len(given) > 0
    if not is_list or not all(isinstance(each, int) and each > 0 for each in given):
        raise UsageError(f"expected a size such as (3, 224, 224), found {given!r}")
    return tuple(given)
