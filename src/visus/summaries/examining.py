"""Looking at a model without disturbing it: what runs in a pass, and what a training step takes."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from visus.errors import UsageError
from visus.inference import eval_mode
from visus.models.hollow import fake_mode, hollow_copy
from visus.summaries.memory import Inputs, Peak, model_device, predict_inference, predict_peak
from visus.summaries.tracing import Trace, are_alike, extrapolate, first_line, trace

Amp = Literal["off", "bf16", "fp16"]
Item = tuple[int, ...] | Tensor
"""The size of one item of an input, of random numbers then, or such an item."""
Sizes = tuple[list[Item], dict[str, Item]]
"""Of each input: arguments, and keyword arguments."""


@dataclass(frozen=True)
class Findings:
    """What was seen of a model."""

    run: Trace
    """A pass as it was made: of two images where one was asked for."""
    trace: Trace
    """The pass of the batch that was asked for."""
    peak: Peak | None
    """Of a training step."""
    inference_bytes: int | None
    """The peak of a pass without gradients."""
    parameters: list[nn.Parameter]
    remarks: list[str]


def all_items(sizes: Sizes) -> list[Item]:
    """Without the keywords."""
    arguments, keywords = sizes
    return [*arguments, *keywords.values()]


def all_sizes(sizes: Sizes) -> list[tuple[int, ...]]:
    """Of one item of each input, without the keywords."""
    return [tuple(each.shape) if isinstance(each, Tensor) else each for each in all_items(sizes)]


def item_bytes(model: nn.Module, sizes: Sizes) -> int:
    """Of one item of every input."""
    own = input_dtype(model).itemsize
    return sum(
        each.nbytes if isinstance(each, Tensor) else own * math.prod(each) for each in all_items(sizes)
    )


def runnable_copy(model: nn.Module, sizes: Sizes) -> nn.Module:
    """A hollow copy, made under a `fake_mode`, that runs in one piece; its lazy layers have met inputs of these sizes."""
    hollow = hollow_copy(model)
    for module in hollow.modules():
        if isinstance(module, nn.DataParallel):
            # Otherwise each of its replicas would be counted.
            module.device_ids = []
    if any(nn.parameter.is_lazy(each) for each in hollow.parameters()):
        arguments, keywords = input_maker(hollow, sizes)(2)
        with torch.no_grad():
            hollow(*arguments, **keywords)
    return hollow


def input_maker(model: nn.Module, sizes: Sizes) -> Callable[[int], Inputs]:
    """A function from a number of images to inputs on the model's device: items repeated, or random, in the model's own type."""
    device, dtype = model_device(model), input_dtype(model)
    arguments, keywords = sizes

    def batch(images: int, item: Item) -> Tensor:
        if isinstance(item, Tensor):
            return item.detach().to(device)[None].repeat(images, *[1] * item.dim())
        return torch.rand(images, *item, device=device, dtype=dtype)

    def make(images: int) -> Inputs:
        return (
            [batch(images, each) for each in arguments],
            {name: batch(images, each) for name, each in keywords.items()},
        )

    return make


def input_dtype(model: nn.Module) -> torch.dtype:
    """The type of the first parameter, as inputs have the model's own."""
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)


def can_run(model: nn.Module, size: tuple[int, ...]) -> bool:
    """Whether a hollow copy of `model` takes inputs of this size."""
    sizes: Sizes = [size], {}
    with fake_mode(), suppress(Exception), torch.no_grad():
        hollow = runnable_copy(model, sizes).eval()
        arguments, _ = input_maker(hollow, sizes)(2)
        hollow(*arguments)
        return True
    return False


def examine(model: nn.Module, sizes: Sizes, batch_size: int, optimizer: str | None, amp: Amp) -> Findings:
    """Run a hollow copy of `model`; or where that fails the model itself, unless it is an outline on the meta device.

    Arguments are those of `summary`, -1 for one image included. `UsageError` for an input that the model cannot take.
    """
    is_outline = any(each.is_meta for each in model.parameters())
    try:
        with fake_mode():
            hollow = runnable_copy(model, sizes)
            make = input_maker(hollow, sizes)
            run, scaled, remarks = _passes(lambda n: trace(hollow, make(n), amp=amp), batch_size)
            peak, more = _predicted(hollow, make, abs(batch_size), optimizer, amp)
            inference = predict_inference(hollow.eval(), make, abs(batch_size), amp=amp)
            remarks = [*_unused_remark(hollow, run), *remarks, *more]
            return Findings(run, scaled, peak, inference, list(hollow.parameters()), remarks)
    except Exception as error:
        if is_outline:
            raise
        if any(map(is_lazy, model.parameters())):
            # Running it would not leave it as it was found.
            raise UsageError(
                f"expected a model that can be run without numbers, or without lazy layers: {first_line(error)}; "
                "run a batch through it first"
            ) from error
        reason = first_line(error.__cause__ or error)
    return _examine_with_numbers(model, sizes, batch_size, amp, reason)


