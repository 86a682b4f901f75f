"""From a name to a model: visus's small nets, torchvision's classification models, timm's.

`K` is the number of classes, `C` that of the input's channels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, Literal

import timm
import torchvision
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from visus.errors import UsageError
from visus.models.fitting import load_weights
from visus.models.heads import head_layers
from visus.models.names import resolve_model
from visus.models.small import SMALL_NETS
from visus.models.weights import pretrained_tensors

# These two are built with auxiliary classifiers, which serve only a training recipe of their own.
_WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}


def build_model(
    name: str,
    num_classes: int | None = None,
    *,
    in_channels: int = 3,
    img_size: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    stem: Literal["small"] | None = None,
    drop_path: float | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> nn.Module:
    """A model by name, its head for `num_classes`; without them, as its library builds it.

    `resnet18` is torchvision's, or else timm's; `torchvision/NAME` and `timm/NAME` say which; `small`, `quick` and `quick_wide` are
    visus's own. `img_size` is for models that are built for images of one size (vision transformers); position embeddings of
    weights are resized to it. `weights` is a file, or over the network `default`, a name that the library has for some
    (`IMAGENET1K_V1`, `a1_in1k`), or `hf-hub:OWNER/NAME`; a head of another size stays new, and the first convolution is adapted to
    `in_channels`. `say` is told where names differ and tensors were taken in their order. `stem="small"` gives ResNets a first
    convolution of 3 x 3 without stride, and no pooling, for small images. `drop_path` is the chance that the deepest residual
    branch is left out for an image in training (stochastic depth; a little less in some of timm's), and less of those before it;
    without it the library's own. New weights are drawn from torch's global generator. Raises `UsageError` for names and arguments,
    `CheckpointError` for weights that do not fit, and what the library raises for a size that it cannot build.
    """
    if drop_path is not None and not 0 <= drop_path < 1:
        raise UsageError(f"expected drop_path from 0 to less than 1, found {drop_path}")
    library, own_name = resolve_model(name)
    tensors = None if weights is None else pretrained_tensors(library, own_name, weights)
    if library == "visus":
        model: nn.Module = SMALL_NETS[own_name](1000 if num_classes is None else num_classes, in_channels)
    elif library == "timm":
        model = _build_timm(own_name, num_classes, in_channels, img_size, drop_path)
    else:
        model = _build_torchvision(own_name, num_classes, in_channels, img_size)
    if stem:
        _use_small_stem(model, name)
    if drop_path is not None:
        _set_drop_path(model, name, drop_path)
    if tensors is not None:
        load_weights(model, tensors, str(weights), replaced=("conv1",) if stem else (), say=say)
    return model


def _build_timm(
    name: str, num_classes: int | None, in_channels: int, img_size: int | None, drop_path: float | None
) -> nn.Module:
    options: dict[str, Any] = {"in_chans": in_channels}
    if drop_path is not None:
        options["drop_path_rate"] = drop_path
    if num_classes is not None:
        options["num_classes"] = num_classes
    configuration = timm.get_pretrained_cfg(name)
    if img_size and configuration and configuration.input_size[1:] != (img_size, img_size):
        try:
            return _with_head(_create_timm(name, img_size=img_size, **options), num_classes)
        except TypeError as error:
            # Most models take images of any size, and no such argument.
            if "img_size" not in str(error):
                raise
    return _with_head(_create_timm(name, **options), num_classes)


def _create_timm(name: str, **options: Any) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        if options.pop("drop_path_rate"):
            raise _no_branches(name) from None
        model = timm.create_model(name, **options)
    return model


def _with_head(model: nn.Module, num_classes: int | None) -> nn.Module:
    """`model`; one that timm has as an encoder only, whatever classes it is asked for, gets a head over the mean of its outputs."""
    configuration: Any = model.pretrained_cfg
    head = configuration["classifier"] or "head"
    if num_classes and not configuration["num_classes"] and not _has_weight(model, head):
        size: Any = model.head_hidden_size
        setattr(model, head, nn.Linear(size, num_classes))
        model.register_forward_hook(_classify)
    return model


def _has_weight(model: nn.Module, name: str) -> bool:
    return hasattr(dict(model.named_modules()).get(name), "weight")


def _classify(model: nn.Module, _: Any, features: Tensor) -> Tensor:
    """From tokens `[N, T, D]` or a map `[N, D, h, w]` to logits."""
    (head,) = head_layers(model)
    pooled = features.mean(1) if features.dim() == 3 else features.mean((2, 3))
    logits: Tensor = model.get_submodule(head)(pooled)
    return logits


def _build_torchvision(
    name: str, num_classes: int | None, in_channels: int, img_size: int | None
) -> nn.Module:
    options: dict[str, Any] = {}
    if name in _WITH_AUXILIARY_HEADS:
        options = {"init_weights": True, "aux_logits": num_classes is None}
    if num_classes is not None:
        options["num_classes"] = num_classes
    if img_size and name.startswith("vit"):
        options["image_size"] = img_size
    if img_size and name.startswith("maxvit"):
        options["input_size"] = (img_size, img_size)
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    if in_channels != 3:
        first = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
        _replace(model, first, in_channels=in_channels)
    return model


def _use_small_stem(model: nn.Module, name: str) -> None:
    """As for CIFAR in He et al., Deep Residual Learning for Image Recognition, 2016."""
    conv, pool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
    if not isinstance(conv, nn.Conv2d) or not isinstance(pool, nn.Module):
        raise UsageError(f"expected a ResNet for the small stem, found {name}; leave --stem out")
    _replace(model, "conv1", kernel_size=3, stride=1, padding=1)
    model.maxpool = nn.Identity()


def _set_drop_path(model: nn.Module, name: str, rate: float) -> None:
    """Bring what torchvision built to `rate` in its deepest block, in the proportions it has; timm was told when it built."""
    branches = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    if rate and not branches and not any(isinstance(module, DropPath) for module in model.modules()):
        raise _no_branches(name)
    deepest = max((module.p for module in branches), default=0.0)
    for module in branches:
        module.p *= rate / deepest


def _no_branches(name: str) -> UsageError:
    return UsageError(f"expected a model whose branches can be left out, found {name}; leave --drop-path out")


def _replace(model: nn.Module, name: str, **changes: Any) -> None:
    """Put a new convolution in place of `name`, which differs in `changes` only."""
    old = model.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    kept = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    arguments = {each: getattr(old, each) for each in kept} | changes
    new = nn.Conv2d(**arguments, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
