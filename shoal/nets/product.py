"""Matrix products for compiled loops: 2.4 times a library's rate at our sizes where that was measured.

A tile of the result stays in the processor's vector registers while one row of `b` after the other is added to each of
its rows (Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication"). Nothing is packed before,
since weights of a few hundred units lie in the cache as they are; and what comes before and after a product (biases,
ReLU and its gradient) happens in the registers. A sum is taken in the order of its terms, whatever the tile: results do
not depend on how many rows are multiplied at once.

All arrays are float32, two-dimensional; `b`, `out` and what lies as `out` does have their rows' numbers side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from shoal import pointers
from shoal.jit import c_function
from shoal.pointers import call

_FEATURES = (config.CPU_FEATURES or llvm.get_host_cpu_features().flatten()).split(",")
LANES = 16 if "+avx512f" in _FEATURES else 8 if "+avx" in _FEATURES else 4
"""Numbers in a vector register; of registers there are 32, or 16 where vectors have 8 numbers."""
MOST = 2 if LANES == 8 else 4
"""Vectors side by side in a tile."""
ROWS = 6 if LANES == 8 else 8
"""Rows of a tile."""
FULL = 6
"""Of one with `MOST` vectors, so that tile, row of `b` and a number of `a` have a register each."""
NOTHING = np.float32(-np.inf)
"""A `floor` that all numbers are above."""

_INT, _WORD, _BIT, _FLOAT = (ir.IntType(64), ir.IntType(32), ir.IntType(1), ir.FloatType())
_VECTOR, _MASK, _WORDS = (ir.VectorType(kind, LANES) for kind in (_FLOAT, _BIT, _WORD))
_POINTER = ir.PointerType(_VECTOR)


class _Writer:
    """Writes operations on vectors, of which only the first `columns` numbers lie in memory if that is given."""

    def __init__(self, builder: Any, columns: Any = None) -> None:
        self.builder, self.mask = builder, None
        self.zero = ir.Constant(_VECTOR, [0.0] * LANES)
        if columns is not None:
            lanes = ir.Constant(_WORDS, list(range(LANES)))
            self.mask = builder.icmp_signed("<", lanes, self.fill(builder.trunc(columns, _WORD), _WORDS))

    def fill(self, value: Any, kind: Any = _VECTOR) -> Any:
        """A vector of one number."""
        empty, first = ir.Constant(kind, ir.Undefined), ir.Constant(_WORD, 0)
        one = self.builder.insert_element(empty, value, first)
        return self.builder.shuffle_vector(one, empty, ir.Constant(_WORDS, [0] * LANES))

    def at(self, address: Any, number: Any, size: Any) -> Any:
        """address + number * size."""
        return self.builder.add(address, self.builder.mul(number, size))

    def number(self, address: Any) -> Any:
        return self.fill(self.builder.load(self.builder.inttoptr(address, ir.PointerType(_FLOAT))))

    def load(self, address: Any, vector: int) -> Any:
        pointer = self._pointer(address, vector)
        if self.mask is None:
            return self.builder.load(pointer, align=4)
        kinds = [_POINTER, _WORD, _MASK, _VECTOR]
        return self._call("masked.load", f"v{LANES}f32.p0", _VECTOR, kinds, pointer, _WORD(4), self.mask, self.zero)

    def store(self, value: Any, address: Any, vector: int) -> None:
        pointer = self._pointer(address, vector)
        if self.mask is None:
            self.builder.store(value, pointer, align=4)
            return
        kinds = [_VECTOR, _POINTER, _WORD, _MASK]
        self._call("masked.store", f"v{LANES}f32.p0", ir.VoidType(), kinds, value, pointer, _WORD(4), self.mask)

    def add_product(self, a: Any, b: Any, c: Any) -> Any:
        return self._call("fmuladd", f"v{LANES}f32", _VECTOR, [_VECTOR] * 3, a, b, c)

    def _pointer(self, address: Any, vector: int) -> Any:
        return self.builder.inttoptr(self.builder.add(address, _INT(4 * LANES * vector)), _POINTER)

    def _call(self, name: str, suffix: str, result: Any, kinds: list[Any], *given: Any) -> Any:
        kind = ir.FunctionType(result, kinds)
        return self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}.{suffix}"), given
        )


def _tile(rows: int, vectors: int, masked: bool = False) -> Callable[..., None]:
    """`tile(places, floor)`: out = max(start + a b, floor), or 0 where `gate` is not positive; of `rows` rows.

    `places` are addresses and distances in bytes: of `a`, from row to row, and from term to term of a sum; of `b`, and
    from term to term; of `out`, and from row to row; the number of terms; of `start`, and from row to row; of `gate`,
    whose rows are as far from each other as those of `out`; rows and columns that are left. `start` and `gate` are 0
    where there is none. Where fewer rows are left than a tile has, the last one is computed several times.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places, floor = args
        a, a_row, a_step, b, b_step, out, out_row, terms, start, start_row, gate, left, columns = cgutils.unpack_tuple(
            builder, places
        )
        writer = _Writer(builder, columns if masked else None)
        last = builder.sub(left, _INT(1))
        lines = [builder.select(builder.icmp_signed("<", _INT(i), left), _INT(i), last) for i in range(rows)]
        tile = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(vectors)] for _ in range(rows)]
        cells = [(line, j, tile[i][j]) for i, line in enumerate(lines) for j in range(vectors)]

        with builder.if_else(builder.icmp_signed("==", start, _INT(0))) as (without, given):
            with without:
                for _, _, cell in cells:
                    builder.store(writer.zero, cell)
            with given:
                for line, j, cell in cells:
                    builder.store(writer.load(writer.at(start, line, start_row), j), cell)

        firsts = [writer.at(a, line, a_row) for line in lines]
        with cgutils.for_range(builder, terms) as loop:
            along, across = builder.mul(loop.index, a_step), writer.at(b, loop.index, b_step)
            row = [writer.load(across, j) for j in range(vectors)]
            for first, line_cells in zip(firsts, tile, strict=True):
                number = writer.number(builder.add(first, along))
                for vector, cell in zip(row, line_cells, strict=True):
                    builder.store(writer.add_product(number, vector, builder.load(cell)), cell)

        least = writer.fill(floor)
        for _, _, cell in cells:
            value = builder.load(cell)
            builder.store(builder.select(builder.fcmp_ordered("<", value, least), least, value), cell)  # a NaN stays
        with builder.if_then(builder.icmp_signed("!=", gate, _INT(0))):
            for line, j, cell in cells:
                opened = builder.fcmp_ordered(">", writer.load(writer.at(gate, line, out_row), j), writer.zero)
                builder.store(builder.select(opened, builder.load(cell), writer.zero), cell)
        for line, j, cell in cells:
            writer.store(builder.load(cell), writer.at(out, line, out_row), j)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx: Any, places: Any, floor: Any) -> Any:
        return types.void(types.UniTuple(types.int64, 13), types.float32), write

    return tile  # type: ignore[no-any-return]


