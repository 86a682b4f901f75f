"""Where on an image a model saw what it says: maps over its pixels.

`N` images, `C` channels, `H` height, `W` width; a layer has `h` by `w` places of `D` channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from visus.errors import UsageError
from visus.inference import eval_mode

Size = tuple[int, int]
"""Height and width."""
_View = Callable[[Tensor], Tensor]
"""From what a layer gives to `[N, D, h, w]`."""

# A linear layer of a transformer is a part of its attention, whose channels mix queries, keys and values; dropout and identity give
# nothing of their own, and stand in attention too, where heads and tokens may look like height and width. Adaptive pooling may
# repeat one place.
_PASSED_OVER = (nn.Linear, nn.Dropout, nn.Identity, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_MOST_OTHER_TOKENS = 16


@dataclass(frozen=True)
class _Places:
    layer: nn.Module
    view: _View
    grid: Size
    tokens: bool
    """Whether they are a transformer's."""


def explain(
    model: nn.Module, images: Tensor, targets: Tensor | None = None, *, batch_size: int = 32
) -> Tensor:
    """How much each place of `images` `[N, C, H, W]` speaks for the class in `targets` (int64 `[N]`): float32 `[N, H, W]`, 0 to 1.

    Images are normalised, as the model takes them; without `targets` each is explained as the class that the model says. This is
    Grad-CAM (Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, 2017) at the last
    layer that still has places: its channels, weighted by the mean gradients of the class's logit and summed, what is negative put
    to 0, enlarged bilinearly to `[H, W]`, and divided by the map's maximum; a map of zeros means that nothing speaks for the class.
    Tokens of a transformer mix what they hold, and gradients at them often miss the place: there it is how much the
    class's log-probability falls when the mean colour covers the pixels of a token (occlusion: Zeiler and Fergus, Visualizing and
    Understanding Convolutional Networks, 2014), at the cost of a run of the model for each token.

    Images go through `model` where its parameters are, `batch_size` at a time, in eval mode; maps come back to the device of
    `images`, the same bits each time. `model` is left as it was. Raises `UsageError` for other shapes, classes that there are not,
    and a model without a layer that has places.
    """
    _check(images, targets)
    with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        places = _last_places(model, (1, *images.shape[1:]))
        maps = [torch.empty((0, *images.shape[2:]), device=images.device)]
        for begin in range(0, len(images), batch_size):
            some = images[begin : begin + batch_size]
            wanted = None if targets is None else targets[begin : begin + batch_size]
            maps.append(_maps(model, places, some, wanted))
    return torch.cat(maps)


def passes_for(model: nn.Module, shape: tuple[int, ...]) -> int:
    """How many times `explain` runs an image through `model`; `shape` is that of one, `(1, C, H, W)`."""
    with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        places = _last_places(model, shape)
    # A backward pass counts as two.
    return 2 + math.prod(places.grid) if places.tokens else 4


def _maps(model: nn.Module, places: _Places, images: Tensor, targets: Tensor | None) -> Tensor:
    with torch.no_grad():
        logits = model(_moved(model, images))
    # A copy: autograd takes no tensor made in inference mode.
    targets = logits.argmax(dim=1) if targets is None else targets.to(logits.device).clone()
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        found = f"{targets.min()} to {targets.max()}"
        raise UsageError(f"expected targets from 0 to {logits.shape[1] - 1}, found {found}")
    coarse = (_occluded if places.tokens else _grad_cam)(model, places, images, targets).relu()
    maps = functional.interpolate(coarse, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    # A map of zeros stays one.
    maps = maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return maps.to(images.device)


def _grad_cam(model: nn.Module, places: _Places, images: Tensor, targets: Tensor) -> Tensor:
    """`[N, 1, h, w]`: the channels of the layer, weighted by the means of the gradients."""
    with _outputs([places.layer]) as found:
        logits = _run(model, images)
    (gradients,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), found[places.layer])
    weights = places.view(gradients).float().mean(dim=(2, 3), keepdim=True)
    return (places.view(found[places.layer].detach()).float() * weights).sum(dim=1, keepdim=True)


