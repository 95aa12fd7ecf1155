"""Checkpoints: tensors as safetensors, everything else as JSON, never pickle; written whole or not at all.

    checkpoint/last                                   the name of a directory (and so `best`):
    checkpoint/last_000000060000/tensors.safetensors
    checkpoint/last_000000060000/state.json           format, versions, checksum, the tree with its tensors named

A directory is written under another name, synced, and renamed; the pointer files `last` and `best` are replaced in one
system call. So whatever moment a process dies, `last` names a complete checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from shoal.types import ShoalError, Stateful, Tree

FORMAT = 1
TENSORS, STATE = "tensors.safetensors", "state.json"


def restore(what: Stateful, state: Tree, name: str) -> None:
    """`what` goes on from a saved state.

    Raises:
        ShoalError: that is of something else, agents who see other things for example.
    """
    try:
        what.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ShoalError(
            f"{name} does not fit: the environment is another, or has changed ({lines[1 if lines[1:] else 0]})"
        ) from error


def save(directory: Path, tree: Tree, step: int, name: str = "last") -> Path:
    """Write `tree` as checkpoint `name` of `directory`; the one of that name before is removed afterwards."""
    import shoal

    label = f"{name}_{step:012d}"
    while (directory / label).exists():  # the same step again: never remove what the pointer still names
        label += "_"
    target, partial = directory / label, directory / f".{label}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    encoded = _encode(tree, "", tensors)
    try:
        safetensors.torch.save_file(tensors, str(partial / TENSORS))
    except safetensors.SafetensorError as error:  # the disk is full, say
        raise ShoalError(f"{partial} cannot be written ({error}); the checkpoint before it is intact") from error
    state = {
        "format": FORMAT,
        "shoal": shoal.__version__,
        "torch": torch.__version__,
        "step": step,
        "checksum": _checksum(partial / TENSORS),
        "tree": encoded,
    }
    (partial / STATE).write_text(json.dumps(state))
    shutil.copymode(partial / STATE, partial / TENSORS)  # which safetensors keeps from everybody else
    for path in partial.iterdir():
        _sync(path)
    partial.rename(target)
    _point(directory / name, label)
    for path in [*directory.glob(f"{name}_*"), *directory.glob(f".{name}_*.partial")]:
        if path.name != label:
            shutil.rmtree(path)
    return target


def load(directory: Path, which: str = "last") -> Tree:
    """The tree of the `last` or the `best` checkpoint.

    Raises:
        ShoalError: there is none, it is damaged, foreign, or written by a newer shoal.
    """
    path = find(directory, which)
    try:
        state = json.loads((path / STATE).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ShoalError(f"{path / STATE} cannot be read ({error}): the checkpoint is damaged") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int) or "tree" not in state:
        raise ShoalError(f"{path / STATE} is not a checkpoint of shoal")
    if state["format"] > FORMAT:
        raise ShoalError(
            f"{path} was written by shoal {state.get('shoal')} in format {state['format']}; "
            f"this version reads up to format {FORMAT}: update shoal"
        )
    try:
        if _checksum(path / TENSORS) != state["checksum"]:
            raise ShoalError(f"{path / TENSORS} is damaged: its checksum is not the one written with it")
        tensors = safetensors.torch.load_file(str(path / TENSORS))
        return _decode(state["tree"], tensors)  # type: ignore[no-any-return]
    except (OSError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ShoalError(f"{path} is damaged: {error}") from error


def find(directory: Path, which: str = "last") -> Path:
    """The directory that `last` or `best` names."""
    name = _pointed(directory / which)
    if name is None:
        raise ShoalError(f"there is no checkpoint {which!r} in {directory}: is this the directory of a run of shoal?")
    if not (directory / name).is_dir():
        raise ShoalError(f"{directory / which} names {name}, which is not there: the run directory is damaged")
    return directory / name


def step(directory: Path, which: str = "last") -> int:
    """Environment steps at which a checkpoint was written; 0: there is none."""
    name = _pointed(directory / which)
    digits = name.split("_")[1] if name and "_" in name else ""
    return int(digits) if digits.isdigit() else 0


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON in which a tensor is {"tensor": its name} and a dict is {"dict": [[key, value], ...]} (keys may be ints)."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()  # safetensors refuses shared memory
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {path}: {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _decode(item, tensors) for key, item in value["dict"]}
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    return value


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point(pointer: Path, name: str) -> None:
    partial = pointer.with_name(f".{pointer.name}.partial")
    partial.write_text(name)
    _sync(partial)
    os.replace(partial, pointer)


def _pointed(pointer: Path) -> str | None:
    with contextlib.suppress(OSError):
        return pointer.read_text().strip()
    return None
