"""Perceptrons on a CPU: all layers forth in one compiled call, and all gradients back in another.

Rows go through the layers in blocks that stay in the cache, and Python's lock is not held meanwhile, so that threads
can learn from pieces of a batch side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
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
from shoal.threads import Crew, share

BLOCK = 192
"""Rows that go through all layers together: activations and weights of 64 to 256 units stay in the second cache."""
PART, MOST = 20_000_000, 8
"""Weights that rows meet on their way, from which they are worth a thread's wake-up; and parts of a batch at most."""
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


def apply(x: Tensor, layers: Layers, between: Between = "relu", crew: Crew | None = None) -> Tensor:
    """`[copies, rows, in] -> [copies, rows, out]`; the threads of a crew share the rows."""
    return forward(x, layers, between, crew) if fits(x, layers) else plain(x, layers, between)[0]


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


def forward(x: Tensor, layers: Layers, between: Between = "relu", crew: Crew | None = None) -> Tensor:
    """`apply`, compiled; narrow outputs lie in memory by columns.

    Args:
        x: rows whose numbers do not lie side by side are copied.
        layers: weights `[copies, in, out]` and biases `[copies, 1, out]`, of which every copy's lies contiguous.
    """
    parameters = _flat(layers)
    if torch.is_grad_enabled():
        return _Perceptron.apply(x, between, crew, *parameters)  # type: ignore[no-any-return]
    widths = _widths(x, parameters)
    return _forth(x, parameters, widths, between, crew, _count(x, widths), keep=False)[0]


def linearize(x: Tensor, layers: Layers) -> tuple[Tensor, list[Tensor]]:
    """The output, and what `pull` needs, with ReLU between layers."""
    if not fits(x, layers):
        return plain(x, layers)
    parameters = _flat(layers)
    out, *kept = _forth(x, parameters, _widths(x, parameters), "relu", None, 1, keep=True)
    return out, kept


def pull(kept: Sequence[Tensor], layers: Layers, grad: Tensor, found: Sequence[Tensor], to_x: Tensor | None) -> None:
    """The chain rule: from the gradient of the output to those of the parameters and of the input.

    Args:
        kept: see `linearize`.
        found: overwritten, a tensor for each parameter, in their order; none: those gradients are not asked for.
        to_x: overwritten, contiguous; None: not asked for.
    """
    if fits(kept[0], layers):
        parameters = _flat(layers)
        widths = _widths(kept[0], parameters)
        _back(kept, parameters, widths, "relu", None, grad, addresses_of(found)[None], to_x)
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


def _widths(x: Tensor, parameters: Sequence[Tensor]) -> list[int]:
    return [x.shape[2], *[bias.shape[2] for bias in parameters[1::2]]]


def _back(
    kept: Sequence[Tensor],
    parameters: Sequence[Tensor],
    widths: Sequence[int],
    between: Between,
    crew: Crew | None,
    grad: Tensor,
    found: Numbers,
    to_x: Tensor | None,
) -> None:
    """`pull`, compiled; gradients go where `found` says, `addresses_of` those of each part of the rows."""
    x, hidden = kept
    copies, rows, _ = x.shape
    if widths[-1] >= NARROW:
        grad = grad.contiguous()
    turned = sum(inner * width for inner, width in itertools.pairwise(widths)) + widths[-2] * widths[-1]
    count, room = len(found), 3 * BLOCK * max(widths) + turned
    scratch = x.new_empty(count * room)
    places = hidden.data_ptr(), 0 if to_x is None else to_x.data_ptr(), scratch.data_ptr()
    sizes = copies, rows, max(widths), BETWEEN.index(between), count, room
    given = place_of(x), place_of(grad), addresses_of(parameters), found, np.array(widths), sizes, places
    share(crew, partial(_backward, product.address(), *given), count)


