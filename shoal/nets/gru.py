"""Gated recurrent units for many agents in one call, over whole sequences.

On a CPU a whole sequence is one compiled loop, and the way back through it another, so that threads can go through
theirs side by side. Elsewhere (and in double precision) the same equations are written with PyTorch's operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from shoal import elementary, pointers
from shoal.elementary import tanh
from shoal.jit import jit
from shoal.nets import perceptron, product
from shoal.nets.perceptron import BLOCK, RELU, add_rows, turn
from shoal.nets.product import NOTHING, accumulate, affine, gated, multiply
from shoal.pointers import Layers, Numbers, Places, addresses_of, at, layer, matrix, move
from shoal.threads import Crew

CHUNK = 24
"""Rows that go through a sequence together: what belongs to them stays in the cache."""
PART = 30_000_000
"""Weights that rows meet on their way, from which they are worth a thread's wake-up."""
LEAST = 512
"""Rows of all steps that are worth gradients of their own, which are added afterwards."""


class Gru(nn.Module):
    """`copies` gated recurrent units side by side (Cho et al. 2014, arXiv 1406.1078; the variant of `torch.nn.GRU`):

        r = sigmoid(W_r x + b_r + U_r h + c_r)        z = sigmoid(W_z x + b_z + U_z h + c_z)
        n = tanh(W_n x + b_n + r * (U_n h + c_n))
        h <- (1 - z) * n + z * h

    Weights are drawn as `torch.nn.GRU` draws them (uniform, bound 1/sqrt(width)), from `generator`; their columns are
    those of r, z and n.
    """

    def __init__(self, size: int, width: int, copies: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(width)

        def draw(rows: int) -> nn.Parameter:
            drawn = torch.rand((copies, rows, 3 * width), generator=generator)
            return nn.Parameter(drawn.mul_(2 * bound).sub_(bound))

        self.input_weight, self.input_bias = draw(size), draw(1)
        self.memory_weight, self.memory_bias = draw(width), draw(1)
        self.layers = [(self.input_weight, self.input_bias), (self.memory_weight, self.memory_bias)]

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        keep: Tensor | None,
        some: slice = slice(None),
        before: Layers = (),
        crew: Crew | None = None,
    ) -> Tensor:
        """A sequence: `[copies, time, rows, size]` -> memory after each step `[copies, time, rows, width]`.

        Args:
            memory: before the first step, `[copies, rows, width]`.
            keep: `[time, rows]` bool; where not, memory is set to 0 before that step. None: kept throughout.
            some: of the copies, which `x` and `memory` are for.
            before: layers with ReLU that `x` goes through first, of these copies.
            crew: threads that share the rows; None: the caller's alone.
        """
        layers = [*before, *perceptron.of(self.layers, some)]
        kept = torch.ones(x.shape[1:3], device=x.device) if keep is None else keep.to(torch.float32)
        if perceptron.fits(x.flatten(1, 2), layers) and memory.dtype == x.dtype:
            flat = [tensor for pair in layers for tensor in pair]
            if torch.is_grad_enabled():
                after: Tensor = _Compiled.apply(x, memory, kept, crew, *flat)
                return after
            return _forth(x, memory, kept, crew, flat, on_tape=False)[0]
        drive = perceptron.plain(x.flatten(1, 2), layers[:-1])[0].unflatten(1, x.shape[1:3])
        return plain(drive, memory, *layers[-1], kept)


