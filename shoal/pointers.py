"""Tensors as compiled functions see them: addresses, and distances in bytes.

A compiled function that is given arrays looks at each of them first, which takes as long as a small network; and a
function in C can be given nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]
Layers = Sequence[tuple[Tensor, Tensor]]
"""Weights `[copies, in, out]` and biases `[copies, 1, out]`."""
Places = tuple[int, int, int, int]
"""An address, and the bytes from copy to copy, from row to row and from column to column."""


def place_of(x: Tensor) -> Places:
    """Of `[copies, rows, columns]` float32."""
    copy, row, column = x.stride()
    return x.data_ptr(), copy * 4, row * 4, column * 4


def addresses_of(parameters: Sequence[Tensor]) -> Numbers:
    """Of each layer's weight, from copy to copy of it, and the same of its bias."""
    return np.array([n for t in parameters for n in (t.data_ptr(), t.stride(0) * 4)], np.int64).reshape(-1, 4)


def _array_of(kind: Any, layout: str) -> Any:
    """`array(address, shape, strides)`, tuples of two: of one type whatever their numbers."""

    @intrinsic
    def array(typingctx: Any, address: Any, shape: Any, strides: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            found = context.make_array(signature.return_type)(context, builder)
            item = context.get_data_type(kind)
            arrayobj.populate_array(
                found,
                data=builder.inttoptr(args[0], item.as_pointer()),
                shape=cgutils.unpack_tuple(builder, args[1]),
                strides=cgutils.unpack_tuple(builder, args[2]),
                itemsize=context.get_constant(types.intp, context.get_abi_sizeof(item)),
                meminfo=None,
            )
            return found._getvalue()

        two = types.UniTuple(types.int64, 2)
        return types.Array(kind, 2, layout)(types.int64, two, two), codegen

    return array


_floats, _words, _bytes = (_array_of(kind, "C") for kind in (types.float32, types.int64, types.uint8))
_strided = _array_of(types.float32, "A")


@njit(inline="always")
def at(address: Any, rows: Any, columns: Any) -> Any:
    """The array `[rows, columns]` of float32 that lies there."""
    return _floats(address, (rows, columns), (4 * columns, 4))


@njit(inline="always")
def words(address: Any, rows: Any, columns: Any) -> Any:
    """The array `[rows, columns]` of int64 that lies there."""
    return _words(address, (rows, columns), (8 * columns, 8))


@njit(inline="always")
def flags(address: Any, count: Any) -> Any:
    """The array of bytes that lies there."""
    return _bytes(address, (1, count), (count, 1))[0]


@njit(inline="always")
def matrix(address: Any, rows: Any, columns: Any, wide: Any) -> Any:
    """Rows `wide` numbers apart."""
    return _strided(address, (rows, columns), (4 * wide, 4))


@njit(inline="always")
def some_rows(x: Any, copy: Any, low: Any, count: Any, columns: Any) -> Any:
    """Some rows of a copy of what `place_of` describes."""
    return _strided(x[0] + copy * x[1] + low * x[2], (count, columns), (x[2], x[3]))


@njit(inline="always")
def layer(parameters: Any, sizes: Any, k: Any, copy: Any) -> Any:
    """Weight and bias of a copy's layer, from a table of `addresses_of` and one of inputs and outputs."""
    return (
        matrix(parameters[k, 0] + copy * parameters[k, 1], sizes[k, 0], sizes[k, 1], sizes[k, 1]),
        matrix(parameters[k, 2] + copy * parameters[k, 3], 1, sizes[k, 1], sizes[k, 1]),
    )


@intrinsic
def move(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """`count` bytes from address to address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.PointerType(ir.IntType(8))
        to, start = (builder.inttoptr(address, kind) for address in args[:2])
        cgutils.raw_memcpy(builder, to, start, args[2], ir.IntType(64)(1))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def call(typingctx: Any, function: Any, given: Any) -> Any:
    """The C function that lies at an address, of a tuple of numbers; without a result."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = [context.get_value_type(kind) for kind in signature.args[1].types]
        kind = ir.PointerType(ir.FunctionType(ir.VoidType(), kinds))
        builder.call(builder.inttoptr(args[0], kind), cgutils.unpack_tuple(builder, args[1]))
        return context.get_dummy_value()

    return types.void(types.int64, given), codegen
