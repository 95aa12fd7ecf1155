"""Mixers: from every agent's value `[..., agent]` and the global state `[..., state]` to the team's value `[...]`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shoal import elementary
from shoal.elementary import exp
from shoal.jit import jit
from shoal.nets import perceptron
from shoal.nets.mlp import Mlp

Array = NDArray[np.float32]


class Sum(nn.Module):
    """VDN (Sunehag et al. 2018, arXiv 1706.05296, eq. 4): Q_tot = sum_i Q_i."""

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        return q.sum(-1)


class Hyper(nn.Module):
    """A perceptron `[..., in] -> [..., out]` whose output others use as weights.

    Its hidden units are bounded (tanh). With ReLU, weights grow with the distance from the states seen so far, and
    their product with the values faster still: bootstrapping from where an episode was cut off then ran away on spread.
    """

    def __init__(self, size: int, width: int, out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first, self.second = Mlp((size, width), 1, generator), Mlp((width, out), 1, generator)

    def forward(self, x: Tensor) -> Tensor:
        layers = [*self.first.layers, *self.second.layers]
        return perceptron.apply(x.flatten(0, -2).unsqueeze(0), layers, "tanh", self.first.crew).view(*x.shape[:-1], -1)


class Monotonic(nn.Module):
    """QMIX (Rashid et al. 2018, arXiv 1803.11485, eq. 4 to 6): dQ_tot / dQ_i >= 0 for every agent.

    Q_tot = |W_2(s)| elu(|W_1(s)| q + b_1(s)) + b_2(s). One hypernetwork computes all of W_1, b_1, W_2 and b_2.

    Args:
        num_agents: values to mix.
        state_size: width of the global state.
        embed: units of the mixing network.
        width: hidden units of the hypernetwork.
    """

    def __init__(self, num_agents: int, state_size: int, embed: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.sizes = [num_agents * embed, embed, embed, 1]
        self.hyper = Hyper(state_size, width, sum(self.sizes), generator)

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        weights = self.hyper(state)
        if q.is_cpu and q.dtype == weights.dtype == torch.float32:
            mixed: Tensor = _Mixed.apply(q, weights)
            return mixed
        return mix(q, weights)


def mix(q: Tensor, weights: Tensor) -> Tensor:
    """`[..., agent]` and `[..., W_1, b_1, W_2, b_2]` to `[...]`: Monotonic's equation."""
    embed = (weights.shape[-1] - 1) // (q.shape[-1] + 2)
    first, bias, second, last = weights.split([q.shape[-1] * embed, embed, embed, 1], -1)
    first = first.abs().unflatten(-1, (q.shape[-1], -1))
    hidden = functional.elu((q.unsqueeze(-1) * first).sum(-2) + bias)
    total: Tensor = (hidden * second.abs()).sum(-1) + last.squeeze(-1)
    return total


class _Mixed(torch.autograd.Function):
    """`mix`, compiled."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, weights: Tensor) -> Tensor:
        q, weights = q.contiguous(), weights.contiguous()
        ctx.save_for_backward(q, weights)
        total = q.new_empty(q.shape[:-1])
        _mix(*(x.detach().view(-1, n).numpy() for x, n in ((q, q.shape[-1]), (weights, weights.shape[-1]), (total, 1))))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        q, weights = ctx.saved_tensors
        given = q, weights, grad.contiguous().unsqueeze(-1), torch.empty_like(q), torch.empty_like(weights)
        _unmix(*(x.view(-1, x.shape[-1]).numpy() for x in given))
        return given[3], given[4]


@njit(inline="always")
def _add_up(w: Any, q: Any, hidden: Any) -> None:
    """hidden = |W_1| q + b_1, of one row."""
    agents, embed = len(q), len(hidden)
    for e in range(embed):
        hidden[e] = w[agents * embed + e]
    for i in range(agents):
        first, value = w[i * embed : (i + 1) * embed], q[i]
        for e in range(embed):
            hidden[e] += value * abs(first[e])


@jit(elementary, fastmath=True)
def _mix(q: Array, weights: Array, total: Array) -> None:
    one, agents = np.float32(1.0), q.shape[1]
    embed = (weights.shape[1] - 1) // (agents + 2)
    hidden = np.empty(embed, np.float32)
    for row in range(len(q)):
        w = weights[row]
        second = w[(agents + 1) * embed : (agents + 2) * embed]
        _add_up(w, q[row], hidden)
        found = w[-1]
        for e in range(embed):
            bent = hidden[e] if hidden[e] > 0 else exp(hidden[e]) - one
            found += bent * abs(second[e])
        total[row, 0] = found


@jit(elementary, fastmath=True)
def _unmix(q: Array, weights: Array, grad: Array, to_q: Array, to_weights: Array) -> None:
    """From the gradient of the mixed value to those of `q` and `weights`."""
    zero, one, agents = np.float32(0.0), np.float32(1.0), q.shape[1]
    embed = (weights.shape[1] - 1) // (agents + 2)
    hidden = np.empty(embed, np.float32)
    for row in range(len(q)):
        w, to_w, g = weights[row], to_weights[row], grad[row, 0]
        second = w[(agents + 1) * embed : (agents + 2) * embed]
        to_bias = to_w[agents * embed : (agents + 1) * embed]
        to_second = to_w[(agents + 1) * embed : (agents + 2) * embed]
        _add_up(w, q[row], hidden)
        for e in range(embed):
            low = exp(min(hidden[e], zero))
            bent = hidden[e] if hidden[e] > 0 else low - one
            to_second[e] = g * bent * np.sign(second[e])
            to_bias[e] = g * abs(second[e]) * low
        for i in range(agents):
            first, to_first, value = w[i * embed : (i + 1) * embed], to_w[i * embed : (i + 1) * embed], q[row, i]
            slope = zero
            for e in range(embed):
                to_first[e] = to_bias[e] * value * np.sign(first[e])
                slope += to_bias[e] * abs(first[e])
            to_q[row, i] = slope
        to_w[-1] = g


class Joint(nn.Module):
    """Q*(s, a) of weighted QMIX: any function of the global state and the joint action, by which nobody acts.

    Args:
        size: width of the state and the joint action together.
        width: units of each of its two hidden layers.
    """

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mlp = Mlp((size, width, width, 1), 1, generator)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([state, action], -1)
        value: Tensor = self.mlp(x.flatten(0, -2).unsqueeze(0)).view(x.shape[:-1])
        return value
