"""Returns and targets: each numbered equation once, as a pure function.

Nobody else writes `(1 - terminated)`. `terminated` stops the bootstrap; `ended` says that the next row is another
episode. A time limit ends an episode without terminating it, so its successor's value still counts
(Pardo et al. 2018, arXiv 1712.00378).
"""

from __future__ import annotations

from torch import Tensor


def td_target(reward: Tensor, terminated: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """r + gamma (1 - terminated) V(s'): the one-step target (Sutton & Barto 2018, eq. 6.2). Any shape, all alike."""
    return reward + gamma * next_value.masked_fill(terminated, 0.0)


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Mean of `value` where `mask`; 0 where nothing is. `mask` has the leading axes of `value`."""
    weight = mask.to(value.dtype).reshape(mask.shape + (1,) * (value.ndim - mask.ndim)).expand_as(value)
    return (value * weight).sum() / weight.sum().clamp(min=1.0)