def _examine_with_numbers(model: nn.Module, sizes: Sizes, batch_size: int, amp: Amp, reason: str) -> Findings:
    """For models that ask for values, and those that cannot be copied."""
    make = input_maker(model, sizes)
    devices = {each.device.index for each in model.parameters() if each.is_cuda}
    with eval_mode(model), torch.no_grad(), _buffers_kept(model), torch.random.fork_rng(devices):
        run, scaled, remarks = _scaled(lambda n: trace(model, make(n), amp=amp), batch_size)
    what = "inputs" if any(isinstance(each, Tensor) for each in all_items(sizes)) else "random images"
    remark = (
        f"this model cannot be run without numbers ({reason}): two {what}, and one, were sent through it in eval mode, "
        "and the peak of a training step is not known"
    )
    remarks = [remark, *_unused_remark(model, run), *_packed_remark(model), *remarks]
    return Findings(run, scaled, None, None, list(model.parameters()), remarks)


def _passes(run: Callable[[int], Trace], batch_size: int) -> tuple[Trace, Trace, list[str]]:
    """A pass as it was made, the pass of `batch_size` images, and remarks."""
    if batch_size > 1:
        only = run(batch_size)
        return only, only, []
    return _scaled(run, batch_size)


def _scaled(run: Callable[[int], Trace], batch_size: int) -> tuple[Trace, Trace, list[str]]:
    two = run(2)
    other_images: Literal[1, 3]
    for other_images in (1, 3):
        # Batch norm may refuse a single image, and a squeeze take away its dimension: then three are run.
        with suppress(UsageError):
            other = run(other_images)
            if are_alike(two, other):
                return two, extrapolate(two, other, other_images, batch_size), []
    only = run(abs(batch_size))
    return only, only, ["which layers run depends on the size of the batch"]


def _predicted(
    hollow: nn.Module, make: Callable[[int], Inputs], images: int, optimizer: str | None, amp: Amp
) -> tuple[Peak | None, list[str]]:
    if not hollow.training:
        hollow.train()
    try:
        return predict_peak(hollow, make, images, optimizer=optimizer, amp=amp), []
    except Exception as error:
        return None, [f"the peak of a training step cannot be predicted: {first_line(error)}"]


def _unused_remark(model: nn.Module, run: Trace) -> list[str]:
    if not run.unused:
        return []
    sizes = {name: each.numel() for name, each in model.named_parameters()}
    used = sizes.keys() - set(run.unused)
    parts = list(dict.fromkeys(_largest_part(name, used) for name in run.unused))
    shown = ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
    number = sum(sizes[name] for name in run.unused)
    return [f"{number:,} parameters are in the totals and were not used: {shown}"]


def _packed_remark(model: nn.Module) -> list[str]:
    """torch's quantised layers return their weight and bias from methods, and have no parameters."""
    packed = [
        held()
        for module in model.modules()
        if "quantized" in type(module).__module__
        for held in (getattr(module, "weight", None), getattr(module, "bias", None))
        if callable(held)
    ]
    number = sum(each.numel() for each in packed if isinstance(each, torch.Tensor))
    return [f"{number:,} numbers in quantised layers are no parameters, and not in the totals"] * bool(number)


def _largest_part(name: str, used: Collection[str]) -> str:
    """The outermost module around the parameter `name` none of whose parameters is in `used`; or the parameter itself."""
    path = name.split(".")
    prefixes = (".".join(path[:length]) for length in range(1, len(path)))
    return next((p for p in prefixes if not any(each.startswith(f"{p}.") for each in used)), name)


@contextmanager
def undisturbed() -> Iterator[None]:
    """The random generators of torch, numpy and Python, and torch's settings, as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with (
        # A compiled kernel reads memory that fake tensors do not have, and dies of it: timm's kron compiles its update.
        torch.compiler.set_stance("force_eager"),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        try:
            # The fused attention of inference is one operation, whose parts cannot be counted.
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    held = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, name, buffer, values in held:
            buffer.copy_(values)
            module._buffers[name] = buffer