_part = _tile(ROWS, 1, masked=True)
_one, _two, _three, _four = (_tile(FULL if vectors == MOST else ROWS, vectors) for vectors in (1, 2, 3, 4))


def _product(
    a: int,
    a_row: int,
    a_term: int,
    b: int,
    b_term: int,
    out: int,
    out_row: int,
    rows: int,
    terms: int,
    columns: int,
    start: int,
    start_row: int,
    gate: int,
    floor: Any,
) -> None:
    """See `_tile`."""
    j = 0
    while j < columns:
        vectors = min((columns - j) // LANES, MOST)
        if (columns - j) // LANES == MOST + 1 > 2:
            vectors = MOST - 1  # and then two, instead of one, of which each term would wait for the one before
        high = FULL if vectors == MOST else ROWS
        at = 4 * j
        for i in range(0, rows, high):
            below, out_below = i * a_row, at + i * out_row
            places = (
                a + below,
                a_row,
                a_term,
                b + at,
                b_term,
                out + out_below,
                out_row,
                terms,
                start + at + i * start_row if start else 0,
                start_row,
                gate + out_below if gate else 0,
                rows - i,
                columns - j,
            )
            if vectors == 4:
                _four(places, floor)
            elif vectors == 3:
                _three(places, floor)
            elif vectors == 2:
                _two(places, floor)
            elif vectors == 1:
                _one(places, floor)
            else:
                _part(places, floor)
        j += max(vectors, 1) * LANES


@cache
def _compiled() -> Any:
    signature = f"void({', '.join(['int64'] * 13)}, float32)"
    return c_function(_product, signature, pointers)


def address() -> int:
    """Of the product, which the functions below are given. It is compiled once, and not again by each that calls it."""
    return _compiled().address  # type: ignore[no-any-return]


@njit(inline="always")
def _of(dot: Any, a: Any, b: Any, out: Any, start: Any, start_row: Any, gate: Any, floor: Any) -> None:
    places = a.ctypes.data, a.strides[0], a.strides[1], b.ctypes.data, b.strides[0], out.ctypes.data, out.strides[0]
    sizes = out.shape[0], a.shape[1], out.shape[1]
    call(dot, (*places, *sizes, start, start_row, gate, floor))


@njit(inline="always")
def multiply(dot: Any, a: Any, b: Any, out: Any) -> None:
    """out = a b."""
    _of(dot, a, b, out, 0, 0, 0, NOTHING)


@njit(inline="always")
def accumulate(dot: Any, a: Any, b: Any, out: Any) -> None:
    """out += a b."""
    _of(dot, a, b, out, out.ctypes.data, out.strides[0], 0, NOTHING)


@njit(inline="always")
def affine(dot: Any, a: Any, b: Any, bias: Any, out: Any, floor: Any) -> None:
    """out = max(a b + bias, floor), with `bias` `[1, columns]`."""
    _of(dot, a, b, out, bias.ctypes.data, 0, 0, floor)


@njit(inline="always")
def gated(dot: Any, a: Any, b: Any, gate: Any, out: Any) -> None:
    """out = a b where `gate`, which lies as `out` does, is above 0, and 0 elsewhere."""
    _of(dot, a, b, out, 0, 0, gate.ctypes.data, NOTHING)
