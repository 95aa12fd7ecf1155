"""Multilayer perceptrons for many agents in one call: weights shared, or stacked and multiplied as a batch.

A net can be called, and then gradients come from autograd; or `linearize` returns its output together with a
`Pullback`, the chain rule written out. For networks of 64 units and batches of 64 the pullback takes half of
autograd's time: the products are small, and what costs is the number of operations around them.
"""

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
        layers = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = 1.0 / math.sqrt(max(fan_in, 1))
            draw = torch.rand((copies, fan_in + 1, fan_out), generator=generator).mul_(2 * bound).sub_(bound)
            layers += [nn.Parameter(draw[:, :-1].clone()), nn.Parameter(draw[:, -1:].clone())]
        self.stack = nn.ParameterList(layers)
        self.layers = list(zip(layers[::2], layers[1::2], strict=True))  # a ParameterList is slow to read

    def forward(self, x: Tensor) -> Tensor:
        return self.linearize(x)[0]

    def linearize(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output and every layer's input, which `pull_back` needs."""
        inputs = [x]
        for weight, bias in self.layers[:-1]:
            inputs.append(torch.baddbmm(bias, inputs[-1], weight).relu_())
        weight, bias = self.layers[-1]
        return torch.baddbmm(bias, inputs[-1], weight), inputs

    @torch.no_grad()
    def pull_weights(self, inputs: list[Tensor], grad: Tensor) -> None:
        """From the gradient of the output to the weights' `grad`, overwriting it."""
        for k in reversed(range(len(inputs))):
            weight, bias = self.layers[k]
            torch.bmm(inputs[k].transpose(1, 2), grad, out=weight.grad)
            torch.sum(grad, 1, keepdim=True, out=bias.grad)
            if k:
                grad = _through_relu(torch.bmm(grad, weight.transpose(1, 2)), inputs[k])

    @torch.no_grad()
    def pull_input(self, inputs: list[Tensor], grad: Tensor) -> Tensor:
        """From the gradient of the output to that of the input."""
        for k in reversed(range(len(inputs))):
            grad = torch.bmm(grad, self.layers[k][0].transpose(1, 2))
            if k:
                grad = _through_relu(grad, inputs[k])
        return grad


def _through_relu(grad: Tensor, output: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.default(grad, output, 0.0)  # type: ignore[no-any-return]


class Pullback:
    """The chain rule through one evaluation of an `AgentNet`: from the gradient of its output to weights or input."""

    def __init__(self, net: AgentNet, inputs: list[Tensor]) -> None:
        self.net, self.inputs = net, inputs

    def weights(self, grad: Tensor) -> None:
        """Sets the weights' `grad`. `grad` is shaped like the net's output."""
        self.net.mlp.pull_weights(self.inputs, self.net._inward(grad))

    def input(self, grad: Tensor) -> Tensor:
        """The gradient of the input `[batch, agent, in]`."""
        pulled = self.net.mlp.pull_input(self.inputs, self.net._inward(grad))
        return self.net._input_outward(pulled, grad.shape[-3])


class AgentNet(nn.Module):
    """One perceptron per agent, or one for all: `[batch, agent, in] -> [ensemble, batch, agent, out]`.

    Args:
        num_agents: length of the agent axis.
        sizes: input, hidden and output widths of each perceptron.
        shared: one set of weights for all agents, told apart by a one-hot identity appended to the input;
            without, every agent has its own weights, stacked and multiplied as a batch.
        ensemble: independent networks for each agent (two critics, say).
    """

    def __init__(
        self, num_agents: int, sizes: tuple[int, ...], *, shared: bool, generator: torch.Generator, ensemble: int = 1
    ) -> None:
        super().__init__()
        self.num_agents, self.shared, self.ensemble, self.size = num_agents, shared, ensemble, sizes[0]
        self.identity: Tensor
        self.register_buffer("identity", torch.eye(num_agents) if shared and num_agents > 1 else torch.zeros(1, 0))
        sizes = (sizes[0] + self.identity.shape[1], *sizes[1:])
        self.mlp = Mlp(sizes, ensemble * (1 if shared else num_agents), generator)

    def forward(self, x: Tensor) -> Tensor:
        return self._outward(self.mlp(self._input_inward(x)), len(x))

    @torch.no_grad()
    def linearize(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """The output, and the chain rule through it."""
        out, inputs = self.mlp.linearize(self._input_inward(x))
        return self._outward(out, len(x)), Pullback(self, inputs)

    # Inward: from [..., batch, agent, size] to [copies, rows, size]; outward: back

    def _input_inward(self, x: Tensor) -> Tensor:
        if self.shared:
            if self.identity.shape[1]:
                x = torch.cat([x, self.identity.expand(len(x), -1, -1)], dim=-1)
            x = x.reshape(1, -1, x.shape[-1])
            return x.expand(self.ensemble, -1, -1) if self.ensemble > 1 else x
        x = x.transpose(0, 1)  # a view: batched products take any row stride
        return x.repeat(self.ensemble, 1, 1) if self.ensemble > 1 else x

    def _outward(self, out: Tensor, batch: int) -> Tensor:
        agents = self.num_agents
        if self.shared:
            return out.view(self.ensemble, batch, agents, out.shape[-1])
        return out.view(self.ensemble, agents, batch, out.shape[-1]).transpose(1, 2)

    def _inward(self, grad: Tensor) -> Tensor:
        if self.shared:
            return grad.reshape(self.ensemble, -1, grad.shape[-1])
        return grad.transpose(1, 2).flatten(0, 1)

    def _input_outward(self, grad: Tensor, batch: int) -> Tensor:
        if self.shared:
            return grad.sum(0).view(batch, self.num_agents, -1)[..., : self.size]
        grad = grad.view(self.ensemble, self.num_agents, batch, -1)
        return (grad.sum(0) if self.ensemble > 1 else grad[0]).transpose(0, 1)
