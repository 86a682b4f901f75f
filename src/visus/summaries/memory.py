"""How much memory a training step will take, without taking it."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from visus.amp import autocast
from visus.ops.optim import OptimizerSettings, make_optimizer
from visus.summaries.work_space import work_space

DEVICE_OF = torch.ops.prim.device.default
"""What fake tensors ask a mode two or three times for each operation; it is quicker to answer than to pass on."""

Inputs = tuple[list[Tensor], dict[str, Tensor]]
"""What a model is called with: arguments and keyword arguments."""


@dataclass(frozen=True)
class Peak:
    """The bytes of the tensors alive at the highest moment of a training step, by what they are."""

    parameters: int
    """And buffers."""
    inputs: int
    gradients: int
    """Of parameters, those that are there at that moment."""
    optimizer: int
    activations: int
    """What the forward pass leaves for the backward pass, and the output."""
    temporary: int
    """All else: what one operation makes for the next."""

    @property
    def total(self) -> int:
        """The peak."""
        return sum(getattr(self, each.name) for each in fields(self))


def predict_peak(
    model: nn.Module,
    make_inputs: Callable[[int], Inputs],
    batch_size: int,
    *,
    optimizer: str | None = None,
    amp: str = "off",
) -> Peak:
    """The most that tensors take at any moment of a training step of the hollow `model` on `batch_size` images.

    Under its `fake_mode`. A step is forward (under `amp`), cross-entropy, backward and update. Parameters, buffers, inputs,
    gradients, the state that `optimizer` (as in `make_optimizer`) keeps between steps, and the work space of some convolutions
    count; that of the update does not, as fused ones need none. Where batch norm refuses a single image, the figure goes on
    from those of two and three.
    """
    try:
        return _step_peak(model, make_inputs(batch_size), optimizer, amp)
    except ValueError:
        if batch_size != 1:
            raise
        two, three = (_step_peak(model, make_inputs(n), optimizer, amp) for n in (2, 3))
        return Peak(
            **{each.name: 2 * getattr(two, each.name) - getattr(three, each.name) for each in fields(Peak)}
        )


def predict_inference(
    model: nn.Module, make_inputs: Callable[[int], Inputs], batch_size: int, *, amp: str = "off"
) -> int:
    """The most bytes of tensors alive at any moment of a pass without gradients; the hollow `model` should be in eval mode."""
    arguments, keywords = make_inputs(batch_size)
    counter = LiveBytes()
    counter.hold([*model.parameters(), *model.buffers(), *arguments, *keywords.values()])
    with counter, torch.no_grad(), autocast(amp, model_device(model)):
        model(*arguments, **keywords)
    return counter.peak


def largest_fitting(peak: Callable[[int], int], memory_bytes: int, most: int) -> int:
    """The largest `n` from 1 to `most` with `peak(n) <= memory_bytes`; 0 if there is none. `peak` must not fall.

    `peak` is, as a rule, a line that breaks upwards once or twice: going on by its slope guesses too high, the chord too low, and
    the two soon meet.
    """
    peak = cache(peak)
    if peak(1) > memory_bytes:
        return 0
    low, high = 1, most + 1
    while high - low > 1 and peak(low + 1) <= memory_bytes:
        slope = peak(low + 1) - peak(low)
        guess = min(low + (memory_bytes - peak(low)) // slope if slope > 0 else most, high - 1)
        if peak(guess) > memory_bytes:
            high = guess
            guess = low + (memory_bytes - peak(low)) * (high - low) // (peak(high) - peak(low))
        if peak(guess) <= memory_bytes:
            low = max(low + 1, guess)
        else:
            high = guess
    return low


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested sequences, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for each in value for tensor in tensors_in(each)]


@dataclass(slots=True)
class Entry:
    """A storage in a `Ledger`; times are counts of comings and goings."""

    nbytes: int
    owner: object
    born: int
    died: float = math.inf


class Ledger:
    """Storages that come and go; each is counted once, whatever views it has."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self.time = 0
        self.peak_time = 0
        self.entries: list[Entry] = []
        self._alive: dict[int, tuple[weakref.ref[Any], Entry]] = {}

    def hold(self, tensors: Iterable[Tensor], owner: object = None) -> None:
        """Count these, until they are freed; one that is counted already keeps its owner."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self._alive:
                self._add(storage, id(storage), Entry(storage.nbytes(), owner, self.time))

    def take(self, nbytes: int) -> None:
        """Count so many for a moment."""
        if nbytes:
            self.time += 2
            self.entries.append(Entry(nbytes, None, self.time - 1, self.time + 1))
            if self.now + nbytes > self.peak:
                self.peak, self.peak_time = self.now + nbytes, self.time
            self.time += 1

    def assign(self, tensors: Iterable[Tensor], owner: object) -> None:
        """Give these, which are counted, to another owner."""
        for tensor in tensors:
            self._alive[id(tensor.untyped_storage())][1].owner = owner

    def _add(self, storage: torch.UntypedStorage, key: int, entry: Entry) -> None:
        def forget(_: object) -> None:
            self.time += 1
            entry.died = self.time
            self.now -= entry.nbytes
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, forget), entry
        self.entries.append(entry)
        self.time += 1
        self.now += entry.nbytes
        if self.now > self.peak:
            self.peak, self.peak_time = self.now, self.time


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A ledger of whatever operations make while it is active.

    `torch.distributed._tools.mem_tracker.MemTracker` finds the same peaks, but takes a snapshot of every module at every operation:
    48 s where this takes 9 (densenet201).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = Ledger()
        self.hold = self.ledger.hold

    @property
    def now(self) -> int:
        """Bytes."""
        return self.ledger.now

    @property
    def peak(self) -> int:
        """Bytes."""
        return self.ledger.peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE_OF:
            return args[0].device
        result = func(*args, **(kwargs or {}))
        self.hold(tensors_in(result))
        self.ledger.take(work_space(func, args))
        return result


def _step_peak(model: nn.Module, inputs: Inputs, optimizer: str | None, amp: str) -> Peak:
    arguments, keywords = inputs
    state_bytes = _state_bytes(model, optimizer) if optimizer else 0
    counter = LiveBytes()
    counter.hold([*model.parameters(), *model.buffers()], "parameters")
    counter.hold([*arguments, *keywords.values()], "inputs")
    try:
        with counter:
            with autocast(amp, model_device(model)):
                output = model(*arguments, **keywords)
            loss = _loss(output)
            turn = counter.ledger.time
            if loss is not None:
                torch.autograd.backward(loss)
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        counter.hold(gradients)
        counter.ledger.assign(gradients, "gradients")
    finally:
        model.zero_grad()
    return _split(counter.ledger, turn, state_bytes)


def _split(ledger: Ledger, turn: int, state_bytes: int) -> Peak:
    """The peak in `ledger` by owners; what has none is an activation if it was there at `turn`, between forward and backward."""
    parts: Counter[str] = Counter(optimizer=state_bytes)
    for entry in ledger.entries:
        if entry.born < ledger.peak_time < entry.died:
            is_kept = entry.born < turn < entry.died
            parts[str(entry.owner or ("activations" if is_kept else "temporary"))] += entry.nbytes
    return Peak(**{each.name: parts[each.name] for each in fields(Peak)})


def _state_bytes(model: nn.Module, optimizer: str) -> int:
    """What `optimizer` keeps from step to step; tried on one parameter of each shape, which is why it takes little time."""
    trained = [each for each in model.parameters() if each.requires_grad]
    alike = Counter((each.shape, each.stride(), each.dtype) for each in trained)
    samples = {(each.shape, each.stride(), each.dtype): each for each in trained}
    if not samples:
        return 0
    updater = make_optimizer(
        nn.ParameterList(samples.values()), OptimizerSettings(optimizer=optimizer, lr=1.0)
    )
    for group in updater.param_groups:
        # Fused updates have no fake version.
        group.update({"fused": False} if "fused" in group else {})
    for parameter in samples.values():
        parameter.grad = torch.empty_like(parameter)
    try:
        updater.step()
    except RuntimeError as error:
        raise RuntimeError(f"what {optimizer} keeps depends on values ({error})") from error
    model.zero_grad()
    kept = {kind: tensors_in(dict(updater.state[each])) for kind, each in samples.items()}
    return sum(alike[kind] * sum(each.nbytes for each in tensors) for kind, tensors in kept.items())


def model_device(model: nn.Module) -> torch.device:
    """Where its first parameter is; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _loss(output: Any) -> Tensor | None:
    """The sum of the losses of all outputs: cross-entropy for logits `[N, K]`, the sum for any other; `None` if none is trained."""
    losses = [_one_loss(each) for each in tensors_in(output) if each.requires_grad]
    return torch.stack(losses).sum() if losses else None


def _one_loss(output: Tensor) -> Tensor:
    values = output.float()
    if values.dim() != 2:
        return values.sum()
    return F.cross_entropy(values, torch.zeros(len(values), dtype=torch.int64, device=values.device))
