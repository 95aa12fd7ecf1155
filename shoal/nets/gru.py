"""Gated recurrent units for many agents in one call, over whole sequences.

On a CPU a whole sequence is one compiled loop, and the way back through it another, so that threads can go through
theirs side by side. Elsewhere (and in double precision) the same equations are written with PyTorch's operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from shoal import elementary, pointers
from shoal.elementary import tanh
from shoal.jit import jit
from shoal.nets import perceptron, product
from shoal.nets.perceptron import NARROW, PART, RELU, add_rows, clear, turn
from shoal.nets.product import NOTHING, accumulate, affine, gated, multiply
from shoal.pointers import Layers, Numbers, Places, addresses_of, at, flags, layer, matrix, move, place_of, some_rows
from shoal.threads import Crew, Sharing, share

CHUNK, FEW = 24, 6
"""Rows that go through a sequence together, at most: what belongs to them stays in the cache; and at least."""
WINDOW = 96
"""Rows of all steps whose gradients are multiplied together on the way back: less than a first cache's worth."""
LEAST = 512
"""Rows of all steps that are worth gradients of their own, which are added afterwards."""


class Gru(Sharing):
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

    def forward(self, x: Tensor, memory: Tensor, keep: Tensor | None) -> Tensor:
        """Memory after each step of a sequence, `[copies, time, rows, width]`; see `through`."""
        return self.through(x, memory, keep)[0]

    def through(
        self,
        x: Tensor,
        memory: Tensor,
        keep: Tensor | None,
        some: slice = slice(None),
        before: Layers = (),
        after: Layers = (),
        identity: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A sequence, through layers before the unit and one after it.

        Args:
            x: `[copies, time, rows, columns]`.
            memory: before the first step, `[copies, rows, width]`.
            keep: `[time, batch]` bool; where not, memory is set to 0 before that step. Where there are more rows than
                that, some that follow each other share a column. None: kept throughout.
            some: of the copies, which `x` and `memory` are for.
            before: layers with ReLU that `x` goes through first, of these copies.
            after: a layer, or none, that memory goes through afterwards.
            identity: `[agents, columns]`, appended to the rows of `x`, one after the other, over and over.

        Returns:
            Memory after each step, `[copies, time, rows, width]`; and what the layer makes of it,
            `[copies, time * rows, size]`, or memory again where there is none.
        """
        unit = perceptron.of(self.layers, some)
        layers = [*before, *unit, *after]
        if _fits(x, memory, layers, identity):
            flat = [tensor for pair in layers for tensor in pair]
            kept = None if keep is None else keep.contiguous()
            beside = _Beside(len(before), kept, identity, self.crew)
            if torch.is_grad_enabled():
                found, out = _Compiled.apply(x, memory, beside, *flat)
            else:
                found, out, _ = _forth(x, memory, beside, flat, on_tape=False)
            return found, found.flatten(1, 2) if out is None else out
        if identity is not None:
            named = identity.repeat(x.shape[2] // len(identity), 1)
            x = torch.cat([x, named.expand(*x.shape[:3], -1)], -1)
        drive = perceptron.plain(x.flatten(1, 2), [*before, unit[0]])[0].unflatten(1, x.shape[1:3])
        kept = torch.ones(x.shape[1:3], device=x.device) if keep is None else keep
        found = plain(drive, memory, *unit[1], kept.repeat_interleave(x.shape[2] // kept.shape[1], 1))
        rows = found.flatten(1, 2)
        return found, perceptron.plain(rows, after)[0] if after else rows


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


class _Beside(NamedTuple):
    """What a sequence goes through beside the layers, see `Gru.through`."""

    before: int
    """Layers before the unit."""
    keep: Tensor | None
    identity: Tensor | None
    crew: Crew | None

    def places(self, rows: int) -> tuple[int, int, int, int, int]:
        """Where `keep` lies, or 0, and its columns; where `identity` lies, its rows and its columns."""
        keep, identity = self.keep, self.identity
        return (
            *((0, rows) if keep is None else (keep.data_ptr(), keep.shape[1])),
            *((0, 1, 0) if identity is None else (identity.data_ptr(), *identity.shape)),
        )


def _fits(x: Tensor, memory: Tensor, layers: Layers, identity: Tensor | None) -> bool:
    """Whether the compiled way is for these; what does not fit together is left to PyTorch, which says so."""
    first, columns = layers[0][0], x.shape[3] + (0 if identity is None else identity.shape[1])
    here = first.is_cpu and x.is_cpu and first.dtype == x.dtype == memory.dtype == torch.float32
    return here and len(x) == len(first) and columns == first.shape[1] > 0


def _forth(
    x: Tensor, memory: Tensor, beside: _Beside, parameters: Sequence[Tensor], on_tape: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Memory after each step, the output of the layer after it or None, and what gradients need: see `_forward`."""
    copies, time, rows, width = *x.shape[:3], memory.shape[-1]
    sizes, starts = _layout(parameters, beside.before)
    columns, most, last = int(starts[-1]), min(rows, CHUNK), int(sizes[-1, 1])
    chunks, parts = _parts(copies, time, rows, sizes)
    after, out = x.new_empty(copies, time, rows, width), None
    if len(sizes) > beside.before + 2:
        narrow = last < NARROW
        out = x.new_empty((copies, last, time * rows) if narrow else (copies, time * rows, last))
    tape = x.new_empty(copies * rows * time * columns if on_tape else 0)
    scratch = x.new_empty(len(parts), most * (6 * width + NARROW + (0 if on_tape else columns)))
    x, memory = _dense(x), _dense(memory).unsqueeze(1)
    given = _place(x), _place(memory), addresses_of(parameters), sizes, starts
    shape = time, rows, chunks, beside.before
    to = after.data_ptr(), 0 if out is None else out.data_ptr(), tape.data_ptr()
    places = [(*to, one.data_ptr()) for one in scratch]
    others = beside.places(rows)

    def play_part(k: int) -> None:
        _forward(product.address(), *given, shape, others, parts[k], places[k], on_tape)

    share(beside.crew, play_part, len(parts))
    return after, out.transpose(1, 2) if out is not None and last < NARROW else out, tape


class _Compiled(torch.autograd.Function):
    """`Gru.through`, compiled."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, memory: Tensor, beside: _Beside, *parameters: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        after, out, tape = _forth(x, memory, beside, parameters, on_tape=True)
        ctx.save_for_backward(tape, after, *parameters)
        ctx.beside, ctx.shape = beside, x.shape
        ctx.set_materialize_grads(False)
        return after, out

    @staticmethod
    def backward(ctx: Any, to_after: Tensor | None, to_out: Tensor | None) -> tuple[Tensor | None, ...]:
        tape, after, *parameters = ctx.saved_tensors
        (copies, time, rows, _), beside = ctx.shape, ctx.beside
        sizes, starts = _layout(parameters, beside.before)
        chunks, parts = _parts(copies, time, rows, sizes)
        found, tables = perceptron.gradients(len(parts), parameters)
        to_x = after.new_empty(ctx.shape) if ctx.needs_input_grad[0] else None
        to_memory = after.new_empty(copies, rows, after.shape[3])
        to_after = None if to_after is None else to_after.contiguous()
        width, size, most = after.shape[3], int(sizes[-1, 1]), int(sizes[: beside.before + 2].max())
        room = WINDOW * (5 * width + 2 * most) + (CHUNK + size) * width + int(sizes.prod(1).sum())
        scratch = after.new_empty(len(parts), room)
        grads = (0, 0, 0, 0) if to_out is None else place_of(to_out), 0 if to_after is None else to_after.data_ptr()
        given = *grads, after.data_ptr(), addresses_of(parameters)
        to = tape.data_ptr(), 0 if to_x is None else to_x.data_ptr(), to_memory.data_ptr()
        places = [(*to, one.data_ptr()) for one in scratch]
        shape, others = (copies, time, rows, chunks, beside.before, most), beside.places(rows)

        def pull_part(k: int) -> None:
            _backward(product.address(), *given, tables[k], sizes, starts, shape, others, parts[k], places[k])

        share(beside.crew, pull_part, len(parts))
        return to_x, to_memory, None, *perceptron.added(found)


def _layout(parameters: Sequence[Tensor], before: int) -> tuple[Numbers, Numbers]:
    """Inputs and outputs of each layer, of which those after `before` are the unit's two; and the tape's layout.

    That is where the inputs of each layer up to those begin, what `cell` fills, and the end, in numbers of one row and
    step, see `_forward`.
    """
    sizes = np.array([weight.shape[1:] for weight in parameters[::2]], np.int64)
    inputs = sizes[: before + 2, 0]
    return sizes, np.array([0, *inputs, 4 * inputs[-1]]).cumsum()


def _parts(copies: int, time: int, rows: int, sizes: Numbers) -> tuple[int, list[tuple[int, int]]]:
    """How many chunks the rows of a copy have; and which of them, of all copies, numbered, are computed together.

    By how much work there is, so that results do not depend on threads.
    """
    steps = copies * time * rows
    worth = perceptron.evenly(min(int(steps * sizes.prod(1).sum()) // PART, steps // LEAST))
    chunks = max(-(-rows // CHUNK), min(worth, rows // FEW, 2), 1)
    count = min(worth, copies * chunks)
    return chunks, [(copies * chunks * k // count, copies * chunks * (k + 1) // count) for k in range(count)]


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
    parameters: Numbers,
    sizes: Numbers,
    starts: Numbers,
    shape: tuple[int, int, int, int],
    beside: tuple[int, int, int, int, int],
    part: tuple[int, int],
    places: tuple[int, int, int, int],
    on_tape: bool,
) -> None:
    """Fills `places`: memory after each step, the output, and the tape; the last is scratch.

    Rows are computed in chunks, each from the first step to the last. On the tape, each chunk has the inputs of all
    layers up to the unit's one after the other, and what `cell` fills, `[time, rows of the chunk, ...]`.
    """
    out, read, tape, scratch = places
    time, rows, chunks, unit = shape
    identity, names, named = beside[2:]
    recall = unit + 1
    width, size, columns = sizes[recall, 0], sizes[-1, 1], starts[-1]
    most = min(rows, CHUNK)
    drive, recalled = scratch, scratch + 12 * most * width
    narrow = recalled + 12 * most * width
    length, given = time if on_tape else 1, 4 * (sizes[0, 0] - named)
    for q in range(part[0], part[1]):
        c, i = q // chunks, q % chunks
        low = rows * i // chunks
        count = rows * (i + 1) // chunks - low
        here = tape + 4 * columns * time * (c * rows + low) if on_tape else narrow + 4 * most * NARROW
        for t in range(time):
            line = t * count if on_tape else 0
            place = here + 4 * line * sizes[0, 0]
            for j in range(count):
                row = place + 4 * j * sizes[0, 0]
                move(row, x[0] + c * x[1] + t * x[2] + (low + j) * x[3], given)
                if named:
                    move(row + given, identity + 4 * named * ((low + j) % names), 4 * named)
            for k in range(recall):
                weight, bias = layer(parameters, sizes, k, c)
                after = here + 4 * (length * count * starts[k + 1] + line * sizes[k + 1, 0])
                after, floor = (after, RELU) if k < unit else (drive, NOTHING)
                before = matrix(place, count, sizes[k, 0], sizes[k, 0])
                affine(dot, before, weight, bias, matrix(after, count, sizes[k, 1], sizes[k, 1]), floor)
                place = after
            known = here + 4 * (length * count * starts[recall] + line * width)
            for j in range(count):
                before = memory[0] + c * memory[1] + (low + j) * memory[3]
                if t:
                    before = out + 4 * width * ((c * time + t - 1) * rows + low + j)
                if _kept(beside, rows, t, low + j):
                    move(known + 4 * width * j, before, 4 * width)
                else:
                    at(known + 4 * width * j, 1, width)[:] = RELU
            weight, bias = layer(parameters, sizes, recall, c)
            to_gates = matrix(recalled, count, 3 * width, 3 * width)
            affine(dot, matrix(known, count, width, width), weight, bias, to_gates, NOTHING)
            seen = here + 4 * (length * count * starts[recall + 1] + line * 4 * width)
            now = out + 4 * width * ((c * time + t) * rows + low)
            for j in range(count):
                cell(
                    at(drive + 12 * width * j, 1, 3 * width)[0],
                    at(recalled + 12 * width * j, 1, 3 * width)[0],
                    at(known + 4 * width * j, 1, width)[0],
                    at(seen + 16 * width * j, 1, 4 * width)[0],
                    at(now + 4 * width * j, 1, width)[0],
                )
            if read:
                weight, bias = layer(parameters, sizes, recall + 1, c)
                after = narrow if size < NARROW else read + 4 * size * ((c * time + t) * rows + low)
                memories = matrix(now, count, width, width)
                affine(dot, memories, weight, bias, matrix(after, count, size, size), NOTHING)
                if size < NARROW:
                    line = t * rows + low
                    into = at(read + 4 * c * size * time * rows, size, time * rows)[:, line : line + count]
                    turn(matrix(after, count, size, size), into)


@njit(inline="always")
def _kept(beside: Any, rows: Any, t: Any, row: Any) -> Any:
    """Whether a row's memory is kept before step t."""
    place, batch = beside[0], beside[1]
    return place == 0 or flags(place, (t + 1) * batch)[t * batch + row // (rows // batch)] != 0


@jit(product, perceptron, elementary, pointers, fastmath=True)
def _backward(
    dot: int,
    to_out: Places,
    to_after: int,
    after: int,
    parameters: Numbers,
    found: Numbers,
    sizes: Numbers,
    starts: Numbers,
    shape: tuple[int, int, int, int, int, int],
    beside: tuple[int, int, int, int, int],
    part: tuple[int, int],
    places: tuple[int, int, int, int],
) -> None:
    """From gradients of the output and of memory `after` each step, or one of both: adds to those of the parameters.

    `places`: the tape, the gradient of x or 0, that of the first memory, scratch. `carry` is the gradient of a step's
    memory, from 0 after the last step to what is left before the first. What is recalled has the gradient of the drive,
    but for n's part: that is `to_own`. Both are gathered for some steps before they are multiplied.
    """
    tape, to_x, to_memory, scratch = places
    copies, time, rows, chunks, unit, most = shape
    layers, recall, named = len(sizes), unit + 1, beside[4]
    width, size, columns = sizes[recall, 0], sizes[-1, 1], starts[-1]
    room = WINDOW
    to_drive, to_own = scratch, scratch + 12 * room * width
    carry = to_own + 4 * room * width
    spare = carry + 4 * room * width
    to_now = spare + 8 * room * most
    to_head = to_now + 4 * CHUNK * width
    turned = to_head + 4 * size * width
    copy, back, head = -1, turned, turned
    clear(found, sizes[:, 0], sizes[:, 1], copies)
    for q in range(part[0], part[1]):
        c, i = q // chunks, q % chunks
        low = rows * i // chunks
        count = rows * (i + 1) // chunks - low
        if c != copy:
            copy, place = c, turned
            at(to_head, size, width)[:] = RELU
            for k in range(layers):
                if k or to_x:
                    turn(layer(parameters, sizes, k, c)[0], at(place, sizes[k, 1], sizes[k, 0]))
                back = place if k == recall else back
                head = place
                place += 4 * sizes[k, 0] * sizes[k, 1]
        here = tape + 4 * columns * time * (c * rows + low)
        at(carry, 1, count * width)[:] = RELU
        steps, stop = max(WINDOW // max(count, 1), 1), time
        while stop > 0:
            start = max(stop - steps, 0)
            for t in range(stop - 1, start - 1, -1):
                first, line = (t - start) * count, (c * time + t) * rows + low
                from_now = to_after + 4 * width * line
                if to_out[0]:
                    _read_back(
                        dot,
                        some_rows(to_out, c, t * rows + low, count, size),
                        matrix(after + 4 * width * line, count, width, width),
                        at(head, size, width),
                        at(to_head, size, width),
                        layer(found, sizes, recall + 1, c)[1],
                        matrix(to_now, count, width, width),
                        from_now if to_after else 0,
                    )
                    from_now = to_now
                for j in range(count):
                    row = t * count + j
                    _cell_back(
                        at(here + 4 * (time * count * starts[recall + 1] + row * 4 * width), 1, 4 * width)[0],
                        at(here + 4 * (time * count * starts[recall] + row * width), 1, width)[0],
                        at(from_now + 4 * width * j, 1, width)[0],
                        np.float32(t + 1 < time and _kept(beside, rows, t + 1, low + j)),
                        at(carry + 4 * width * j, 1, width)[0],
                        at(to_drive + 12 * width * (first + j), 1, 3 * width)[0],
                        at(to_own + 4 * width * (first + j), 1, width)[0],
                    )
                gates = matrix(to_drive + 12 * width * first, count, 2 * width, 3 * width)
                own = matrix(to_own + 4 * width * first, count, width, width)
                to_before = matrix(carry, count, width, width)
                accumulate(dot, gates, matrix(back, 2 * width, width, width), to_before)
                accumulate(dot, own, matrix(back + 8 * width * width, width, width, width), to_before)
            many, line = (stop - start) * count, start * count
            known = matrix(here + 4 * (time * count * starts[recall] + line * width), many, width, width)
            gates, own = matrix(to_drive, many, 2 * width, 3 * width), matrix(to_own, many, width, width)
            to_weight, to_bias = layer(found, sizes, recall, c)
            accumulate(dot, known.T, gates, to_weight[:, : 2 * width])
            accumulate(dot, known.T, own, to_weight[:, 2 * width :])
            add_rows(gates, to_bias)
            add_rows(own, to_bias[:, 2 * width :])
            now, place = to_drive, back
            for k in range(unit, -1, -1):
                inner, outer = sizes[k, 0], sizes[k, 1]
                place -= 4 * inner * outer
                before = matrix(here + 4 * (time * count * starts[k] + line * inner), many, inner, inner)
                from_here = matrix(now, many, outer, outer)
                to_weight, to_bias = layer(found, sizes, k, c)
                accumulate(dot, before.T, from_here, to_weight)
                add_rows(from_here, to_bias)
                now = spare + 4 * room * most * (k % 2)
                if k:
                    gated(dot, from_here, matrix(place, outer, inner, inner), before, matrix(now, many, inner, inner))
                elif to_x:
                    multiply(dot, from_here, matrix(place, outer, inner, inner), matrix(now, many, inner, inner))
                    given = inner - named
                    for j in range(many):
                        t, row = start + j // count, low + j % count
                        move(to_x + 4 * given * ((c * time + t) * rows + row), now + 4 * inner * j, 4 * given)
            stop = start
        if to_out[0] and (q + 1 == part[1] or i + 1 == chunks):
            turn(at(to_head, size, width), layer(found, sizes, recall + 1, c)[0])
        for j in range(count):
            first = to_memory + 4 * width * (c * rows + low + j)
            if _kept(beside, rows, 0, low + j):
                move(first, carry + 4 * width * j, 4 * width)
            else:
                at(first, 1, width)[:] = RELU


@njit(inline="always")
def _read_back(
    dot: Any, grad: Any, memory: Any, weight: Any, to_weight: Any, to_bias: Any, to_memory: Any, from_memory: Any
) -> None:
    """The way back through the layer after the unit: from `grad` of a step's output to that of its memory.

    `weight` and its gradient are turned. `from_memory` is where the gradient lies that memory has otherwise, or 0.
    """
    accumulate(dot, grad.T, memory, to_weight)
    add_rows(grad, to_bias)
    if from_memory:
        move(to_memory.ctypes.data, from_memory, 4 * memory.shape[0] * memory.shape[1])
        accumulate(dot, grad, weight, to_memory)
    else:
        multiply(dot, grad, weight, to_memory)
