"""Perceptrons on a CPU: all layers forth in one compiled call, and all gradients back in another.

Rows go through the layers in blocks that stay in the cache, and Python's lock is not held meanwhile, so that threads
can learn from pieces of a batch side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

from shoal import elementary, pointers
from shoal.elementary import tanh
from shoal.jit import jit
from shoal.nets import product
from shoal.nets.product import NOTHING, accumulate, affine, gated, multiply
from shoal.pointers import Layers, Numbers, Places, addresses_of, at, place_of, some_rows

BLOCK = 192
"""Rows that go through all layers together: activations and weights of 64 to 256 units stay in the second cache."""
NARROW = 16
"""Columns below which outputs lie by columns, as losses over actions want them."""
RELU = np.float32(0.0)
EPSILON = 1e-5
Between = Literal["relu", "tanh", "norm"]
"""What hidden units go through: ReLU; tanh; or a shift and scale to mean 0 and variance 1 in every row, and ReLU."""
BETWEEN: tuple[Between, ...] = ("relu", "tanh", "norm")
TANH, NORM = 1, 2
SUMS = {"reassoc", "nsz", "arcp", "contract"}
"""Liberties that compilers may take: sums may be reordered."""


def fits(x: Tensor, layers: Layers) -> bool:
    """Whether what follows is for such numbers; what does not fit together is left to PyTorch, which says so."""
    weight = layers[0][0]
    here = x.is_cpu and weight.is_cpu and x.dtype == weight.dtype == torch.float32
    return here and x.dim() == 3 and len(x) == len(weight) and x.shape[2] == weight.shape[1] > 0


def of(layers: Layers, some: slice) -> Layers:
    """Those of some of the copies."""
    return layers if some == slice(None) else [(weight[some], bias[some]) for weight, bias in layers]


def apply(x: Tensor, layers: Layers, between: Between = "relu") -> Tensor:
    """`[copies, rows, in] -> [copies, rows, out]`."""
    return forward(x, layers, between) if fits(x, layers) else plain(x, layers, between)[0]


def plain(x: Tensor, layers: Layers, between: Between = "relu") -> tuple[Tensor, list[Tensor]]:
    """An operation at a time: the output, and every layer's input."""
    inputs = [x]
    for weight, bias in layers[:-1]:
        hidden = torch.baddbmm(bias, inputs[-1], weight)
        inputs.append(
            hidden.tanh() if between == "tanh" else (normalise(hidden) if between == "norm" else hidden).relu()
        )
    weight, bias = layers[-1]
    return torch.baddbmm(bias, inputs[-1], weight), inputs


