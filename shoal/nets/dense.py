"""Multilayer perceptrons for many agents in one call: weights shared, or stacked and multiplied as a batch."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """`copies` perceptrons of the same sizes side by side: `[copies, batch, in] -> [copies, batch, out]`, ReLU between.

    Weights and biases are drawn as `torch.nn.Linear` draws them (uniform, bound 1/sqrt(fan_in)), from `generator`.
    """

    def __init__(self, sizes: tuple[int, ...], copies: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = 1.0 / math.sqrt(max(fan_in, 1))
            draw = torch.rand((copies, fan_in + 1, fan_out), generator=generator).mul_(2 * bound).sub_(bound)
            self.weights.append(nn.Parameter(draw[:, :-1].clone()))
            self.biases.append(nn.Parameter(draw[:, -1:].clone()))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, (weight, bias) = zip(self.weights, self.biases, strict=True)
        for w, b in hidden:
            x = torch.baddbmm(b, x, w).relu_()
        return torch.baddbmm(bias, x, weight)


class AgentNet(nn.Module):
    """One perceptron per agent, or one for all: `[..., agent, in] -> [ensemble, ..., agent, out]`.

    Args:
        num_agents: length of the agent axis.
        sizes: input, hidden and output widths of each perceptron.
        shared: one set of weights for all agents, told apart by a one-hot identity appended to the input;
            without, every agent has its own weights, stacked and multiplied as a batch.
        ensemble: independent networks for each agent (two critics, say). With 1 the leading axis is left out.
    """

    def __init__(
        self,
        num_agents: int,
        sizes: tuple[int, ...],
        *,
        shared: bool,
        generator: torch.Generator,
        ensemble: int = 1,
    ) -> None:
        super().__init__()
        self.num_agents, self.shared, self.ensemble = num_agents, shared, ensemble
        self.identity: Tensor
        self.register_buffer("identity", torch.eye(num_agents) if shared and num_agents > 1 else torch.zeros(1, 0))
        sizes = (sizes[0] + self.identity.shape[1], *sizes[1:])
        self.mlp = Mlp(sizes, ensemble * (1 if shared else num_agents), generator)

    def forward(self, x: Tensor) -> Tensor:
        lead, agents = x.shape[:-2], self.num_agents
        x = x.reshape(-1, agents, x.shape[-1])
        if self.shared:
            if self.identity.shape[1]:
                x = torch.cat([x, self.identity.expand(len(x), -1, -1)], dim=-1)
            x = x.reshape(1, -1, x.shape[-1])
            out = self.mlp(x.expand(self.ensemble, -1, -1))
            out = out.reshape(self.ensemble, *lead, agents, out.shape[-1])
        else:
            x = x.transpose(0, 1)  # a view: batched products take any row stride
            out = self.mlp(x if self.ensemble == 1 else x.repeat(self.ensemble, 1, 1))
            out = out.unflatten(0, (self.ensemble, agents)).transpose(1, 2)
            out = out.reshape(self.ensemble, *lead, agents, out.shape[-1])
        result: Tensor = out if self.ensemble > 1 else out[0]
        return result