def plain(drive: Tensor, memory: Tensor, weight: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
    """The equations, step by step: `drive` is W x + b, `[copies, time, rows, 3 width]`; `weight` and `bias` U and c."""
    width, after = memory.shape[-1], []
    for t in range(drive.shape[1]):
        memory = memory * keep[t].to(memory.dtype).unsqueeze(-1)
        recalled = torch.baddbmm(bias, memory, weight)
        r, z = (drive[:, t, :, : 2 * width] + recalled[..., : 2 * width]).sigmoid().chunk(2, -1)
        n = (drive[:, t, :, 2 * width :] + r * recalled[..., 2 * width :]).tanh()
        memory = torch.lerp(n, memory, z)
        after.append(memory)
    return torch.stack(after, 1)


def _forth(
    x: Tensor, memory: Tensor, keep: Tensor, crew: Crew | None, parameters: Sequence[Tensor], on_tape: bool
) -> tuple[Tensor, Tensor]:
    """Memory after each step, and what its gradient needs: see `_forward`."""
    copies, time, rows, width = *x.shape[:3], memory.shape[-1]
    sizes, starts = _layout(parameters)
    columns, most = int(starts[-1]), min(rows, CHUNK)
    parts = _parts(copies, time, rows, sizes)
    after = x.new_empty(copies, time, rows, width)
    tape = x.new_empty(copies * rows * time * columns if on_tape else 0)
    scratch = x.new_empty(len(parts), most * (6 * width + (0 if on_tape else columns)))
    x, memory, keep = _dense(x), _dense(memory).unsqueeze(1), keep.contiguous()
    given = _place(x), _place(memory), keep.data_ptr(), addresses_of(parameters)
    places = [(after.data_ptr(), tape.data_ptr(), one.data_ptr()) for one in scratch]

    def play_part(k: int) -> None:
        _forward(product.address(), *given, sizes, starts, (time, rows), parts[k], places[k], on_tape)

    _share(play_part, len(parts), crew)
    return after, tape


class _Compiled(torch.autograd.Function):
    """`Gru.forward`, compiled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, memory: Tensor, keep: Tensor, crew: Crew | None, *parameters: Tensor) -> Tensor:
        after, tape = _forth(x, memory, keep, crew, parameters, on_tape=True)
        ctx.save_for_backward(tape, keep, *parameters)
        ctx.crew, ctx.shape = crew, x.shape
        return after

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tape, keep, *parameters = ctx.saved_tensors
        copies, time, rows, _ = ctx.shape
        (sizes, starts), grad, keep = _layout(parameters), grad.contiguous(), keep.contiguous()
        width = int(sizes[-1, 0])
        parts = _parts(copies, time, rows, sizes)
        found = [[torch.zeros_like(tensor) for tensor in parameters] for _ in parts]
        to_x = grad.new_empty(ctx.shape) if ctx.needs_input_grad[0] else None
        to_memory = grad.new_empty(copies, rows, width)
        window = max(BLOCK, CHUNK)
        turned, shape = int(sizes.prod(1).sum()), (time, rows, int(sizes.max()))
        scratch = grad.new_empty(len(parts), window * (5 * width + 2 * shape[2]) + turned)
        given = grad.data_ptr(), keep.data_ptr(), addresses_of(parameters)
        to_inputs = 0 if to_x is None else to_x.data_ptr()
        tables = [addresses_of(one) for one in found]
        places = [(tape.data_ptr(), to_inputs, to_memory.data_ptr(), one.data_ptr()) for one in scratch]

        def pull_part(k: int) -> None:
            _backward(product.address(), *given, tables[k], sizes, starts, shape, parts[k], places[k])

        _share(pull_part, len(parts), ctx.crew)
        for one in found[1:]:
            torch._foreach_add_(found[0], one)
        return to_x, to_memory, None, None, *found[0]


def _layout(parameters: Sequence[Tensor]) -> tuple[Numbers, Numbers]:
    """Inputs and outputs of each layer, of which the last two are the unit's; and what is on the tape (see `_forward`).

    The latter is where the inputs of each layer begin, what `cell` fills, and the end, in numbers of one row and step.
    """
    sizes = np.array([weight.shape[1:] for weight in parameters[::2]], np.int64)
    return sizes, np.array([0, *sizes[:, 0], 4 * sizes[-1, 0]]).cumsum()


def _parts(copies: int, time: int, rows: int, sizes: Numbers) -> list[tuple[int, int]]:
    """Which chunks (of all copies, numbered) are computed together, by how much work there is."""
    chunks, steps = copies * _chunks(rows), copies * time * rows
    count = max(min(int(steps * sizes.prod(1).sum()) // PART, steps // LEAST, chunks), 1)
    return [(chunks * k // count, chunks * (k + 1) // count) for k in range(count)]


def _chunks(rows: int) -> int:
    return max((rows + CHUNK - 1) // CHUNK, 1)


def _share(work: Callable[[int], None], count: int, crew: Crew | None) -> None:
    if crew is None:
        for k in range(count):
            work(k)
    else:
        crew.map(work, range(count))


def _dense(x: Tensor) -> Tensor:
    """Its rows' numbers side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _place(x: Tensor) -> Places:
    """Where `[copies, time, rows, size]` lies: address, bytes from copy to copy, step to step and row to row."""
    return x.data_ptr(), x.stride(0) * 4, x.stride(1) * 4, x.stride(2) * 4


@njit(inline="always", fastmath=True)
def cell(x: Any, u: Any, h: Any, s: Any, out: Any) -> None:
    """One row: from W x + b, U h + c and h to the memory `out`, and `s` (r, z, n, U_n h + c_n)."""
    half, width = np.float32(0.5), len(h)
    r, z, n, own = s[:width], s[width : 2 * width], s[2 * width : 3 * width], s[3 * width :]
    gates, x_n, u_n = s[: 2 * width], x[2 * width :], u[2 * width :]
    for j in range(2 * width):  # short loops over few arrays, of which compilers make vector instructions
        gates[j] = half + half * tanh(half * (x[j] + u[j]))
    for j in range(width):
        own[j] = u_n[j]
    for j in range(width):
        n[j] = tanh(x_n[j] + r[j] * u_n[j])
    for j in range(width):
        out[j] = n[j] + z[j] * (h[j] - n[j])


@njit(inline="always", fastmath=True)
def _cell_back(s: Any, h: Any, g: Any, kept: Any, later: Any, to_x: Any, to_u: Any) -> None:
    """The way back through `cell`, from `g` and `kept` times the gradient `later` of the memory after it.

    To the gradients of W x + b and of U_n h + c_n, and in `later` of h, but for what comes through the products.
    """
    one, width = np.float32(1.0), len(h)
    for n in range(width):
        later[n] = g[n] + kept * later[n]
    for n in range(width):
        z, new = s[width + n], s[2 * width + n]
        to_x[width + n] = later[n] * (h[n] - new) * z * (one - z)
        to_x[2 * width + n] = later[n] * (one - z) * (one - new * new)
        later[n] *= z
    for n in range(width):
        r = s[n]
        to_u[n] = to_x[2 * width + n] * r
        to_x[n] = to_u[n] * s[3 * width + n] * (one - r)


@jit(product, perceptron, elementary, pointers, fastmath=True)
def _forward(
    dot: int,
    x: Places,
    memory: Places,
    keep: int,
    parameters: Numbers,
    sizes: Numbers,
    starts: Numbers,
    sequence: tuple[int, int],
    part: tuple[int, int],
    places: tuple[int, int, int],
    on_tape: bool,
) -> None:
    """Fills `places`: memory after each step, and the tape; the last is scratch.

    Rows are computed in chunks, each from the first step to the last. On the tape, each chunk has the inputs of all
    layers one after the other, and what `cell` fills, `[time, rows of the chunk, ...]`.
    """
    out, tape, scratch = places
    time, rows = sequence
    layers, width = len(sizes), sizes[-1, 0]
    chunks, columns = max((rows + CHUNK - 1) // CHUNK, 1), starts[-1]
    most = min(rows, CHUNK)
    drive, recalled = scratch, scratch + 12 * most * width
    length = time if on_tape else 1
    for q in range(part[0], part[1]):
        c, i = q // chunks, q % chunks
        low = rows * i // chunks
        count = rows * (i + 1) // chunks - low
        here = tape + 4 * columns * time * (c * rows + low) if on_tape else scratch + 24 * most * width
        for t in range(time):
            line = t * count if on_tape else 0
            place = here + 4 * line * sizes[0, 0]
            for j in range(count):
                row = x[0] + c * x[1] + t * x[2] + (low + j) * x[3]
                move(place + 4 * j * sizes[0, 0], row, 4 * sizes[0, 0])
            for k in range(layers - 1):
                weight, bias = layer(parameters, sizes, k, c)
                after = here + 4 * (length * count * starts[k + 1] + line * sizes[k + 1, 0])
                after, floor = (after, RELU) if k < layers - 2 else (drive, NOTHING)
                given = matrix(place, count, sizes[k, 0], sizes[k, 0])
                affine(dot, given, weight, bias, matrix(after, count, sizes[k, 1], sizes[k, 1]), floor)
                place = after
            known = here + 4 * (length * count * starts[layers - 1] + line * width)
            for j in range(count):
                before = memory[0] + c * memory[1] + (low + j) * memory[3]
                if t:
                    before = out + 4 * width * ((c * time + t - 1) * rows + low + j)
                factor, before = at(keep, time, rows)[t, low + j], at(before, 1, width)[0]
                row = at(known + 4 * width * j, 1, width)[0]
                for n in range(width):
                    row[n] = factor * before[n]
            weight, bias = layer(parameters, sizes, layers - 1, c)
            affine(
                dot,
                matrix(known, count, width, width),
                weight,
                bias,
                matrix(recalled, count, 3 * width, 3 * width),
                NOTHING,
            )
            seen = here + 4 * (length * count * starts[layers] + line * 4 * width)
            for j in range(count):
                after = out + 4 * width * ((c * time + t) * rows + low + j)
                cell(
                    at(drive + 12 * width * j, 1, 3 * width)[0],
                    at(recalled + 12 * width * j, 1, 3 * width)[0],
                    at(known + 4 * width * j, 1, width)[0],
                    at(seen + 16 * width * j, 1, 4 * width)[0],
                    at(after, 1, width)[0],
                )


@jit(product, perceptron, elementary, pointers, fastmath=True)
def _backward(
    dot: int,
    grad: int,
    keep: int,
    parameters: Numbers,
    found: Numbers,
    sizes: Numbers,
    starts: Numbers,
    shape: tuple[int, int, int],
    part: tuple[int, int],
    places: tuple[int, int, int, int],
) -> None:
    """From the gradient of memory after each step, `[copies, time, rows, width]`: adds to those of the parameters.

    `places`: the tape, the gradient of x or 0, that of the first memory, scratch. `carry` is the gradient of a step's
    memory, from 0 after the last step to what is left before the first. What is recalled has the gradient of the drive,
    but for n's part: that is `to_own`. Both are gathered for some steps before they are multiplied.
    """
    tape, to_x, to_memory, scratch = places
    time, rows, most = shape
    layers, width = len(sizes), sizes[-1, 0]
    chunks, columns = max((rows + CHUNK - 1) // CHUNK, 1), starts[-1]
    room, one = max(BLOCK, CHUNK), np.float32(1.0)
    to_drive, to_own = scratch, scratch + 12 * room * width
    carry = to_own + 4 * room * width
    spare = carry + 4 * room * width
    turned = spare + 8 * room * most
    copy, back = -1, turned
    for q in range(part[0], part[1]):
        c, i = q // chunks, q % chunks
        low = rows * i // chunks
        count = rows * (i + 1) // chunks - low
        if c != copy:
            copy, place = c, turned
            for k in range(layers):
                if k or to_x:
                    turn(layer(parameters, sizes, k, c)[0], at(place, sizes[k, 1], sizes[k, 0]))
                back = place  # ends with that of the memory's weight
                place += 4 * sizes[k, 0] * sizes[k, 1]
        here = tape + 4 * columns * time * (c * rows + low)
        at(carry, 1, count * width)[:] = np.float32(0.0)
        steps, stop = max(BLOCK // max(count, 1), 1), time
        while stop > 0:
            start = max(stop - steps, 0)
            for t in range(stop - 1, start - 1, -1):
                first = (t - start) * count
                for j in range(count):
                    line = t * count + j
                    s = at(here + 4 * (time * count * starts[layers] + line * 4 * width), 1, 4 * width)[0]
                    h = at(here + 4 * (time * count * starts[layers - 1] + line * width), 1, width)[0]
                    g = at(grad + 4 * width * ((c * time + t) * rows + low + j), 1, width)[0]
                    later = at(carry + 4 * width * j, 1, width)[0]
                    to_gates = at(to_drive + 12 * width * (first + j), 1, 3 * width)[0]
                    to_u = at(to_own + 4 * width * (first + j), 1, width)[0]
                    kept = at(keep, time, rows)[t + 1, low + j] if t + 1 < time else one
                    _cell_back(s, h, g, kept, later, to_gates, to_u)
                gates = matrix(to_drive + 12 * width * first, count, 2 * width, 3 * width)
                own = matrix(to_own + 4 * width * first, count, width, width)
                to_before = matrix(carry, count, width, width)
                accumulate(dot, gates, matrix(back, 2 * width, width, width), to_before)
                accumulate(dot, own, matrix(back + 8 * width * width, width, width, width), to_before)
            many, line = (stop - start) * count, start * count
            known = matrix(here + 4 * (time * count * starts[layers - 1] + line * width), many, width, width)
            gates, own = matrix(to_drive, many, 2 * width, 3 * width), matrix(to_own, many, width, width)
            to_weight, to_bias = layer(found, sizes, layers - 1, c)
            accumulate(dot, known.T, gates, to_weight[:, : 2 * width])
            accumulate(dot, known.T, own, to_weight[:, 2 * width :])
            add_rows(gates, to_bias)
            add_rows(own, to_bias[:, 2 * width :])
            now, place = to_drive, back
            for k in range(layers - 2, -1, -1):
                inner, outer = sizes[k, 0], sizes[k, 1]
                place -= 4 * inner * outer
                before = matrix(here + 4 * (time * count * starts[k] + line * inner), many, inner, inner)
                to_after = matrix(now, many, outer, outer)
                to_weight, to_bias = layer(found, sizes, k, c)
                accumulate(dot, before.T, to_after, to_weight)
                add_rows(to_after, to_bias)
                now = spare + 4 * room * most * (k % 2)
                if k:
                    gated(dot, to_after, matrix(place, outer, inner, inner), before, matrix(now, many, inner, inner))
                elif to_x:
                    multiply(dot, to_after, matrix(place, outer, inner, inner), matrix(now, many, inner, inner))
                    for j in range(many):
                        t, row = start + j // count, low + j % count
                        move(to_x + 4 * inner * ((c * time + t) * rows + row), now + 4 * inner * j, 4 * inner)
            stop = start
        for j in range(count):
            first = at(to_memory + 4 * width * (c * rows + low + j), 1, width)[0]
            later = at(carry + 4 * width * j, 1, width)[0]
            kept = at(keep, time, rows)[0, low + j]
            for n in range(width):
                first[n] = kept * later[n]
