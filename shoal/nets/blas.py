"""Matrix products inside compiled loops: the sgemm that PyTorch itself uses, called without Python in between."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from numba import njit, types
from numpy.typing import NDArray


def _find() -> int | None:
    """Address of sgemm as Fortran calls it, in PyTorch's library or what that loads."""
    try:
        library = ctypes.CDLL(str(next(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"))))
        return ctypes.cast(library.sgemm_, ctypes.c_void_p).value
    except (StopIteration, OSError, AttributeError):
        return None


ADDRESS = _find()
"""None: `product` cannot be called."""
if ADDRESS:  # by name, since what is compiled is kept on disk, and the address is another one in every process
    llvm.add_symbol("shoal_sgemm", ADDRESS)
sgemm = types.ExternalFunction("shoal_sgemm", types.void(*[types.uintp] * 13))
LETTERS = np.frombuffer(b"NT", np.uint8)
SCALES = np.array([0.0, 1.0], np.float32)


def sizes(rows: int, inner: int, columns: int) -> NDArray[np.int32]:
    """What `product` needs to know of `[rows, inner] x [inner, columns]`."""
    return np.array([rows, inner, columns], np.int32)


@njit(inline="always")
def product(a: Any, b: Any, out: Any, size: Any, transposed: bool, add: bool, letters: Any, scales: Any) -> None:
    """out = a b, or a b^T with `transposed`; with `add`, out += that. All are contiguous.

    `size` comes from `sizes`; `letters` and `scales` are this module's: Fortran wants the address of every number.
    """
    numbers, at, one = size.ctypes.data, letters.ctypes.data, scales.ctypes.data + 4
    rows, inner, columns = numbers, numbers + 4, numbers + 8
    which, wide, scale = (at + 1, inner, one) if transposed else (at, columns, one)
    before = one if add else one - 4
    sgemm(
        which,
        at,
        columns,
        rows,
        inner,
        scale,
        b.ctypes.data,
        wide,
        a.ctypes.data,
        inner,
        before,
        out.ctypes.data,
        columns,
    )
