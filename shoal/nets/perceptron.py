"""Perceptrons of many rows on a CPU: all layers forth in one compiled call, and all gradients back in another.

Rows go through the layers in blocks that stay in the cache, and Python's lock is not held meanwhile, so that threads
can learn from pieces of a batch side by side. A narrow last layer, of few actions, is multiplied the other way round:
the product of many rows with few columns is several times slower as it is written (MKL).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from shoal.nets import blas

LEAST = 2048
"""Rows, of all copies together, from which this is faster than an operation at a time (`benchmarks/products.py`)."""
BLOCK = 256
"""Rows that go through all layers together: with 64 units, activations and weights of half a cache of 1 MiB."""
NARROW = 16
"""Columns below which a product with many rows is several times faster the other way round (MKL, 5 columns: 4 to 8)."""

Layers = Sequence[tuple[Tensor, Tensor]]
Numbers = NDArray[np.int64]


def fits(x: Tensor, layers: Layers) -> bool:
    """Whether `x` goes through faster so, and can."""
    many = len(x) * x.shape[1] >= LEAST and x.shape[2] > 0
    return many and x.device.type == "cpu" and x.dtype == layers[0][0].dtype == torch.float32 and bool(blas.ADDRESS)


def forward(x: Tensor, layers: Layers) -> Tensor:
    """`[copies, rows, in] -> [copies, rows, out]`, ReLU between layers; narrow outputs lie in memory by columns.

    Args:
        x: rows that do not lie contiguous are copied.
        layers: weights `[copies, in, out]` and biases `[copies, 1, out]`, of which every copy's lies contiguous.
    """
    parameters = [tensor for layer in layers for tensor in layer]
    out: Tensor = _Perceptron.apply(x, *parameters) if torch.is_grad_enabled() else _forth(x, parameters)[0]
    return out.transpose(1, 2) if _narrow(parameters) else out


def _narrow(parameters: Sequence[Tensor]) -> bool:
    return parameters[-1].shape[-1] < NARROW


def _forth(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The output (by columns where it is narrow), all hidden layers' activations one after the other, and `x`."""
    if x.stride(2) != 1 or x.stride(1) < x.shape[2]:
        x = x.contiguous()
    copies, rows, weights = len(x), x.shape[1], parameters[::2]
    widths = [weight.shape[-1] for weight in weights]
    hidden = x.new_empty(copies * rows * sum(widths[:-1]))
    out = x.new_empty(copies, widths[-1], rows) if _narrow(parameters) else x.new_empty(copies, rows, widths[-1])
    numbers, sizes = _describe(x, weights, rows)
    numbers[3:] = [*_places(weights), *_places(parameters[1::2])]
    _forward(numbers, sizes, hidden.data_ptr(), out.data_ptr(), copies, _narrow(parameters), blas.LETTERS, blas.SCALES)
    return out, hidden, x


def _places(tensors: Sequence[Tensor]) -> list[int]:
    """Each one's address, and how far its copies are from each other, in bytes."""
    return [number for t in tensors for number in (t.data_ptr(), t.stride(0) * 4)]


def _describe(x: Tensor, weights: Sequence[Tensor], rows: int) -> tuple[Numbers, NDArray[np.int32]]:
    """Where `x` lies; and the widths of the layers, rows of a block, rows in all, and from row to row of `x`."""
    numbers = np.empty(3 + 4 * len(weights), np.int64)
    numbers[:3] = x.data_ptr(), x.stride(0) * 4, x.stride(1) * 4
    widths = [x.shape[-1], *[weight.shape[-1] for weight in weights]]
    return numbers, np.array([*widths, 0, rows, max(x.stride(1), x.shape[-1], 1)], np.int32)


