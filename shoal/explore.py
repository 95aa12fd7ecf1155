"""Exploration: noise on actions, and the schedules it follows."""

from __future__ import annotations

import torch
from torch import Tensor

CONTIGUOUS = torch.contiguous_format
"""Of noise: draws must not depend on how a network's output lies in memory."""


def linear(start: float, end: float, progress: float) -> float:
    """From `start` to `end` as `progress` goes from 0 to 1, constant after."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def gaussian(action: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """`action` in [-1, 1] plus normal noise of standard deviation `scale`, clipped to [-1, 1] again."""
    noise = torch.empty_like(action, memory_format=CONTIGUOUS).normal_(generator=generator)
    return noise.mul_(scale).add_(action).clamp_(-1, 1)


def epsilon_uniform(action: Tensor, random: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Each agent's `action` replaced by `random` with probability `epsilon`; the agent axis is axis 1."""
    replace = torch.rand(action.shape[:2], generator=generator, device=action.device) < epsilon
    return torch.where(replace.reshape(replace.shape + (1,) * (action.ndim - 2)), random, action)