def normalise(hidden: Tensor) -> Tensor:
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450) along the last axis, without gains and biases."""
    return functional.layer_norm(hidden, hidden.shape[-1:], eps=EPSILON)


def forward(x: Tensor, layers: Layers, between: Between = "relu") -> Tensor:
    """`apply`, compiled; narrow outputs lie in memory by columns.

    Args:
        x: rows whose numbers do not lie side by side are copied.
        layers: weights `[copies, in, out]` and biases `[copies, 1, out]`, of which every copy's lies contiguous.
    """
    parameters = _flat(layers)
    if torch.is_grad_enabled():
        return _Perceptron.apply(x, between, *parameters)  # type: ignore[no-any-return]
    return _forth(x, parameters, between, keep=False)[0]


def linearize(x: Tensor, layers: Layers) -> tuple[Tensor, list[Tensor]]:
    """The output, and what `pull` needs, with ReLU between layers."""
    if not fits(x, layers):
        return plain(x, layers)
    out, *kept = _forth(x, _flat(layers), "relu", keep=True)
    return out, kept


def pull(kept: Sequence[Tensor], layers: Layers, grad: Tensor, found: Sequence[Tensor], to_x: Tensor | None) -> None:
    """The chain rule: from the gradient of the output to those of the parameters and of the input.

    Args:
        kept: see `linearize`.
        found: overwritten, a tensor for each parameter, in their order; none: those gradients are not asked for.
        to_x: overwritten, contiguous; None: not asked for.
    """
    if fits(kept[0], layers):
        _back(kept, _flat(layers), "relu", grad, found, to_x)
        return
    for k in reversed(range(len(kept))):
        weight, _ = layers[k]
        if found:
            torch.bmm(kept[k].transpose(1, 2), grad, out=found[2 * k])
            torch.sum(grad, 1, keepdim=True, out=found[2 * k + 1])
        if k:
            grad = torch.bmm(grad, weight.transpose(1, 2)).mul_(kept[k] > 0)
        elif to_x is not None:
            torch.bmm(grad, weight.transpose(1, 2), out=to_x)


def _flat(layers: Layers) -> list[Tensor]:
    return [tensor for layer in layers for tensor in layer]


def _back(
    kept: Sequence[Tensor],
    parameters: Sequence[Tensor],
    between: Between,
    grad: Tensor,
    found: Sequence[Tensor],
    to_x: Tensor | None,
) -> None:
    """`pull`, compiled."""
    x, hidden = kept
    copies, rows, size = x.shape
    widths = [size, *[bias.shape[2] for bias in parameters[1::2]]]
    if widths[-1] >= NARROW:
        grad = grad.contiguous()
    turned = sum(inner * width for inner, width in itertools.pairwise(widths)) + widths[-2] * widths[-1]
    scratch = x.new_empty(3 * BLOCK * max(widths) + turned)
    places = hidden.data_ptr(), 0 if to_x is None else to_x.data_ptr(), scratch.data_ptr()
    numbers = addresses_of(parameters), addresses_of(found), np.array(widths)
    sizes = copies, rows, max(widths), BETWEEN.index(between)
    _backward(product.address(), place_of(x), place_of(grad), *numbers, sizes, places)


def _forth(x: Tensor, parameters: Sequence[Tensor], between: Between, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output, `x`, and all hidden layers' activations one after the other, unless they need not be kept.

    Normalised ones are those before ReLU; after them come the inverse deviations of every layer's rows.
    """
    if x.stride(2) != 1 or x.stride(1) < x.shape[2]:
        x = x.contiguous()
    copies, rows, size = x.shape
    widths = [size, *[bias.shape[2] for bias in parameters[1::2]]]
    inside = sum(widths[1:-1]) + (len(widths) - 2) * (between == "norm")
    hidden = x.new_empty(copies * rows * inside if keep else 2 * BLOCK * max(widths))
    scratch = x.new_empty(BLOCK * (NARROW + (max(widths) if between == "norm" else 0)))
    narrow = widths[-1] < NARROW
    out = x.new_empty((copies, widths[-1], rows) if narrow else (copies, rows, widths[-1]))
    places = hidden.data_ptr(), out.data_ptr(), scratch.data_ptr()
    sizes = copies, rows, max(widths), BETWEEN.index(between)
    _forward(product.address(), place_of(x), addresses_of(parameters), np.array(widths), sizes, places, keep)
    return out.transpose(1, 2) if narrow else out, x, hidden


class _Perceptron(torch.autograd.Function):
    """From the input and every layer's weight and bias to the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, between: Between, *parameters: Tensor) -> Tensor:
        out, *kept = _forth(x, parameters, between, keep=True)
        ctx.save_for_backward(*kept, *parameters)
        ctx.between = between
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, *parameters = ctx.saved_tensors
        found = [tensor.new_empty(tensor.shape) for tensor in parameters]
        to_x = x.new_empty(x.shape) if ctx.needs_input_grad[0] else None
        _back((x, hidden), parameters, ctx.between, grad, found, to_x)
        return to_x, None, *found


@njit(inline="always")
def turn(x: Any, out: Any) -> None:
    """out = x', transposed, a square after the other, of which every line of the cache is met once."""
    rows, columns = x.shape
    for low in range(0, rows, 16):
        for left in range(0, columns, 16):
            for j in range(left, min(left + 16, columns)):
                for i in range(low, min(low + 16, rows)):
                    out[j, i] = x[i, j]


