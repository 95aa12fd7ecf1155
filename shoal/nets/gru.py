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

from shoal.nets import perceptron
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

    def forward(self, x: Tensor, memory: Tensor, keep: Tensor | None, some: slice = slice(None)) -> Tensor:
        """A sequence: `[copies, time, rows, size]` -> memory after each step `[copies, time, rows, width]`.

        Args:
            memory: before the first step, `[copies, rows, width]`.
            keep: `[time, rows]` bool; where not, memory is set to 0 before that step. None: kept throughout.
            some: of the copies, which `x` and `memory` are for.
        """
        layers = self.layers if some == slice(None) else [(weight[some], bias[some]) for weight, bias in self.layers]
        drive = perceptron.apply(x.flatten(1, 2), layers[:1]).unflatten(1, x.shape[1:3])
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
        to_drive, through = seen.new_empty(2, copies, time, rows, 3 * width)
        carry, to_weight, to_bias = (
            seen.new_zeros(copies, n, w) for n, w in ((rows, width), (width, 3 * width), (1, 3 * width))
        )
        tensors = (grad, weight.transpose(1, 2), seen, before, keep, carry, through, to_drive, to_weight, to_bias)
        _backward(*(x.contiguous().numpy() for x in tensors))
        return to_drive, carry * keep[0].unsqueeze(-1), to_weight, to_bias, None


@njit(inline="always", fastmath=True)
def _tanh(x: Any) -> Any:
    """Rational approximation, within 5e-7; compilers make vector instructions of it and not of libm's."""
    x = np.float32(0.5) * (abs(x + np.float32(7.9)) - abs(x - np.float32(7.9)))  # clamped, without a branch
    s = x * x
    p = np.float32(-2.76076847742355e-16)
    p = p * s + np.float32(2.00018790482477e-13)
    p = p * s + np.float32(-8.60467152213735e-11)
    p = p * s + np.float32(5.12229709037114e-08)
    p = p * s + np.float32(1.48572235717979e-05)
    p = p * s + np.float32(6.37261928875436e-04)
    p = p * s + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06)
    q = q * s + np.float32(1.18534705686654e-04)
    q = q * s + np.float32(2.26843463243900e-03)
    q = q * s + np.float32(4.89352518554385e-03)
    return x * p / q


@njit(cache=True, fastmath=True, error_model="numpy", nogil=True)
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
    """Fills `seen` (r, z, n, U_n h + c_n) and `after`, and `before` but for its first step."""
    half, one = np.float32(0.5), np.float32(1.0)
    copies, time, rows, width = after.shape
    for t in range(time):
        for c in range(copies):
            affine(before[c, t], weight[c], bias[c], recalled[c], NOTHING)
            for i in range(rows):
                x, u, s = drive[c, t, i], recalled[c, i], seen[c, t, i]
                h, out = before[c, t, i], after[c, t, i]
                for j in range(2 * width):
                    s[j] = half + half * _tanh(half * (x[j] + u[j]))
                for j in range(width):
                    s[3 * width + j] = u[2 * width + j]
                    s[2 * width + j] = _tanh(x[2 * width + j] + s[j] * s[3 * width + j])
                for j in range(width):
                    out[j] = s[2 * width + j] + s[width + j] * (h[j] - s[2 * width + j])
                if t + 1 < time:
                    kept = one if keep[t + 1, i] else np.float32(0.0)
                    following = before[c, t + 1, i]
                    for j in range(width):
                        following[j] = kept * out[j]


@njit(cache=True, fastmath=True, error_model="numpy", nogil=True)
def _backward(
    grad: Array,
    turned: Array,
    seen: Array,
    before: Array,
    keep: Array,
    carry: Array,
    through: Array,
    to_drive: Array,
    to_weight: Array,
    to_bias: Array,
) -> None:
    """From the gradient of `after` to those of what is recalled (`through`), of `drive`, and of weight and bias.

    `turned` is the weight, transposed. `carry` is the gradient of a step's memory, from 0 after the last step to what
    is left before the first.
    """
    one = np.float32(1.0)
    copies, time, rows, width = before.shape
    for back in range(time):
        t = time - 1 - back
        for c in range(copies):
            for i in range(rows):
                s, h, g, later = seen[c, t, i], before[c, t, i], grad[c, t, i], carry[c, i]
                to_x, to_u = to_drive[c, t, i], through[c, t, i]
                kept = one if t + 1 < time and keep[t + 1, i] else np.float32(0.0)
                for j in range(width):
                    r, z, n, own = s[j], s[width + j], s[2 * width + j], s[3 * width + j]
                    here = g[j] + kept * later[j]
                    to_n = here * (one - z) * (one - n * n)
                    to_z = here * (h[j] - n) * z * (one - z)
                    to_r = to_n * own * r * (one - r)
                    later[j] = here * z  # what reaches the memory before past the product
                    to_x[j], to_x[width + j], to_x[2 * width + j] = to_r, to_z, to_n
                    to_u[j], to_u[width + j], to_u[2 * width + j] = to_r, to_z, to_n * r
                for j in range(3 * width):
                    to_bias[c, 0, j] += to_u[j]
            accumulate(through[c, t], turned[c], carry[c])
            accumulate(before[c, t].T, through[c, t], to_weight[c])
