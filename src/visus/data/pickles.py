"""Pickles of plain values and numpy arrays, read without running anything that they name.

Only as Python 2 wrote them, which is how CIFAR comes. What a pickle may name is replaced by a note of what was asked for, and the
operations that it may use are those that such files need.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from dataclasses import dataclass
from typing import Any

from visus.errors import DataError, one_line

_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
# fmt: off
_OPERATIONS = frozenset([
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
    "GLOBAL", "REDUCE", "BUILD",
])
# fmt: on
_MOST_TUPLES = 1000
"""Honest files have six."""


@dataclass(frozen=True)
class PickledArray:
    """An array in C order: its bytes fill its shape, one for each element where the dtype is `u1`."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes


def load_plain_pickle(content: bytes, origin: object) -> Any:
    """What a pickle holds: dicts, lists, numbers, text (bytes as Latin-1), and arrays of bytes as `PickledArray` in its dicts.

    `DataError` naming `origin` for anything else, before it is run.
    """
    try:
        _refuse_other_operations(content)
        value = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    # What is damaged raises almost anything: EOFError, ValueError, IndexError, KeyError, MemoryError, UnpicklingError, ...
    except Exception as error:
        reason = one_line(error)
        raise DataError(
            f"{origin}: expected only arrays and plain values: {reason}; download it again"
        ) from None
    if not isinstance(value, dict):
        return value
    return {key: _as_array(each) if isinstance(each, _Call) else each for key, each in value.items()}


class _Call:
    """What stands where the pickle wanted something called: its name, its arguments, and the state that it was given afterwards."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments: Any) -> _Call:
        return _Call(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"found {module}.{name}, which was not run")
        return _Call(name)


def _refuse_other_operations(content: bytes) -> None:
    """Refuse also what would take all memory, or fill the stack with tuples in tuples."""
    tuples = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if operation.name not in _OPERATIONS:
            raise pickle.UnpicklingError(f"found the operation {operation.name}, which was not run")
        tuples += operation.name.startswith("TUPLE")
        # The memo is filled in order, and made as long as its last place.
        too_far = operation.name == "LONG_BINPUT" and isinstance(argument, int) and argument > count
        if too_far or tuples > _MOST_TUPLES:
            raise pickle.UnpicklingError("found a pickle made to exhaust memory")


def _as_array(call: _Call) -> Any:
    """The array that a call stands for; the call itself where it stands for something else."""
    match call.state:
        case (_, tuple(shape), _Call(name="dtype", arguments=(str(dtype), *_)), False, str(text)):
            content = text.encode("latin1")
            if all(type(each) is int and each >= 0 for each in shape) and len(content) == math.prod(shape):
                return PickledArray(dtype.lstrip("|"), shape, content)
    return call
