"""Gated recurrent units for many agents in one call, over whole sequences.

On a CPU a whole sequence is one compiled loop, and the way back through it another, so that threads can go through
theirs side by side. Elsewhere (and in double precision) the same equations are written with PyTorch's operations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from shoal import elementary
from shoal.elementary import tanh
from shoal.jit import jit
from shoal.nets import perceptron, product
from shoal.nets.perceptron import BLOCK, RELU, Layers, Numbers, Places, addresses_of, at, place_of, some_rows
from shoal.nets.product import NOTHING, accumulate, affine

Array = NDArray[np.float32]


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
        self, x: Tensor, memory: Tensor, keep: Tensor | None, some: slice = slice(None), before: Layers = ()
    ) -> Tensor:
        """A sequence: `[copies, time, rows, size]` -> memory after each step `[copies, time, rows, width]`.

        Args:
            memory: before the first step, `[copies, rows, width]`.
            keep: `[time, rows]` bool; where not, memory is set to 0 before that step. None: kept throughout.
            some: of the copies, which `x` and `memory` are for.
            before: layers with ReLU that `x` goes through first, of these copies.
        """
        layers = perceptron.of(self.layers, some)
        drive = perceptron.apply(x.flatten(1, 2), [*before, layers[0]]).unflatten(1, x.shape[1:3])
        keep = torch.ones(x.shape[1:3], dtype=torch.bool, device=x.device) if keep is None else keep
        given = drive, memory, *layers[1], keep
        if drive.device.type != "cpu" or drive.dtype != torch.float32:
            return plain(*given)
        after: Tensor = _Compiled.apply(*given) if torch.is_grad_enabled() else _unroll(*given)[0]
        return after


def plain(drive: Tensor, memory: Tensor, weight: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
    """The equations, step by step: `drive` is W x + b, `[copies, time, rows, 3 width]`; `weight` and `bias` U and c."""
    width, after = memory.shape[-1], []
    for t in range(drive.shape[1]):
        memory = memory * keep[t].unsqueeze(-1)
        recalled = torch.baddbmm(bias, memory, weight)
        r, z = (drive[:, t, :, : 2 * width] + recalled[..., : 2 * width]).sigmoid().chunk(2, -1)
        n = (drive[:, t, :, 2 * width :] + r * recalled[..., 2 * width :]).tanh()
        memory = torch.lerp(n, memory, z)
        after.append(memory)
    return torch.stack(after, 1)


def play(x: Tensor, memory: Tensor, before: Layers, units: Layers, after: Layers) -> tuple[Tensor, Tensor]:
    """One step without gradient, of a perceptron with ReLU after its last layer too, the unit, and another perceptron.

    Args:
        x: `[copies, rows, in]`.
        memory: `[copies, rows, width]`; its rows' numbers lie side by side.
        units: the unit's `layers`.

    Returns:
        Outputs `[copies, rows, out]`, and memory.
    """
    layers = [*before, *units, *after]
    copies, rows, width = memory.shape
    sizes = np.array([weight.shape[1:] for weight, _ in layers])
    out, now = x.new_empty(copies, rows, sizes[-1, 1]), x.new_empty(copies, rows, width)
    scratch = x.new_empty(3 * BLOCK * int(sizes.max()) + 4 * width)
    places = out.data_ptr(), now.data_ptr(), scratch.data_ptr()
    inputs = place_of(x), place_of(memory), addresses_of([t for pair in layers for t in pair])
    _play(*inputs, sizes, len(before), copies, rows, places)
    return out, now


def _unroll(drive: Tensor, memory: Tensor, weight: Tensor, bias: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`plain`, and what its gradient needs: see `_forward`."""
    copies, time, rows, width = *drive.shape[:3], memory.shape[-1]
    before, after = drive.new_empty(2, copies, time, rows, width)
    seen = drive.new_empty(copies, time, rows, 4 * width)
    recalled = drive.new_empty(copies, rows, 3 * width)
    torch.mul(memory, keep[0].unsqueeze(-1), out=before[:, 0])
    tensors = (drive, weight, bias, keep, recalled, seen, after, before)
    _forward(*(x.detach().contiguous().numpy() for x in tensors))
    return after, seen, before


