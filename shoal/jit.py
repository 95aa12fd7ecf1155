"""Functions that numba compiles once and keeps on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from numba import cfunc, njit

compiled = njit(_nrt=False, forceinline=True, error_model="numpy")
"""Compiles a helper of kernels: without reference counting, which costs more than the helpers themselves."""


def version(*modules: ModuleType) -> str:
    """A hash of their files."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def jit(*modules: ModuleType, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A function without Python's lock, kept on disk until its own file or one of `modules` has changed.

    numba looks at the function's own file alone; the others, from which it calls something, are in the name.

    Args:
        options: of `numba.njit`.
    """

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        _name(function, modules)
        kept: Callable[..., None] = njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        return kept

    return wrap


def c_function(function: Callable[..., None], signature: str, *modules: ModuleType, **options: Any) -> Any:
    """A function in C with numba's `signature`, for others that call it by its `address`; kept on disk like theirs.

    Compiled when this is called. It exists as long as what is returned.
    """
    _name(function, modules)
    return cfunc(signature, cache=True, error_model="numpy", **options)(function)


def _name(function: Callable[..., None], modules: tuple[ModuleType, ...]) -> None:
    if modules:
        function.__qualname__ += "." + version(*modules)[:8]
