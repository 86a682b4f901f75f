"""What the modules of a model do in one forward pass: who is called, what comes out, whose parameters are used, how many FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from visus.amp import autocast
from visus.errors import UsageError
from visus.summaries.memory import DEVICE_OF, Inputs, Ledger, model_device, tensors_in

Shape = list[int]


@dataclass
class Call:
    """One call of a module."""

    name: str
    """The path from the model, empty for the model itself."""
    type: str
    module: nn.Module
    began: int
    """Its place in the order in which calls begin; a list of calls is in the order in which they end."""
    depth: int
    """How many calls it is inside of."""
    input_shapes: list[Shape]
    flops: int = 0
    """Without those of calls inside this one. A multiply-add is two."""
    shapes: list[Shape] = field(default_factory=list)
    """Of the output's tensors."""
    is_single: bool = True
    """Whether the output is a tensor, and not a collection of some."""
    output_bytes: int = 0
    kept_bytes: int = 0
    """What its operations, without those of calls inside this one, leave in memory for the backward pass."""
    parameters: list[nn.Parameter] = field(default_factory=list)
    """Those held by this module, or used by it while the module that holds them is never called; each is in one call only."""


@dataclass(frozen=True)
class Trace:
    """A forward pass."""

    calls: list[Call]
    unused: list[str]
    """Names of the parameters that no operation touched."""


class InputError(UsageError):
    """An input that a module cannot take."""

    def __init__(self, place: str, module: nn.Module) -> None:
        super().__init__(f"expected an input that the model can take, but {place}")
        self.place = place
        """Which module it is, what it was given, and what it said."""
        self.module = module


def trace(model: nn.Module, inputs: Inputs, *, amp: str = "off") -> Trace:
    """Run `model` on `inputs` and look. `InputError`, naming the module and what it was given, where it cannot."""
    arguments, keywords = inputs
    with _watched(model) as watch:
        try:
            with watch, autocast(amp, model_device(model)):
                output = model(*arguments, **keywords)
        except Exception as error:
            raise _refusal(watch.stack, error) from error
        # Only now, while the output holds what the backward pass would need.
        watch.charge_kept()
        del output
    return watch.settled()


def are_alike(first: Trace, second: Trace) -> bool:
    """Whether the same modules ran in the same order, and their outputs have as many dimensions."""
    calls = [
        [(call.name, [*map(len, call.input_shapes)], [*map(len, call.shapes)]) for call in each.calls]
        for each in (first, second)
    ]
    return calls[0] == calls[1]