def _occluded(model: nn.Module, places: _Places, images: Tensor, targets: Tensor) -> Tensor:
    """`[N, 1, h, w]`: by how much the log-probability falls when a place is covered."""
    (h, w), (height, width) = places.grid, images.shape[2:]
    images = _moved(model, images)
    rest = []
    with torch.no_grad():
        whole = model(images).log_softmax(dim=1).gather(1, targets[:, None])
        for row, column in itertools.product(range(h), range(w)):
            covered = images.clone()
            rows = slice(row * height // h, (row + 1) * height // h)
            covered[:, :, rows, column * width // w : (column + 1) * width // w] = 0
            rest.append(model(covered).log_softmax(dim=1).gather(1, targets[:, None]))
    fall: Tensor = whole - torch.cat(rest, dim=1)
    return fall.float().view(-1, 1, h, w)


def _last_places(model: nn.Module, shape: tuple[int, ...]) -> _Places:
    """Those of the last layer to run on whose places the logits depend.

    It is found by one image that is always the same: of a class token's model the patches' tokens have no gradient once they have
    been attended to for the last time.
    """
    image = torch.arange(math.prod(shape), dtype=torch.float32).sin().view(shape)
    layers = [each for each in model.modules() if not isinstance(each, _PASSED_OVER)]
    with _outputs(layers) as found:
        logits = _run(model, image)
    grid: Size | None = None
    views: dict[nn.Module, tuple[_View, Size]] = {}
    for layer, output in found.items():
        if (seen := _view(output, (shape[2], shape[3]), grid)) is not None:
            views[layer], grid = seen, seen[1]
    seen_by = [found[each] for each in views]
    gradients = torch.autograd.grad(logits[:, 0].sum(), seen_by, allow_unused=True) if seen_by else ()
    for (layer, (view, size)), gradient in reversed(list(zip(views.items(), gradients, strict=True))):
        if gradient is not None and view(gradient).any():
            return _Places(layer, view, size, tokens=found[layer].dim() == 3)
    raise UsageError(
        f"expected a model with a layer of several places on which its logits depend, found none in "
        f"{type(model).__name__} for images of {shape[2]} x {shape[3]} pixels; larger ones may leave it some"
    )


def _view(output: Tensor, size: Size, grid: Size | None) -> tuple[_View, Size] | None:
    """How to see what a layer gives for one image as `[1, D, h, w]`, and `(h, w)`; `grid` is that of the layers before it."""
    shape = tuple(output.shape)
    if len(shape) == 4 and shape[0] == 1:
        if _like(shape[2:], size):
            return (lambda features: features), (shape[2], shape[3])
        if _like(shape[1:3], size):
            return (lambda features: features.movedim(3, 1)), (shape[1], shape[2])
    if len(shape) == 3 and shape[0] == 1 and grid:
        others = shape[1] - math.prod(grid)
        if 0 <= others <= _MOST_OTHER_TOKENS:
            # Class tokens and registers come first.
            return (lambda tokens: tokens[:, others:].transpose(1, 2).unflatten(2, grid)), grid
    return None


def _like(places: tuple[int, ...], size: Size) -> bool:
    """Whether several `places` are an image of `size` made smaller, up to what convolutions without padding cut off."""
    if math.prod(places) < 2:
        return False
    stride = math.sqrt(math.prod(size) / math.prod(places))
    return stride >= 1 and all(abs(n - whole / stride) < 2 for n, whole in zip(places, size, strict=True))


def _run(model: nn.Module, images: Tensor) -> Tensor:
    """Logits whose gradients reach every layer, also of a model that is frozen; parameters get none."""
    # A copy of the leaf, since a layer may change its input in place.
    logits: Tensor = model(_moved(model, images).requires_grad_().clone())
    return logits


def _moved(model: nn.Module, images: Tensor) -> Tensor:
    """A copy of `images` where the model is."""
    return images.detach().to(next(model.parameters(), images).device).clone()


@contextmanager
def _outputs(layers: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """What each of `layers` gave last, in the order in which they ran; only what gradients can reach."""
    found: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, _: object, output: object) -> None:
        found.pop(layer, None)
        if isinstance(output, Tensor) and output.requires_grad:
            found[layer] = output

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _check(images: Tensor, targets: Tensor | None) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        found = f"{images.dtype} {list(images.shape)}"
        raise UsageError(f"expected normalised images of shape [N, C, H, W] as floats, found {found}")
    if targets is not None and (targets.dtype != torch.int64 or targets.shape != images.shape[:1]):
        found = f"{targets.dtype} {list(targets.shape)}"
        raise UsageError(f"expected an int64 target for each of {len(images)} images, found {found}")