class _Perceptron(torch.autograd.Function):
    """From the input and every layer's weight and bias to the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        out, hidden, x = _forth(x, parameters)
        ctx.save_for_backward(x, hidden, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, *parameters = ctx.saved_tensors
        weights, narrow, grad = parameters[::2], _narrow(parameters), grad.contiguous()
        (copies, rows), count = x.shape[:2], len(weights)
        shapes = [tuple(tensor.shape) for tensor in (*weights, *parameters[1::2])]
        if narrow:  # as it is multiplied
            shapes[count - 1] = (copies, *reversed(shapes[count - 1][1:]))
        found = _empty(x, shapes)
        to_x = x.new_empty(x.shape) if ctx.needs_input_grad[0] else None
        scratch = x.new_empty(max(weight.shape[-1] for weight in weights) * 2 * BLOCK)
        numbers, sizes = _describe(x, weights, rows)
        numbers[3:] = [*_places(weights), *_places(found[:count])]
        biases = np.array(_places(found[count:]), np.int64)
        target = to_x.data_ptr() if to_x is not None else 0
        places = np.array([hidden.data_ptr(), grad.data_ptr(), target, scratch.data_ptr()], np.int64)
        _backward(numbers, biases, sizes, places, copies, narrow, blas.LETTERS, blas.SCALES)
        if narrow:
            found[count - 1] = found[count - 1].transpose(1, 2)
        return to_x, *[part for pair in zip(found[:count], found[count:], strict=True) for part in pair]


def _empty(like: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Tensors of these shapes, parts of one vector."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = like.new_empty(sum(sizes)).split(sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer to float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.PointerType(ir.FloatType()))

    return types.CPointer(types.float32)(types.int64), codegen


@njit(inline="always")
def _at(address: Any, rows: Any, columns: Any) -> Any:
    """The array `[rows, columns]` that lies there."""
    return carray(_pointer(address), (rows, columns))


@njit(inline="always")
def _addresses(sizes: Any, letters: Any, scales: Any) -> Any:
    """What Fortran reads: the letters N and T, 0 and 1; the first width, rows of a block, all rows, from row to row."""
    size, last = sizes.ctypes.data, sizes.ctypes.data + 4 * (len(sizes) - 1)
    n, zero = letters.ctypes.data, scales.ctypes.data
    return n, n + 1, zero, zero + 4, size, last - 8, last - 4, last


@njit(inline="always")
def _add_columns(total: Any, grad: Any, rows: Any, count: Any, columns: Any) -> None:
    """To a bias' gradient `[1, columns]`, from that of `count` rows, which lies by columns, `rows` numbers apart."""
    for j in range(columns):
        line, found = _at(grad + 4 * j * rows, 1, count), np.float32(0.0)
        for i in range(count):
            found += line[0, i]
        total[0, j] += found


@njit(inline="always")
def _add_rows(total: Any, grad: Any) -> None:
    """The same, of one that lies by rows."""
    for i in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            total[0, j] += grad[i, j]


@njit(inline="always")
def _through_relu(grad: Any, after: Any) -> None:
    """Gradients stay where the units' outputs `after` are above 0."""
    for i in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            grad[i, j] = grad[i, j] if after[i, j] > 0 else np.float32(0.0)


@njit(cache=True, fastmath=True, error_model="numpy", nogil=True)
def _forward(
    numbers: Numbers, sizes: Any, hidden: int, out: int, copies: int, narrow: bool, letters: Any, scales: Any
) -> None:
    layers, rows = len(sizes) - 4, np.int64(sizes[-2])
    blocks = (rows + BLOCK - 1) // BLOCK
    n, t, zero, one, size, block, everything, wide = _addresses(sizes, letters, scales)
    for c in range(copies):
        for b in range(blocks):
            low = rows * b // blocks
            count = rows * (b + 1) // blocks - low
            sizes[layers + 1] = count
            before, stride = numbers[0] + c * numbers[1] + low * numbers[2], wide
            start: Any = hidden
            for k in range(layers):
                weight = numbers[3 + 2 * k] + c * numbers[4 + 2 * k]
                bias = _at(numbers[3 + 2 * (layers + k)] + c * numbers[4 + 2 * (layers + k)], 1, sizes[k + 1])
                inner, width = size + 4 * k, size + 4 * (k + 1)
                columns = np.int64(sizes[k + 1])
                if k == layers - 1 and narrow:
                    place = out + 4 * (c * columns * rows + low)
                    blas.sgemm(t, t, block, width, inner, one, before, stride, weight, width, zero, place, everything)
                    for j in range(columns):
                        line = _at(place + 4 * j * rows, 1, count)
                        for i in range(count):
                            line[0, i] += bias[0, j]
                    continue
                place = (out if k == layers - 1 else start) + 4 * (c * rows + low) * columns
                blas.sgemm(n, n, width, block, inner, one, weight, width, before, stride, zero, place, width)
                after = _at(place, count, columns)
                if k == layers - 1:
                    for i in range(count):
                        for j in range(columns):
                            after[i, j] += bias[0, j]
                else:
                    for i in range(count):
                        for j in range(columns):
                            after[i, j] = max(after[i, j] + bias[0, j], np.float32(0.0))
                before, stride = place, width
                start += 4 * copies * rows * columns


