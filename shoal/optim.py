"""One optimiser step, and target networks that follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from shoal.types import Tree


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Adam:
    """Adam with the fused kernel: one call for all parameters, which is most of the time of a small network's step."""
    return torch.optim.Adam(list(parameters), lr=lr, fused=True)


def step(optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float) -> Tensor:
    """Descend on `loss` with respect to the optimiser's own parameters, and nothing else.

    Gradients are taken only for the optimiser's parameters, so an actor's loss that passes through a critic leaves
    nothing behind in the critic. `max_grad_norm` 0 does not clip. Returns the gradient norm before clipping.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = grad
    norm = torch.zeros(())
    if max_grad_norm > 0:
        norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm, foreach=True)
    optimizer.step()
    return norm


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Polyak averaging: target += tau (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)


def state_dict(optimizer: torch.optim.Optimizer) -> Tree:
    """Per-parameter state as lists of tensors, for a checkpoint. Learning rates belong to the config."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {"parameters": [dict(optimizer.state.get(p, {})) for p in parameters]}


def load_state_dict(optimizer: torch.optim.Optimizer, state: Tree) -> None:
    """The inverse of `state_dict`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, saved in zip(parameters, state["parameters"], strict=True):
        restored: dict[str, Any] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in saved.items()}
        optimizer.state[parameter] = restored