@jit(product, elementary, pointers)
def _forward(
    dot: int,
    x: Places,
    parameters: Numbers,
    widths: Numbers,
    sizes: tuple[int, int, int, int],
    places: tuple[int, int, int],
    keep: bool,
) -> None:
    """Fills hidden layers' activations and the output, which are in `places` with room for a block's narrow output."""
    copies, rows, most, between = sizes
    hidden, out, scratch = places
    layers, blocks = len(parameters), (rows + BLOCK - 1) // BLOCK
    room, inside = 4 * BLOCK * most, 0
    for k in range(1, layers):
        inside += widths[k]
    for c in range(copies):
        for b in range(blocks):
            low = rows * b // blocks
            count = rows * (b + 1) // blocks - low
            before = some_rows(x, c, low, count, widths[0])
            start = hidden
            for k in range(layers):
                weight = at(parameters[k, 0] + c * parameters[k, 1], widths[k], widths[k + 1])
                bias = at(parameters[k, 2] + c * parameters[k, 3], 1, widths[k + 1])
                if k + 1 < layers:
                    place = start + 4 * (c * rows + low) * widths[k + 1] if keep else start + room * (k % 2)
                    after = at(place, count, widths[k + 1])
                    affine(dot, before, weight, bias, after, NOTHING if between else RELU)
                    if between == TANH:
                        for i in range(count):
                            bend(at(place + 4 * i * widths[k + 1], 1, widths[k + 1])[0])
                    elif between == NORM:
                        inverses = hidden + 4 * copies * rows * (inside + k) + 4 * (c * rows + low)
                        for i in range(count):
                            inverse = standardise(at(place + 4 * i * widths[k + 1], 1, widths[k + 1])[0])
                            if keep:
                                at(inverses, 1, count)[0, i] = inverse
                        after = at(scratch + 4 * BLOCK * NARROW, count, widths[k + 1]) if keep else after
                        _open(place, after)
                    start += 4 * copies * rows * widths[k + 1] if keep else 0
                    before = after[:, : widths[k + 1]]
                elif widths[layers] < NARROW:
                    after = at(scratch, count, widths[layers])
                    affine(dot, before, weight, bias, after, NOTHING)
                    turn(after, at(out + 4 * c * rows * widths[layers], widths[layers], rows)[:, low : low + count])
                else:
                    after = at(out + 4 * (c * rows + low) * widths[layers], count, widths[layers])
                    affine(dot, before, weight, bias, after, NOTHING)


