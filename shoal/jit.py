"""Functions that numba compiles once and keeps on disk."""

from __future__ import annotations

import functools
import hashlib
import sys
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
        kept: Callable[..., None] = _kept(njit, function, nogil=True, error_model="numpy", **options)
        return kept

    return wrap


def c_function(function: Callable[..., None], signature: str, *modules: ModuleType, **options: Any) -> Any:
    """A function in C with numba's `signature`, for others that call it by its `address`; kept on disk like theirs.

    Compiled when this is called. It exists as long as what is returned.
    """
    _name(function, modules)
    return _kept(functools.partial(cfunc, signature), function, error_model="numpy", **options)


def _kept(compiler: Callable[..., Any], function: Callable[..., None], **options: Any) -> Any:
    """Compiled, and kept on disk where anything can be written."""
    try:
        return compiler(cache=True, **options)(function)
    except RuntimeError:  # numba found no place
        _warn()
        return compiler(**options)(function)


@functools.cache
def _warn() -> None:
    print(
        "shoal: what is compiled cannot be kept, as nothing can be written beside the package nor in a home directory, "
        "so every start takes a minute longer: set NUMBA_CACHE_DIR to a directory that can be written to",
        file=sys.stderr,
    )


def _name(function: Callable[..., None], modules: tuple[ModuleType, ...]) -> None:
    if modules:
        function.__qualname__ += "." + version(*modules)[:8]