def extrapolate(two: Trace, other: Trace, other_images: Literal[1, 3], batch_size: int) -> Trace:
    """The trace of `batch_size` images from those of two and of one or three, as every image adds the same to every figure.

    With `batch_size` -1, the dimensions that grow with the batch are -1 and all other figures are those of one image.
    """
    step = other_images - 2

    def at(second: int, another: int) -> int:
        return second + (abs(batch_size) - 2) * step * (another - second)

    def dimension(second: int, another: int) -> int:
        return -1 if batch_size == -1 and second != another else at(second, another)

    def shapes(second: list[Shape], another: list[Shape]) -> list[Shape]:
        pairs = zip(second, another, strict=True)
        return [[dimension(*sizes) for sizes in zip(*pair, strict=True)] for pair in pairs]

    def of_batch(a: Call, b: Call) -> Call:
        figures: dict[str, Any] = {
            name: at(getattr(a, name), getattr(b, name)) for name in ("output_bytes", "kept_bytes", "flops")
        }
        inputs = shapes(a.input_shapes, b.input_shapes)
        return replace(a, input_shapes=inputs, shapes=shapes(a.shapes, b.shapes), **figures)

    pairs_of_calls = zip(two.calls, other.calls, strict=True)
    return Trace([of_batch(*pair) for pair in pairs_of_calls], two.unused)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own have no types
    """Sees calls through hooks; FLOPs and the use of parameters through the operations.

    FLOPs are counted by torch's formulas, and ours for LSTMs, of which torch has none; its `FlopCounterMode`, which has the same
    totals otherwise, takes as long as the pass itself.
    """

    def __init__(self, model: nn.Module) -> None:
        from torch.utils.flop_counter import flop_registry

        super().__init__()  # type: ignore[no-untyped-call]
        self.stack: list[Call] = []
        self.calls: list[Call] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._names_of_parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        self._held = dict(model.named_parameters())
        self._users: dict[str, Call] = {}
        self._began = 0
        self._ledger = Ledger()
        # What is there before is no activation.
        self._ledger.hold([*model.parameters(), *model.buffers()])
        self._flop_formulas: dict[Any, Callable[..., int]] = {**flop_registry, **_recurrent_formulas()}

    def enter(self, module: nn.Module, arguments: Any, keywords: Any) -> None:
        """The hook before a forward."""
        shapes = [list(each.shape) for each in tensors_in([arguments, keywords])]
        name = self._names[module]
        call = Call(name, type(module).__name__, module, self._began, len(self.stack), shapes)
        self.stack.append(call)
        self._began += 1

    def leave(self, module: nn.Module, _: Any, output: Any) -> None:
        """The hook after a forward."""
        # Calls above it on the stack ended in an exception that the model caught.
        while (call := self.stack.pop()).module is not module:
            pass
        outputs = tensors_in(output)
        call.is_single = isinstance(output, Tensor)
        call.shapes = [list(each.shape) for each in outputs]
        call.output_bytes = sum(each.numel() * each.element_size() for each in outputs)
        self.calls.append(call)

    def charge_kept(self) -> None:
        """Charge every storage that is there to the call that made it."""
        for entry in self._ledger.entries:
            if isinstance(entry.owner, Call) and entry.died == math.inf:
                entry.owner.kept_bytes += entry.nbytes

    def settled(self) -> Trace:
        """All that was seen, every parameter given to one call."""
        left = dict(self._held)
        for call in self.calls:
            names = (self._names_of_parameters[id(each)] for each in call.module.parameters(recurse=False))
            call.parameters = [left.pop(name) for name in names if name in left]
        for name in self._users.keys() & left.keys():
            self._users[name].parameters.append(left.pop(name))
        return Trace(self.calls, list(left))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE_OF:
            return args[0].device
        result = func(*args, **(kwargs or {}))
        if self.stack:
            for tensor in tensors_in(args):
                name = self._names_of_parameters.get(id(tensor))
                if name is not None:
                    self._users.setdefault(name, self.stack[-1])
            self._ledger.hold(tensors_in(result), self.stack[-1])
            formula = self._flop_formulas.get(getattr(func, "_overloadpacket", None))
            if formula:
                self.stack[-1].flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _recurrent_formulas() -> dict[Any, Callable[..., int]]:
    """For the operations that are a whole layer of an `nn.LSTM` on a CPU, or any recurrent net on a GPU.

    What else is recurrent (an LSTM with projections, on a CPU all others) is made of products that torch counts.
    """
    aten = torch.ops.aten
    return {
        aten.mkldnn_rnn_layer: lambda sequence, w, u, *_, **__: _recurrent_flops(sequence, [w, u]),
        aten._cudnn_rnn: lambda sequence, weights, *_, **__: _recurrent_flops(sequence, weights),
    }


def _recurrent_flops(sequence: Tensor, weights: list[Tensor]) -> int:
    """Every matrix meets every item of `sequence [T, N, D]` once; gates and biases are not counted, as elsewhere."""
    items = math.prod(sequence.shape[:-1])
    return 2 * items * sum(each.numel() for each in weights if each.dim() == 2)


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Watch]:
    watch = _Watch(model)
    with ExitStack() as stack:
        for module in model.modules():
            for handle in (
                module.register_forward_pre_hook(watch.enter, prepend=True, with_kwargs=True),
                module.register_forward_hook(watch.leave),
            ):
                stack.callback(handle.remove)
        yield watch


def _refusal(stack: list[Call], error: Exception) -> UsageError:
    if not stack:
        return UsageError(f"the model cannot be run: {first_line(error)}")
    call = stack[-1]
    where = f"{call.name or 'the model'} ({call.type})"
    found = " and ".join(map(str, call.input_shapes)) or "no tensor"
    return InputError(f"{where} was given {found} and failed: {first_line(error)}", call.module)


def first_line(error: BaseException) -> str:
    """What an error says, without the explanations of several lines that torch may add."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def count(parameters: list[nn.Parameter]) -> int:
    """How many numbers these hold."""
    return sum(parameter.numel() for parameter in parameters)
