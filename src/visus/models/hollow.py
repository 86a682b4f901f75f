"""Models without storage: shapes and types of every tensor, and no numbers.

A hollow model is a copy whose tensors are fake (`torch._subclasses.FakeTensorMode`). It runs like the original, only that nothing
is computed and nothing allocated.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.utils._pytree import tree_leaves

from visus.errors import CheckpointError, VisusError
from visus.models.build import build_model
from visus.models.fitting import fit_weights
from visus.models.names import resolve_model
from visus.models.weights import pretrained_tensors

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode


def build_outline(
    name: str, num_classes: int | None = None, *, in_channels: int = 3, img_size: int | None = None
) -> nn.Module:
    """What `build_model` builds, its parameters on the meta device: they have a shape and no storage."""
    with warnings.catch_warnings():
        # Initialisers say that they do nothing to meta tensors, timm that a name is old: no news to who asks for shapes.
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return build_model(name, num_classes, in_channels=in_channels, img_size=img_size)
        except VisusError:
            raise
        except Exception:
            # torchvision's RegNets compute their widths with tensors; timm's hybrids, which run their stem, need the way above.
            with _parameters_on_meta():
                return build_model(name, num_classes, in_channels=in_channels, img_size=img_size)


def check_weights(
    name: str,
    num_classes: int,
    weights: str | os.PathLike[str],
    *,
    in_channels: int = 3,
    img_size: int | None = None,
    stem: Literal["small"] | None = None,
) -> None:
    """Raise what `build_model` raises of these `weights`, in the time that it takes to read them.

    They are tried on an outline; where that does not take them, on a model, whose word counts. What is not of the weights, such as
    a size that the model cannot be built for, is left to whoever builds it.
    """
    library, own_name = resolve_model(name)
    tensors = pretrained_tensors(library, own_name, weights)
    try:
        model = build_outline(name, num_classes, in_channels=in_channels, img_size=img_size)
    except Exception:
        return
    try:
        fit_weights(model, tensors, str(weights), replaced=("conv1",) if stem else ())
    except CheckpointError:
        options: Any = {"in_channels": in_channels, "img_size": img_size, "stem": stem}
        build_model(name, num_classes, weights=weights, say=str, **options)


@contextmanager
def fake_mode() -> Iterator[FakeTensorMode]:
    """The mode in which hollow models are made and run. An operation that could only be had by computing it raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    # It logs a traceback of every error, of which we make a sentence.
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, log.disabled = log.disabled, True
    try:
        with FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        log.disabled = was_disabled


def hollow_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` with fake tensors, made under a `fake_mode`; those of the meta device are on the CPU there."""
    tensors = {
        id(leaf): leaf
        for module in model.modules()
        for leaf in tree_leaves(vars(module))
        if isinstance(leaf, Tensor)
    }
    hollow = copy.deepcopy(model, {key: _fake(tensor) for key, tensor in tensors.items()})
    for module in hollow.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and is_lazy(tensor):
                    vars(tensor)["materialize"] = partial(_materialize, held, name)
    return hollow


def _materialize(held: dict[str, Any], name: str, shape: Any, device: Any = None, dtype: Any = None) -> None:
    """In place of a lazy tensor's own method, which would put fake data into a tensor that is not fake."""
    lazy = held[name]
    values = torch.empty(shape, device=device or lazy.device, dtype=dtype or lazy.dtype)
    is_parameter = isinstance(lazy, UninitializedParameter)
    held[name] = nn.Parameter(values, lazy.requires_grad) if is_parameter else values


def _fake(tensor: Tensor) -> Tensor:
    if is_lazy(tensor):
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        with unset_fake_temporarily():
            lazy: Any = type(tensor)
            return lazy(tensor.requires_grad, tensor.device, tensor.dtype)  # type: ignore[no-any-return]
    device = "cpu" if tensor.is_meta else tensor.device
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters registered by this thread become meta tensors before an initialiser touches their memory."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    thread = threading.get_ident()

    def to_meta(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]  # its None is any
    try:
        yield
    finally:
        handle.remove()
