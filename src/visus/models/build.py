"""From a name to a model: visus's small net, torchvision's classification models, timm's.

`K` is the number of classes, `C` that of the input's channels.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import timm
import torchvision
from torch import nn

from visus.errors import UsageError
from visus.models.names import resolve_model
from visus.models.small import SmallNet
from visus.models.weights import load_weights, pretrained_tensors

# These two are built with auxiliary classifiers, which serve only a training recipe of their own.
_WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}


def build_model(
    name: str,
    num_classes: int | None = None,
    *,
    in_channels: int = 3,
    weights: str | os.PathLike[str] | None = None,
    stem: Literal["small"] | None = None,
) -> nn.Module:
    """A model by name, its head for `num_classes`; without them, as its library builds it.

    `resnet18` is torchvision's, or else timm's; `torchvision/NAME` and `timm/NAME` say which; `small` is visus's own. `weights` is
    `default` (the library's, over the network) or a file; a head of another size stays new, and the first convolution is adapted to
    `in_channels`. `stem="small"` gives ResNets a first convolution of 3 x 3 without stride, and no pooling, for small images. New
    weights are drawn from torch's global generator. Raises `UsageError` for names and arguments, `CheckpointError` for weights that
    do not fit.
    """
    library, own_name = resolve_model(name)
    tensors = None if weights is None else pretrained_tensors(library, own_name, weights)
    if library == "visus":
        model: nn.Module = SmallNet(1000 if num_classes is None else num_classes, in_channels)
    elif library == "timm":
        head = {} if num_classes is None else {"num_classes": num_classes}
        model = timm.create_model(own_name, in_chans=in_channels, **head)
    else:
        model = _build_torchvision(own_name, num_classes, in_channels)
    if stem:
        _use_small_stem(model, name)
    if tensors is not None:
        load_weights(model, tensors, str(weights))
    return model


def _build_torchvision(name: str, num_classes: int | None, in_channels: int) -> nn.Module:
    options: dict[str, Any] = {}
    if name in _WITH_AUXILIARY_HEADS:
        options = {"init_weights": True, "aux_logits": num_classes is None}
    if num_classes is not None:
        options["num_classes"] = num_classes
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
