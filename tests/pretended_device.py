"""A device that is none: its tensors lie in the memory of the CPU, and refuse, as a GPU's do, to meet tensors of the CPU.

What a run does on a GPU can so be seen where there is none: that nothing is left behind on the CPU, and when it would wait for the
device. torch knows it as a backend of a user's (its `PrivateUse1`), for the whole of a process, so that tests start one for it:

    python pretended_device.py run pretended|own COMMANDS

runs commands of the command line, a list of lists of words in JSON, where there is no other device, or on the machine's own, and
prints their exit codes;

    python pretended_device.py steps N ...

makes so many steps, and prints for each how often the device was waited for, and what was copied to it.
"""

import contextlib
import json
import sys
from collections import Counter

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
waits = Counter()
"""By its reason, how often the device was waited for."""
uploads = Counter()
"""How many tensors were copied to the device: `waiting` or `not waiting`."""
_READ = {
    aten._local_scalar_dense.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten._unique2.default,
}
"""Operations whose result, or its size, the CPU must know."""
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""Those that take indices of the CPU as well, and wait until they are copied."""


class Remote(torch.Tensor):
    """A tensor of the device; `held` is where its values really are."""

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = copied = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied._is_param = True
        return memo[id(self)]

    def data_ptr(self):
        return self.held.data_ptr()

    def tolist(self):
        waits["tolist"] += 1
        return self.held.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("a tensor of the device has no array; copy it to the CPU first")

    __array__ = numpy


class _Watching(TorchDispatchMode):
    """Sees what is made out of nothing, or out of tensors of the CPU, too."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _run(operation, args, kwargs):
    if torch.is_inference_mode_enabled() and operation._can_decompose():
        with _Watching():
            found = operation.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    remote = [each for each in tensors if isinstance(each, Remote)]
    local = [each for each in tensors if not isinstance(each, Remote)]
    asked = kwargs.get("device")
    there = bool(remote) if asked is None else torch.device(asked).type == DEVICE.type
    if operation is aten.copy_.default:
        there = isinstance(args[0], Remote)
        not_waiting = len(args) > 2 and args[2]
    else:
        not_waiting = kwargs.get("non_blocking")
    if operation in {aten.copy_.default, aten._to_copy.default}:
        if remote and not there:
            waits["copied to the CPU"] += 1
        elif local and there:
            uploads["not waiting" if not_waiting else "waiting"] += 1
    elif remote:
        _refuse_or_count(operation, args, local)
    if there:
        kwargs = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
        kwargs = {**kwargs, "pin_memory": False} if kwargs.get("pin_memory") else kwargs
    held_args, held_kwargs = tree_map(_held, (args, kwargs))
    with _disable_current_modes():
        found = operation(*held_args, **held_kwargs)
    if not there:
        return found
    known = {id(each.held): each for each in remote}
    wrapped = tree_map(lambda each: _wrapped(each, known), found)
    return return_and_correct_aliasing(operation, args, kwargs, wrapped)


def _wrapped(value, known):
    if not isinstance(value, torch.Tensor):
        return value
    return known[id(value)] if id(value) in known else Remote(value)


def _held(value):
    return value.held if isinstance(value, Remote) else value


def _refuse_or_count(operation, args, local):
    """Where each element is reckoned with by itself, single numbers of the CPU may go along; whole tensors may not."""
    if operation in _READ:
        waits[str(operation)] += 1
    by_element = torch.Tag.pointwise in operation.tags
    foreign = [each for each in local if each.dim() or not by_element]
    if foreign and not (operation in _INDEXED and isinstance(args[0], Remote)):
        shapes = [tuple(each.shape) for each in foreign]
        raise RuntimeError(f"{operation}: expected all tensors on {DEVICE}, found {shapes} on the CPU")
    if foreign or (local and operation is aten.where.self):
        waits[f"{operation} with a tensor of the CPU"] += 1


@contextlib.contextmanager
def only_device():
    """Meanwhile `visus` finds this device and no other."""
    from visus import devices

    devices.select_device = lambda device="auto", *, batch_size=None: DEVICE
    found = devices.describe_devices
    devices.describe_devices = lambda: [*found(), devices.DeviceInfo(DEVICE.type, "pretended", 1000)]
    # A model that is moved keeps its parameters, although they become tensors of another class.
    torch.__future__.set_swap_module_params_on_conversion(True)
    with _Watching():
        yield


def run_command(words):
    """What `visus` and these words end with."""
    from visus import cli

    sys.argv = ["visus", *words]
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    return 0


def make_steps(count):
    """How often the device is waited for in an epoch of so many steps, and how tensors come to it."""
    from visus.loop import fit
    from visus.models.build import build_model
    from visus.ops.averaging import ExponentialAverage
    from visus.state import TrainingState

    waits.clear()
    uploads.clear()
    with only_device():
        model = build_model("small", 3, in_channels=1).to(DEVICE)
        state = TrainingState(
            model, torch.optim.SGD(model.parameters(), 0.01), ExponentialAverage(model, 0.9)
        )
        batches = [(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))] * count
        fit(model, batches, optimizer=state.optimizer, state=state, epochs=1, clip_grad=1.0, device=DEVICE)
    return {"waits": waits.copy(), "uploads": uploads.copy()}


backend_registration._setup_privateuseone_for_python_backend("pretended")
DEVICE = torch.device("pretended", 0)

if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "steps":
        found = [make_steps(int(each)) for each in sys.argv[2:]]
    else:
        _, _, device, commands = sys.argv
        with only_device() if device == "pretended" else contextlib.nullcontext():
            found = [run_command(words) for words in json.loads(commands)]
    sys.stdout.write(json.dumps(found) + "\n")