class _Compiled(torch.autograd.Function):
    """`plain`, with loops compiled by numba."""

    @staticmethod
    def forward(ctx: Any, drive: Tensor, memory: Tensor, weight: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
        after, seen, before = _unroll(drive, memory, weight, bias, keep)
        ctx.save_for_backward(seen, before, weight, keep)
        return after

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        seen, before, weight, keep = ctx.saved_tensors
        copies, time, rows, width = before.shape
        to_drive, to_own = seen.new_empty(copies, time, rows, 3 * width), seen.new_empty(_steps(rows), rows, width)
        carry, to_weight, to_bias = (
            seen.new_zeros(copies, n, w) for n, w in ((rows, width), (width, 3 * width), (1, 3 * width))
        )
        tensors = (grad, weight.transpose(1, 2), seen, before, keep, carry, to_drive, to_own, to_weight, to_bias)
        _backward(*(x.contiguous().numpy() for x in tensors))
        return to_drive, carry * keep[0].unsqueeze(-1), to_weight, to_bias, None


def _steps(rows: int) -> int:
    """Whose gradients are gathered before they are multiplied, as long as they lie in the cache."""
    return max(BLOCK // max(rows, 1), 1)


@njit(inline="always", fastmath=True)
def _cell(x: Any, u: Any, h: Any, s: Any, out: Any) -> None:
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


@jit(product, perceptron, elementary, fastmath=True)
def _forward(
    drive: Array,
    weight: Array,
    bias: Array,
    keep: Array,
    recalled: Array,
    seen: Array,
    after: Array,
    before: Array,
) -> None:
    """Fills `seen` (see `_cell`) and `after`, and `before` but for its first step."""
    one = np.float32(1.0)
    copies, time, rows, width = after.shape
    for t in range(time):
        for c in range(copies):
            affine(before[c, t], weight[c], bias[c], recalled[c], NOTHING)
            for i in range(rows):
                out = after[c, t, i]
                _cell(drive[c, t, i], recalled[c, i], before[c, t, i], seen[c, t, i], out)
                if t + 1 < time:
                    kept = one if keep[t + 1, i] else np.float32(0.0)
                    following = before[c, t + 1, i]
                    for j in range(width):
                        following[j] = kept * out[j]


@jit(product, perceptron, elementary, fastmath=True)
def _backward(
    grad: Array,
    turned: Array,
    seen: Array,
    before: Array,
    keep: Array,
    carry: Array,
    to_drive: Array,
    to_own: Array,
    to_weight: Array,
    to_bias: Array,
) -> None:
    """From the gradient of `after` to those of `drive`, of weight and bias.

    `turned` is the weight, transposed. `carry` is the gradient of a step's memory, from 0 after the last step to what
    is left before the first. What is recalled has the gradient of `drive`, but for n's part: that is `to_own`, of the
    last few steps.
    """
    one, steps = np.float32(1.0), len(to_own)
    copies, time, rows, width = before.shape
    for c in range(copies):
        for back in range(time):
            t = time - 1 - back
            for i in range(rows):
                s, h, g, later = seen[c, t, i], before[c, t, i], grad[c, t, i], carry[c, i]
                to_x, to_u, total = to_drive[c, t, i], to_own[t % steps, i], to_bias[c, 0]
                kept = one if t + 1 < time and keep[t + 1, i] else np.float32(0.0)
                for j in range(width):
                    r, z, n, own = s[j], s[width + j], s[2 * width + j], s[3 * width + j]
                    here = g[j] + kept * later[j]
                    to_n = here * (one - z) * (one - n * n)
                    to_x[j] = to_n * own * r * (one - r)
                    to_x[width + j] = here * (h[j] - n) * z * (one - z)
                    to_x[2 * width + j] = to_n
                    to_u[j] = to_n * r
                    later[j] = here * z  # what reaches the memory before past the product
                for j in range(2 * width):
                    total[j] += to_x[j]
                for j in range(width):
                    total[2 * width + j] += to_u[j]
            accumulate(to_drive[c, t, :, : 2 * width], turned[c, : 2 * width], carry[c])
            accumulate(to_own[t % steps], turned[c, 2 * width :], carry[c])
            if t % steps == 0:
                count = min(steps, time - t) * rows
                recalled = before[c].reshape(time * rows, width)[t * rows : t * rows + count].T
                to_gates = to_drive[c].reshape(time * rows, 3 * width)[t * rows : t * rows + count, : 2 * width]
                to_n_part = to_own.reshape(steps * rows, width)[:count]
                accumulate(recalled, to_gates, to_weight[c, :, : 2 * width])
                accumulate(recalled, to_n_part, to_weight[c, :, 2 * width :])


@jit(product, perceptron, elementary, fastmath=True)
def _play(
    x: Places,
    memory: Places,
    parameters: Numbers,
    sizes: Numbers,
    unit: int,
    copies: int,
    rows: int,
    places: tuple[int, int, int],
) -> None:
    """`places`: outputs and memory, which it fills, and scratch; `unit` is the place of the unit among the layers."""
    out, now, scratch = places
    layers, blocks = len(parameters), (rows + BLOCK - 1) // BLOCK
    room, width = 4 * BLOCK * sizes.max(), sizes[unit, 1] // 3
    seen = at(scratch + 3 * room, 1, 4 * width)[0]
    for c in range(copies):
        for b in range(blocks):
            low = rows * b // blocks
            count = rows * (b + 1) // blocks - low
            after = some_rows(x, c, low, count, sizes[0, 0])
            for k in range(layers):
                weight = at(parameters[k, 0] + c * parameters[k, 1], sizes[k, 0], sizes[k, 1])
                bias = at(parameters[k, 2] + c * parameters[k, 3], 1, sizes[k, 1])
                place = scratch + room * (k % 2) if k + 1 < layers else out + 4 * (c * rows + low) * sizes[k, 1]
                result = at(place, count, sizes[k, 1])
                if k == unit + 1:
                    affine(some_rows(memory, c, low, count, width), weight, bias, result, NOTHING)
                    for i in range(count):
                        drive = at(scratch + room * (unit % 2) + 12 * width * i, 1, 3 * width)[0]
                        known = at(memory[0] + c * memory[1] + (low + i) * memory[2], 1, width)[0]
                        _cell(drive, result[i], known, seen, at(now + 4 * width * (c * rows + low + i), 1, width)[0])
                    result = at(now + 4 * width * (c * rows + low), count, width)
                else:
                    affine(after, weight, bias, result, NOTHING if k == unit or k + 1 == layers else RELU)
                after = result[:, :]