def _forth(
    x: Tensor,
    parameters: Sequence[Tensor],
    widths: Sequence[int],
    between: Between,
    crew: Crew | None,
    count: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, `x`, and all hidden layers' activations one after the other, unless they need not be kept.

    `count` parts of the rows are computed by the threads of a crew.

    Normalised ones are those before ReLU; after them come the inverse deviations of every layer's rows.
    """
    if x.stride(2) != 1 or x.stride(1) < x.shape[2]:
        x = x.contiguous()
    copies, rows, _ = x.shape
    most, normed = max(widths), between == "norm"
    inside = copies * rows * (sum(widths[1:-1]) + (len(widths) - 2) * normed) if keep else 0
    hidden, room = x.new_empty(inside), BLOCK * (NARROW + most * (normed if keep else 2))
    scratch = x.new_empty(count * room)
    narrow = widths[-1] < NARROW
    out = x.new_empty((copies, widths[-1], rows) if narrow else (copies, rows, widths[-1]))
    places = hidden.data_ptr(), out.data_ptr(), scratch.data_ptr()
    sizes = copies, rows, most, BETWEEN.index(between), count, room
    given = place_of(x), addresses_of(parameters), np.array(widths), sizes, places, keep
    share(crew, partial(_forward, product.address(), *given), count)
    return out.transpose(1, 2) if narrow else out, x, hidden


def _count(x: Tensor, widths: Sequence[int]) -> int:
    """How many parts the rows have, by how much work there is."""
    copies, rows, _ = x.shape
    work = copies * rows * sum(inner * width for inner, width in itertools.pairwise(widths))
    return 1 if work < 2 * PART else evenly(min(work // PART, copies * _blocks(rows)))


def evenly(worth: int) -> int:
    """How many to make where so many are worth it: a power of 2, which threads can share evenly."""
    return min(1 << max(worth.bit_length() - 1, 0), MOST)


def _blocks(rows: int) -> int:
    return max((rows + BLOCK - 1) // BLOCK, 1)


def gradients(count: int, parameters: Sequence[Tensor]) -> tuple[list[list[Tensor]], Numbers]:
    """Room for those of the parameters, of each part of the rows, and `addresses_of` it, `[count, layers, 4]`."""
    found = [[tensor.new_empty(tensor.shape) for tensor in parameters] for _ in range(count)]
    return found, addresses_of([tensor for part in found for tensor in part]).reshape(count, -1, 4)


def added(found: list[list[Tensor]]) -> list[Tensor]:
    """Gradients of all parts together."""
    for part in found[1:]:
        torch._foreach_add_(found[0], part)
    return found[0]


class _Perceptron(torch.autograd.Function):
    """From the input and every layer's weight and bias to the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, between: Between, crew: Crew | None, *parameters: Tensor) -> Tensor:
        widths = _widths(x, parameters)
        count = _count(x, widths)
        out, *kept = _forth(x, parameters, widths, between, crew, count, keep=True)
        ctx.save_for_backward(*kept, *parameters)
        ctx.given = widths, between, crew, count
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, *parameters = ctx.saved_tensors
        widths, between, crew, count = ctx.given
        found, tables = gradients(count, parameters)
        to_x = x.new_empty(x.shape) if ctx.needs_input_grad[0] else None
        _back((x, hidden), parameters, widths, between, crew, grad, tables, to_x)
        return to_x, None, None, *added(found)


@njit(inline="always")
def turn(x: Any, out: Any) -> None:
    """out = x', transposed, a square after the other, of which every line of the cache is met once."""
    rows, columns = x.shape
    for low in range(0, rows, 16):
        for left in range(0, columns, 16):
            for j in range(left, min(left + 16, columns)):
                for i in range(low, min(low + 16, rows)):
                    out[j, i] = x[i, j]


@njit(inline="always")
def _shared(rows: Any, parts: Any) -> Any:
    """Blocks of a copy's rows: as many for each part."""
    blocks = max((rows + BLOCK - 1) // BLOCK, 1)
    return (blocks + parts - 1) // parts * parts


@jit(product, elementary, pointers)
def _forward(
    dot: int,
    x: Places,
    parameters: Numbers,
    widths: Numbers,
    sizes: tuple[int, int, int, int, int, int],
    places: tuple[int, int, int],
    keep: bool,
    part: int,
) -> None:
    """Fills hidden layers' activations if they are kept, and the output; `places` end with scratch for every part."""
    copies, rows, most, between, parts, apart = sizes
    hidden, out, scratch = places
    scratch += 4 * apart * part
    hidden = hidden if keep else scratch + 4 * BLOCK * NARROW
    layers, blocks = len(parameters), _shared(rows, parts)
    last = copies * blocks * (part + 1) // parts
    room, inside = 4 * BLOCK * most, 0
    for k in range(1, layers):
        inside += widths[k]
    for q in range(copies * blocks * part // parts, last):
        c, b = q // blocks, q % blocks
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
    tables: Numbers,
    widths: Numbers,
    sizes: tuple[int, int, int, int, int, int],
    places: tuple[int, int, int],
    part: int,
) -> None:
    """Fills the gradients that `tables` name, a part's each, and x's.

    `places`: hidden layers, gradient of x or 0, scratch.
    """
    copies, rows, most, between, parts, apart = sizes
    hidden, to_x, scratch = places
    found = tables[part]
    scratch += 4 * apart * part
    layers, blocks, narrow = len(parameters), _shared(rows, parts), widths[-1] < NARROW
    last = copies * blocks * (part + 1) // parts
    asked = len(found) > 0
    room, inside = 4 * BLOCK * most, 0
    for k in range(1, layers):
        inside += widths[k]
    if asked:
        clear(found, widths[:-1], widths[1:], copies)
    begun, turned = -1, scratch
    for q in range(copies * blocks * part // parts, last):
        c, b = q // blocks, q % blocks
        if c != begun:
            begun, turned = c, scratch + 3 * room
            for k in range(layers):
                inner, width = widths[k], widths[k + 1]
                if k or to_x:
                    turn(at(parameters[k, 0] + c * parameters[k, 1], inner, width), at(turned, width, inner))
                turned += 4 * inner * width
            at(turned, widths[layers], widths[layers - 1])[:] = RELU
        to_narrow = at(turned, widths[layers], widths[layers - 1])
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
                accumulate(dot, here.T, before, to_narrow)
            elif asked:
                accumulate(dot, before.T, here, at(found[k, 0] + c * found[k, 1], inner, width))
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
        if asked and narrow and (q + 1 == last or b + 1 == blocks):
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
def clear(found: Any, inputs: Any, outputs: Any, copies: Any) -> None:
    """Zeros where the gradients of all layers go, which have so many inputs and outputs."""
    for k in range(len(found)):
        for c in range(copies):
            at(found[k, 0] + c * found[k, 1], inputs[k], outputs[k])[:] = RELU
            at(found[k, 2] + c * found[k, 3], 1, outputs[k])[:] = RELU


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
