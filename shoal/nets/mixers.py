"""Mixers: from every agent's value `[..., agent]` and the global state `[..., state]` to the team's value `[...]`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.nets.mlp import Mlp


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
        hidden = self.first(x.reshape(1, -1, x.shape[-1])).tanh()
        weights: Tensor = self.second(hidden).view(*x.shape[:-1], -1)
        return weights


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
        first, bias, second, last = self.hyper(state).split(self.sizes, -1)
        first = first.abs().unflatten(-1, (q.shape[-1], -1))
        hidden = functional.elu((q.unsqueeze(-1) * first).sum(-2) + bias)
        total: Tensor = (hidden * second.abs()).sum(-1) + last.squeeze(-1)
        return total


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
        value: Tensor = self.mlp(x.reshape(1, -1, x.shape[-1])).view(x.shape[:-1])
        return value
