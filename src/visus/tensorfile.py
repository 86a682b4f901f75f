"""Files of tensors: safetensors, written atomically, and the weight files of others, read without running their code."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from visus.errors import CheckpointError, UnreadableError
from visus.files import replacing, sync

MAX_HEADER_BYTES = 100_000_000
"""The limit of safetensors itself."""

_FOREIGN = {".pt", ".pth", ".ckpt"}
_NESTED = ("state_dict", "model", "net")
_WRAPPERS = ("module.", "_orig_mod.")


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    check: Callable[[Path], object] = str,
) -> None:
    """Replace the safetensors file at `path` in one step; tensors may not share storage.

    `check` is called with the new file before it takes its place. `OSError` where it cannot be written, or what `check` raises;
    what was there is then untouched.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(contiguous, temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        # safetensors lets nobody but the owner read its files; these are like any other.
        temporary.chmod(mode)
        # What `check` does in good faith must not be undone by a disk that has no room for this file after all.
        sync(temporary)
        check(temporary)


def read_header(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors; `CheckpointError` where it is missing or damaged."""
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, Path(path).stat().st_size):
                raise CheckpointError(_damaged(path, f"its header claims {length:,} bytes"))
            header = json.loads(file.read(length))
        metadata = header.get("__metadata__", {})
        return {str(name): str(value) for name, value in metadata.items()}
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(_damaged(path, "its header is not what safetensors writes")) from None


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, `.pt`, `.pth` or `.ckpt` file by name, on the CPU.

    Foreign files may be a bare state dict, or hold one as `state_dict`, `model` or `net`; a prefix `module.` (DataParallel) or
    `_orig_mod.` (compiled) on every name is taken off. Raises `CheckpointError` for anything else; no code in the file is run.
    """
    if Path(path).suffix.lower() in _FOREIGN:
        return _without_wrapper(_state_dict(_load_foreign(path), path))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except OSError as error:
        raise _unreadable(path, error) from None
    except SafetensorError as error:
        raise CheckpointError(_damaged(path, str(error))) from None


def _load_foreign(path: str | os.PathLike[str]) -> Any:
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: expected a file of weights, found none")
    _refuse_bomb(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error) or "Unsupported" not in str(error):
            raise CheckpointError(_damaged(path, "it is not a file that torch.save wrote")) from None
        raise CheckpointError(
            f"{path}: holds pickled objects beside the weights, and loading those could run any code; if you trust it, "
            f"save the weights alone: torch.save(torch.load({str(path)!r}, weights_only=False)['net'], 'weights.pth')"
        ) from None
    # Damaged bytes steer torch's unpickler into exceptions of any type: IndexError, AssertionError, KeyError, ...
    except Exception:
        raise CheckpointError(_damaged(path, "it is not a file that torch.save wrote")) from None


def _refuse_bomb(path: str | os.PathLike[str]) -> None:
    """torch.save stores without compression; a member that would grow was made to fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    try:
        members = zipfile.ZipFile(path).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(_damaged(path, str(error))) from None
    size = Path(path).stat().st_size
    if any(each.file_size > size for each in members):
        raise CheckpointError(_damaged(path, "it claims to hold more than its own size"))


def _state_dict(loaded: Any, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    if isinstance(loaded, dict):
        for candidate in (loaded, *(loaded.get(name) for name in _NESTED)):
            if (
                isinstance(candidate, dict)
                and candidate
                and all(isinstance(v, Tensor) for v in candidate.values())
            ):
                return {str(name): tensor for name, tensor in candidate.items()}
    raise CheckpointError(
        f"{path}: expected a state dict, bare or under {', '.join(map(repr, _NESTED))}; found {_kind(loaded)}"
    )


def _kind(loaded: Any) -> str:
    if isinstance(loaded, dict):
        return f"a dict with {', '.join(repr(name) for name in list(loaded)[:5]) or 'nothing in it'}"
    return f"an object of type {type(loaded).__name__}"


def _without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            return _without_wrapper({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def _unreadable(path: str | os.PathLike[str], error: OSError) -> CheckpointError:
    kind = UnreadableError if isinstance(error, PermissionError) else CheckpointError
    return kind(f"{path}: cannot be read: {error.strerror or error}")


def _damaged(path: str | os.PathLike[str], reason: str) -> str:
    return f"{path}: damaged or not a file of weights ({reason}); use another copy"