@njit(cache=True, fastmath=True, error_model="numpy", nogil=True)
def _backward(
    numbers: Numbers, biases: Numbers, sizes: Any, places: Numbers, copies: int, narrow: bool, letters: Any, scales: Any
) -> None:
    """`numbers`: x, weights, their gradients; `places`: hidden layers, gradient of the output, of x or 0, scratch."""
    layers, rows = len(sizes) - 4, np.int64(sizes[-2])
    blocks = (rows + BLOCK - 1) // BLOCK
    n, t, zero, one, size, block, everything, wide = _addresses(sizes, letters, scales)
    widest = 0
    ends = np.zeros(layers + 1, np.int64)  # of the hidden layers' activations
    for k in range(layers):
        widest = max(widest, int(sizes[k + 1]))
        ends[k + 1] = ends[k] + 4 * copies * rows * np.int64(sizes[k + 1])
    for c in range(copies):
        for k in range(layers):
            _at(biases[2 * k] + c * biases[2 * k + 1], 1, sizes[k + 1])[:] = np.float32(0.0)
        for b in range(blocks):
            low = rows * b // blocks
            count = rows * (b + 1) // blocks - low
            sizes[layers + 1] = count
            scale = one if b else zero
            for back in range(layers):
                k = layers - 1 - back
                inner, width = size + 4 * k, size + 4 * (k + 1)
                columns = np.int64(sizes[k + 1])
                weight = numbers[3 + 2 * k] + c * numbers[4 + 2 * k]
                to_weight = numbers[3 + 2 * (layers + k)] + c * numbers[4 + 2 * (layers + k)]
                to_bias = _at(biases[2 * k] + c * biases[2 * k + 1], 1, columns)
                before, stride = numbers[0] + c * numbers[1] + low * numbers[2], wide
                to_before = places[2] + 4 * (c * rows + low) * np.int64(sizes[0])
                if k:
                    before, stride = places[0] + ends[k - 1] + 4 * (c * rows + low) * np.int64(sizes[k]), inner
                    to_before = places[3] + 4 * BLOCK * widest * (k % 2)
                asked = k > 0 or places[2] != 0
                if back == 0 and narrow:
                    grad = places[1] + 4 * (c * columns * rows + low)
                    _add_columns(to_bias, grad, rows, count, columns)
                    blas.sgemm(
                        n, n, inner, width, block, one, before, stride, grad, everything, scale, to_weight, inner
                    )
                    if asked:
                        blas.sgemm(
                            t, t, inner, block, width, one, weight, width, grad, everything, zero, to_before, inner
                        )
                    continue
                grad = places[3] + 4 * BLOCK * widest * ((k + 1) % 2)
                if back == 0:
                    grad = places[1] + 4 * (c * rows + low) * columns
                else:
                    after = _at(places[0] + ends[k] + 4 * (c * rows + low) * columns, count, columns)
                    _through_relu(_at(grad, count, columns), after)
                _add_rows(to_bias, _at(grad, count, columns))
                blas.sgemm(n, t, width, inner, block, one, grad, width, before, stride, scale, to_weight, width)
                if asked:
                    blas.sgemm(t, n, inner, block, width, one, weight, width, grad, width, zero, to_before, inner)
