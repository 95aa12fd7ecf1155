"""Perceptrons side by side, multiplied as a batch, and the chain rule through them."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from shoal.nets import perceptron
from shoal.threads import Sharing

ALL = slice(None)


class Mlp(Sharing):
    """`copies` perceptrons of the same sizes side by side: `[copies, batch, in] -> [copies, batch, out]`, ReLU between.

    Weights and biases are drawn as `torch.nn.Linear` draws them (uniform, bound 1/sqrt(fan_in)), from `generator`. With
    `norm`, hidden units are normalised before ReLU, see `perceptron.normalise`.
    """

    def __init__(self, sizes: tuple[int, ...], copies: int, generator: torch.Generator, norm: bool = False) -> None:
        super().__init__()
        self.norm = norm
        layers = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = 1.0 / math.sqrt(max(fan_in, 1))
            draw = torch.rand((copies, fan_in + 1, fan_out), generator=generator).mul_(2 * bound).sub_(bound)
            layers += [nn.Parameter(draw[:, :-1].clone()), nn.Parameter(draw[:, -1:].clone())]
        self.stack = nn.ParameterList(layers)
        self.layers = list(zip(layers[::2], layers[1::2], strict=True))  # a ParameterList is slow to read

    def forward(self, x: Tensor, some: slice = ALL) -> Tensor:
        """Of all copies, or of `some` of them."""
        return perceptron.apply(x, perceptron.of(self.layers, some), "norm" if self.norm else "relu", self.crew)

    def linearize(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output, and what `pull_weights` and `pull_input` need. Not with `norm`."""
        assert not self.norm
        return perceptron.linearize(x, self.layers)

    @torch.no_grad()
    def pull_weights(self, kept: list[Tensor], grad: Tensor) -> None:
        """From the gradient of the output to the weights' `grad`, overwriting it."""
        parameters = [parameter for layer in self.layers for parameter in layer]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
        perceptron.pull(kept, self.layers, grad, [parameter.grad for parameter in parameters], None)  # type: ignore[misc]

    @torch.no_grad()
    def pull_input(self, kept: list[Tensor], grad: Tensor) -> Tensor:
        """From the gradient of the output to that of the input."""
        to_x = grad.new_empty(kept[0].shape)
        perceptron.pull(kept, self.layers, grad, (), to_x)
        return to_x


class Each(nn.Module):
    """A perceptron for each agent, or one for all: `[..., agent, in] -> [..., agent, out]`."""

    def __init__(self, sizes: tuple[int, ...], num_agents: int, shared: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.shared = shared
        self.mlp = Mlp(sizes, 1 if shared else num_agents, generator)

    def forward(self, x: Tensor, agents: slice = ALL) -> Tensor:
        """Of all agents, or of those `agents` whose inputs are in `x`."""
        if self.shared:
            return self.mlp(x.flatten(0, -2).unsqueeze(0)).view(*x.shape[:-1], -1)  # type: ignore[no-any-return]
        out = self.mlp(x.flatten(0, -3).transpose(0, 1), agents)
        return out.transpose(0, 1).unflatten(0, x.shape[:-2])  # type: ignore[no-any-return]
