"""Discrete and continuous actions in one place.

A network's output for an agent is `[..., agent, size]`: logits for `Discrete`, pre-tanh means for `Box`. `legal` is
`[..., agent, size]` or, where everything is legal, `[..., agent, 0]`.

Stochastic policies (`sample`, `likelihood`) need `Box` outputs `[..., agent, 2 size]`: after the means, logarithms of
standard deviations. Their actions are normal draws clipped to [-1, 1].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shoal import surrogate
from shoal.explore import CONTIGUOUS
from shoal.types import Action, Discrete

LOG_STD = -5.0, 1.0  # bounds of a standard deviation's logarithm
ILLEGAL = -1e9  # finite: a row whose gradient is taken must not hold infinities


def mask_logits(logits: Tensor, legal: Tensor) -> Tensor:
    """Illegal actions pushed down so far that no softmax or argmax chooses them."""
    return logits.masked_fill(~legal, ILLEGAL) if legal.shape[-1] else logits


def best(values: Tensor) -> Tensor:
    """Place of the highest, the first of equals, along the last axis: `argmax` in a third of its time and less."""
    return values.max(-1).indices


def hold(log_std: Tensor) -> Tensor:
    """Logarithms of standard deviations, within their bounds."""
    held: Tensor = _Held.apply(log_std)
    return held


class _Held(torch.autograd.Function):
    """Beyond a bound only a gradient that leads back counts. Of `clamp` it is 0: what an optimiser's momentum had once
    carried there would stay for good."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(*LOG_STD)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        outward = ((x < LOG_STD[0]) & (grad > 0)) | ((x > LOG_STD[1]) & (grad < 0))
        return grad.masked_fill(outward, 0.0)


def gumbel_like(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise: -log of an exponential draw."""
    return (
        -torch.empty_like(logits, memory_format=CONTIGUOUS).exponential_(generator=generator).clamp_(min=1e-20).log_()
    )


def greedy(space: Action, output: Tensor, legal: Tensor) -> Tensor:
    """The most likely legal action, or the mean."""
    if isinstance(space, Discrete):
        return best(mask_logits(output, legal))
    return output[..., : space.size].tanh()


def sample(space: Action, output: Tensor, legal: Tensor, generator: torch.Generator) -> Tensor:
    """A draw of the policy whose network said `output`."""
    if isinstance(space, Discrete):
        below = mask_logits(output, legal).movedim(-1, 0).softmax(0).cumsum(0)
        place = 1 - torch.rand(output.shape[:-1], generator=generator, device=output.device)  # above 0, where all start
        return (below[:-1] < place * below[-1]).sum(0)
    mean, log_std = output.chunk(2, -1)
    noise = torch.empty_like(mean, memory_format=CONTIGUOUS).normal_(generator=generator)
    return mean.tanh().addcmul_(noise, log_std.exp()).clamp_(-1, 1)


def likelihood(space: Action, output: Tensor, action: Tensor, legal: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of `action`, and the policy's entropy, both `[..., agent]`.

    A number at a bound of `Box` has the probability of all draws that were clipped to it (Fujita & Maeda 2018, arXiv
    1802.07564), so that nothing must be known but what was done; its entropy is the normal distribution's.
    """
    if isinstance(space, Discrete):
        return surrogate.likelihood(mask_logits(output, legal), action)
    pre, log_std = output.chunk(2, -1)
    mean, std = pre.tanh(), log_std.exp()
    inside = -0.5 * ((action - mean) / std).square() - log_std - 0.5 * math.log(2 * math.pi)
    above, below = (torch.special.log_ndtr((sign * mean - 1) / std) for sign in (1, -1))
    log_prob = torch.where(action >= 1, above, torch.where(action <= -1, below, inside))
    return log_prob.sum(-1), (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def relax(logits: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Gumbel-softmax (Jang et al. 2017, arXiv 1611.01144): the one-hot draw and the soft one `[..., size]`."""
    soft = functional.softmax((logits + noise) / temperature, dim=-1)
    return functional.one_hot(best(soft), logits.shape[-1]).to(soft.dtype), soft


def relax_gradient(soft: Tensor, grad: Tensor, temperature: float) -> Tensor:
    """Straight through: from the gradient of the one-hot draw to the logits, as if the soft draw had been used."""
    return soft * (grad - (grad * soft).sum(-1, keepdim=True)) / temperature


def encode(space: Action, action: Tensor) -> Tensor:
    """Actions as network input `[..., agent, size]` float32: one-hot, or the numbers themselves."""
    if isinstance(space, Discrete):
        return functional.one_hot(action, space.size).to(torch.float32)
    return action


def empty(space: Action, shape: tuple[int, ...]) -> Tensor:
    """Zero actions with leading axes `shape` (`[..., agent]`)."""
    if isinstance(space, Discrete):
        return torch.zeros(shape, dtype=torch.int64)
    return torch.zeros((*shape, space.size))


def random(space: Action, legal: Tensor, generator: torch.Generator) -> Tensor:
    """Uniformly random legal actions; leading axes from `legal` (`[..., agent, size or 0]`)."""
    if isinstance(space, Discrete):
        luck = torch.rand(legal.shape[:-1], generator=generator, device=legal.device)
        if not legal.shape[-1]:
            return (luck * space.size).long().clamp_(max=space.size - 1)
        count = legal.cumsum(-1)  # of legal actions up to each; the number-th is where it first exceeds `number`
        number = (luck * count[..., -1]).long().minimum(count[..., -1] - 1)
        return (count <= number.unsqueeze(-1)).sum(-1).clamp_(max=space.size - 1)
    return torch.empty((*legal.shape[:-1], space.size), device=legal.device).uniform_(-1, 1, generator=generator)
