"""Perceptrons side by side, multiplied as a batch, and the chain rule through them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.nets import perceptron
from shoal.nets.perceptron import NARROW

ALL = slice(None)
FEW = 512
"""Rows, of all copies together, from which it never costs more than it gains (`benchmarks/products.py`)."""


class Mlp(nn.Module):
    """`copies` perceptrons of the same sizes side by side: `[copies, batch, in] -> [copies, batch, out]`, ReLU between.

    Weights and biases are drawn as `torch.nn.Linear` draws them (uniform, bound 1/sqrt(fan_in)), from `generator`. With
    `norm`, hidden units are normalised before ReLU, see `normalise`.
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
        layers = self._layers(some)
        plain = not self.norm and perceptron.fits(x, layers)
        return perceptron.forward(x, layers) if plain else self.linearize(x, some)[0]

    def linearize(self, x: Tensor, some: slice = ALL) -> tuple[Tensor, list[Tensor]]:
        """The output and every layer's input, which `pull_weights` and `pull_input` need."""
        inputs, layers = [x], self._layers(some)
        for weight, bias in layers[:-1]:
            hidden = torch.baddbmm(bias, inputs[-1], weight)
            inputs.append(normalise(hidden).relu() if self.norm else hidden.relu_())
        return _last(inputs[-1], *layers[-1]), inputs

    def _layers(self, some: slice) -> perceptron.Layers:
        return self.layers if some == ALL else [(weight[some], bias[some]) for weight, bias in self.layers]

    @torch.no_grad()
    def pull_weights(self, inputs: list[Tensor], grad: Tensor) -> None:
        """From the gradient of the output to the weights' `grad`, overwriting it. Not with `norm`."""
        assert not self.norm
        for k in reversed(range(len(inputs))):
            weight, bias = self.layers[k]
            if _turned(inputs[k], weight) and weight.grad is not None:
                weight.grad.copy_(torch.bmm(grad.transpose(1, 2), inputs[k]).transpose(1, 2))
            else:
                torch.bmm(inputs[k].transpose(1, 2), grad, out=weight.grad)
            torch.sum(grad, 1, keepdim=True, out=bias.grad)
            if k:
                grad = _through_relu(torch.bmm(grad, weight.transpose(1, 2)), inputs[k])

    @torch.no_grad()
    def pull_input(self, inputs: list[Tensor], grad: Tensor) -> Tensor:
        """From the gradient of the output to that of the input. Not with `norm`."""
        assert not self.norm
        for k in reversed(range(len(inputs))):
            grad = torch.bmm(grad, self.layers[k][0].transpose(1, 2))
            if k:
                grad = _through_relu(grad, inputs[k])
        return grad


def normalise(hidden: Tensor) -> Tensor:
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450) along the last axis, without gains and biases."""
    return functional.layer_norm(hidden, hidden.shape[-1:])


def _last(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W + b. Of many rows and few columns the result lies in memory by columns."""
    if not _turned(x, weight):
        return torch.baddbmm(bias, x, weight)
    by_columns: Tensor = (_Columns.apply if torch.is_grad_enabled() else _columns)(x, weight, bias)
    return by_columns.transpose(1, 2)


def _turned(x: Tensor, weight: Tensor) -> bool:
    """Whether their product is faster the other way round."""
    return 1 < weight.shape[-1] < NARROW and len(x) * x.shape[1] >= FEW


def _columns(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(*(tensor.transpose(1, 2) for tensor in (bias, weight, x)))


class _Columns(torch.autograd.Function):
    """The columns of x W + b, and gradients so that that of `x` lies by rows as `x` does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _columns(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        to_x = torch.bmm(grad.transpose(1, 2), weight.transpose(1, 2)) if ctx.needs_input_grad[0] else None
        return to_x, torch.bmm(grad, x).transpose(1, 2), grad.sum(2).unsqueeze(1)


def _through_relu(grad: Tensor, output: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.default(grad, output, 0.0)  # type: ignore[no-any-return]


class Each(nn.Module):
    """A perceptron for each agent, or one for all: `[..., agent, in] -> [..., agent, out]`."""

    def __init__(self, sizes: tuple[int, ...], num_agents: int, shared: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.shared = shared
        self.mlp = Mlp(sizes, 1 if shared else num_agents, generator)

    def forward(self, x: Tensor, agents: slice = ALL) -> Tensor:
        """Of all agents, or of those `agents` whose inputs are in `x`."""
        if self.shared:
            return self.mlp(x.reshape(1, -1, x.shape[-1])).view(*x.shape[:-1], -1)  # type: ignore[no-any-return]
        out = self.mlp(x.flatten(0, -3).transpose(0, 1), agents)
        return out.transpose(0, 1).unflatten(0, x.shape[:-2])  # type: ignore[no-any-return]
