"""Returns and targets: each numbered equation once, as a pure function.

Nobody else writes `(1 - terminated)`. `terminated` stops the bootstrap; `ended` says that the next row is another
episode. A time limit ends an episode without terminating it, so its successor's value still counts
(Pardo et al. 2018, arXiv 1712.00378).
"""

from __future__ import annotations

import torch
from torch import Tensor


def td_target(reward: Tensor, terminated: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """r + gamma (1 - terminated) V(s'): the one-step target (Sutton & Barto 2018, eq. 6.2). Any shape, all alike."""
    return reward + gamma * next_value.masked_fill(terminated, 0.0)


def mean_weights(mask: Tensor) -> Tensor:
    """Weights with which a sum is the mean over the places where `mask`; all 0 where nothing is."""
    weight = mask.to(torch.float32)
    return weight.div_(weight.sum().clamp_(min=1.0))