@jit(product, elementary, pointers)
def _backward(
    dot: int,
    x: Places,
    grad: Places,
    parameters: Numbers,
    found: Numbers,
    widths: Numbers,
    sizes: tuple[int, int, int, int],
    places: tuple[int, int, int],
) -> None:
    """Fills the gradients `found` unless it is empty, and x's; `places`: hidden layers, gradient of x or 0, scratch."""
    copies, rows, most, between = sizes
    hidden, to_x, scratch = places
    layers, blocks, narrow = len(parameters), max((rows + BLOCK - 1) // BLOCK, 1), widths[-1] < NARROW
    asked = len(found) > 0
    room, inside = 4 * BLOCK * most, 0
    for k in range(1, layers):
        inside += widths[k]
    for c in range(copies):
        turned = scratch + 3 * room
        for k in range(layers):
            inner, width = widths[k], widths[k + 1]
            if k or to_x:
                turn(at(parameters[k, 0] + c * parameters[k, 1], inner, width), at(turned, width, inner))
            if asked:
                at(found[k, 2] + c * found[k, 3], 1, width)[:] = RELU
            turned += 4 * inner * width
        to_narrow = at(turned, widths[layers], widths[layers - 1])
        for b in range(blocks):
            low = rows * b // blocks
            count = rows * (b + 1) // blocks - low
            here = some_rows(grad, c, low, count, widths[layers])
            if asked:
                to_bias = at(found[layers - 1, 2] + c * found[layers - 1, 3], 1, widths[layers])
                add_rows(here, to_bias)
            outputs, weights = hidden + 4 * copies * rows * inside, turned
            for back in range(layers):
                k = layers - 1 - back
                inner, width = widths[k], widths[k + 1]
                weights -= 4 * inner * width
                seen = outputs
                if k:
                    outputs -= 4 * copies * rows * inner
                    seen = outputs + 4 * (c * rows + low) * inner
                    before = at(seen, count, inner)[:, :inner]
                    if between == NORM:
                        before = at(scratch + 2 * room, count, inner)[:, :inner]
                        _open(seen, before)
                else:
                    before = some_rows(x, c, low, count, inner)
                if asked and narrow and back == 0:
                    _add(dot, here.T, before, to_narrow, b)
                elif asked:
                    _add(dot, before.T, here, at(found[k, 0] + c * found[k, 1], inner, width), b)
                if k:
                    after = at(scratch + room * (k % 2), count, inner)
                    if between:
                        multiply(dot, here, at(weights, width, inner), after)
                        inverses = hidden + 4 * copies * rows * (inside + k - 1) + 4 * (c * rows + low)
                        for i in range(count):
                            row, to_row = at(seen + 4 * i * inner, 1, inner)[0], at(after.ctypes.data, count, inner)[i]
                            if between == TANH:
                                bend_back(row, to_row)
                            else:
                                standardise_back(row, to_row, at(inverses, 1, count)[0, i])
                    else:
                        gated(dot, here, at(weights, width, inner), before, after)
                    if asked:
                        add_rows(after, at(found[k - 1, 2] + c * found[k - 1, 3], 1, inner))
                    here = after[:, :inner]
                elif to_x:
                    to_rows = at(to_x + 4 * (c * rows + low) * inner, count, inner)
                    multiply(dot, here, at(weights, width, inner), to_rows)
        if asked and narrow:
            turn(to_narrow, at(found[layers - 1, 0] + c * found[layers - 1, 1], widths[layers - 1], widths[layers]))


@njit(nogil=True, error_model="numpy")
def bend(row: Any) -> None:
    """tanh, in place."""
    for j in range(len(row)):
        row[j] = tanh(row[j])


@njit(nogil=True, error_model="numpy")
def bend_back(row: Any, grad: Any) -> None:
    """From the gradient of `row`, which is a tanh, to that of what it is the tanh of, in place."""
    for j in range(len(row)):
        grad[j] *= np.float32(1.0) - row[j] * row[j]


@njit(inline="always")
def _open(place: Any, out: Any) -> None:
    """ReLU of the rows that lie there, into `out`."""
    for i in range(out.shape[0]):
        row = at(place + 4 * i * out.shape[1], 1, out.shape[1])[0]
        opened = at(out.ctypes.data + 4 * i * out.shape[1], 1, out.shape[1])[0]
        for j in range(out.shape[1]):
            opened[j] = max(row[j], RELU)


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def standardise(row: Any) -> Any:
    """To mean 0 and variance 1, in place; the inverse of its deviation."""
    total, squares, count = RELU, RELU, np.float32(len(row))
    for j in range(len(row)):
        total += row[j]
    mean = total / count
    for j in range(len(row)):
        row[j] -= mean
    for j in range(len(row)):
        squares += row[j] * row[j]
    inverse = np.float32(1.0) / np.sqrt(squares / count + np.float32(EPSILON))
    for j in range(len(row)):
        row[j] *= inverse
    return inverse


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def standardise_back(row: Any, grad: Any, inverse: Any) -> None:
    """From the gradient of ReLU of a standardised `row` to that of what it was before, in place."""
    total, along, count = RELU, RELU, np.float32(len(row))
    for j in range(len(row)):
        grad[j] = grad[j] if row[j] > 0 else RELU
    for j in range(len(row)):
        total += grad[j]
        along += grad[j] * row[j]
    mean, slope = total / count, along / count
    for j in range(len(row)):
        grad[j] = (grad[j] - mean - slope * row[j]) * inverse


@njit(inline="always")
def _add(dot: Any, a: Any, b: Any, total: Any, before: Any) -> None:
    """To `total`, a b; after nothing, if there was none `before`."""
    if before:
        accumulate(dot, a, b, total)
    else:
        multiply(dot, a, b, total)


@njit(inline="always")
def add_rows(x: Any, total: Any) -> None:
    """To `total`, `[1, columns]`, all rows of `x`."""
    if x.strides[1] == 4:  # contiguous, and compiled as such
        into = at(total.ctypes.data, 1, x.shape[1])[0]
        for i in range(x.shape[0]):
            row = at(x.ctypes.data + i * x.strides[0], 1, x.shape[1])[0]
            for j in range(x.shape[1]):
                into[j] += row[j]
    else:
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                total[0, j] += x[i, j]
