"""Mixers: from every agent's value to the team's, `[..., agent] -> [...]`.

All are called alike, with what was chosen (`q`), what would have been best (`best`), the global state `[..., state]`
and the joint action `[..., columns]`; each uses what its paper says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.nets.dense import Mlp


class Sum(nn.Module):
    """VDN (Sunehag et al. 2018, arXiv 1706.05296, eq. 4): Q_tot = sum_i Q_i."""

    def forward(self, q: Tensor, best: Tensor, state: Tensor, action: Tensor) -> Tensor:
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
        return self.second(hidden).view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


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

    def forward(self, q: Tensor, best: Tensor, state: Tensor, action: Tensor) -> Tensor:
        first, bias, second, last = self.hyper(state).split(self.sizes, -1)
        first = first.abs().unflatten(-1, (q.shape[-1], -1))
        hidden = functional.elu((q.unsqueeze(-1) * first).sum(-2) + bias)
        total: Tensor = (hidden * second.abs()).sum(-1) + last.squeeze(-1)
        return total


class Dueling(nn.Module):
    """QPLEX (Wang et al. 2021, arXiv 2008.01062, eq. 9 to 12): all functions that the agents' own choices maximise.

    V_i = w_i(s) max_a Q_i + b_i(s),  A_i = w_i(s) (Q_i - max_a Q_i) <= 0,  w_i > 0
    Q_tot = sum_i V_i + sum_i lambda_i(s, a) A_i,  lambda_i = sum_k |v_k(s)| sigmoid(phi_ik(s)) sigmoid(l_ik(s, a)) > 0

    As in the authors' code, the advantages pass no gradient through lambda's excess over 1.

    Args:
        num_agents: values to mix.
        state_size: width of the global state.
        action_size: width of the joint action.
        heads: terms of lambda.
        width: hidden units of its networks.
    """

    def __init__(
        self, num_agents: int, state_size: int, action_size: int, heads: int, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.sizes = [num_agents, num_agents, heads, heads * num_agents]
        self.hyper = Hyper(state_size, width, sum(self.sizes), generator)
        self.joint = Hyper(state_size + action_size, width, heads * num_agents, generator)

    def forward(self, q: Tensor, best: Tensor, state: Tensor, action: Tensor) -> Tensor:
        scale, shift, key, agents = self.hyper(state).split(self.sizes, -1)
        scale = scale.abs() + 1e-10
        terms = (agents.sigmoid() * self.joint(torch.cat([state, action], -1)).sigmoid()).unflatten(
            -1, (-1, q.shape[-1])
        )
        importance = ((key.abs() + 1e-10).unsqueeze(-1) * terms).sum(-2)
        advantage = (scale * (q - best)).detach()
        total: Tensor = (scale * q + shift).sum(-1) + ((importance - 1) * advantage).sum(-1)
        return total
