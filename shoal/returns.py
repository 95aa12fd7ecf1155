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


def n_step(reward: Tensor, terminated: Tensor, ended: Tensor, next_value: Tensor, gamma: float, n: int) -> Tensor:
    """Targets of up to n rewards (Sutton & Barto 2018, eq. 7.1), `[time, ...] -> [time - n + 1, ...]`.

    `next_value[t]` is V of the successor of step t. A return stops at its episode's end: at a termination for good, at
    a time limit with the value of the successor that step had.
    """
    one = td_target(reward, terminated, next_value, gamma)
    target = one
    for _ in range(n - 1):
        further = td_target(reward[: len(target) - 1], terminated[: len(target) - 1], target[1:], gamma)
        target = torch.where(ended[: len(further)], one[: len(further)], further)
    return target
