"""Values learned in units of their own running mean and standard deviation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from shoal.types import EnvSpec


class ValueNorm(nn.Module):
    """Exponential moving mean and variance of targets, with the start's bias removed (as in MAPPO: Yu et al. 2022).

    A network that predicts normalised values can stay small whatever the rewards' scale, and so can its gradients.

    Args:
        decay: of the moving averages in each update.
        columns: which statistics are those of each column of the values' last axis; (): one for all values.
    """

    def __init__(self, decay: float = 0.999, columns: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.decay = decay
        self.columns: Tensor
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int64), persistent=False)
        self.mean: Tensor
        self.variance: Tensor
        self.total: Tensor
        for name in ("mean", "variance", "total"):
            self.register_buffer(name, torch.zeros((max(columns) + 1,) if columns else ()))

    @torch.no_grad()
    def update(self, values: Tensor, weights: Tensor) -> None:
        """Take in `values`, averaged with `weights` that sum to 1."""
        total = self._sum(weights)
        mean = self._sum(values * weights) / total.clamp(min=1e-12)
        middle = mean[self.columns] if len(self.columns) else mean
        variance = self._sum((values - middle).square() * weights) / total.clamp(min=1e-12)
        self._mix(mean, variance, total, 1 - self.decay)

    def _sum(self, x: Tensor) -> Tensor:
        if not len(self.columns):
            return x.sum()
        return torch.zeros_like(self.total).index_add_(0, self.columns, x.flatten(0, -2).sum(0))

    def follow(self, source: ValueNorm, tau: float) -> None:
        """Polyak averaging of the statistics: a share `tau` is the source's from now on."""
        self._mix(source.mean, source.variance, source.total, tau)

    def _mix(self, mean: Tensor, variance: Tensor, total: Tensor, share: float) -> None:
        """The statistics of both together: what squares of large values would lose, differences keep."""
        self.total.lerp_(total, share)
        part, change = share * total / self.total.clamp(min=1e-12), mean - self.mean
        self.mean.lerp_(mean, part)
        self.variance.lerp_(variance + (1 - part) * change.square(), part)

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation; 0 and 1 before the first update."""
        std = torch.where(self.total > 0, self.variance.clamp(min=1e-4), torch.ones_like(self.total)).sqrt()
        return (self.mean[self.columns], std[self.columns]) if len(self.columns) else (self.mean, std)

    def normalise(self, values: Tensor) -> Tensor:
        """To the network's units."""
        mean, std = self._numbers()
        return (values - mean) / std

    def restore(self, normalised: Tensor) -> Tensor:
        """To the rewards' units."""
        mean, std = self._numbers()
        return normalised * std + mean

    def zero(self, parts: int) -> float:
        """Each of `parts` values, in the network's units, whose sum means 0."""
        mean, std = self._numbers()
        return float(-mean / std) / parts

    def _numbers(self) -> tuple[Tensor | float, Tensor | float]:
        """`scale`; where it is two numbers on a CPU, without operations on one number each."""
        if self.columns.numel() or not self.total.is_cpu:
            return self.scale()
        return self.mean.item(), math.sqrt(max(self.variance.item(), 1e-4)) if self.total.item() > 0 else 1.0


def units(spec: EnvSpec, num_values: int, *, by_group: bool) -> tuple[int, ...]:
    """The `columns` of values that are one for the team, or else every agent's: each has units of its own.

    `by_group`: every group has.
    """
    if num_values == 1 or not by_group:
        return tuple(range(num_values))
    return tuple(k for k, g in enumerate(spec.groups.values()) for _ in range(g.num_agents))
