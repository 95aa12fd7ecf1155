"""Values learned in units of their own running mean and standard deviation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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
        self.mean_sum: Tensor
        self.square_sum: Tensor
        self.total: Tensor
        for name in ("mean_sum", "square_sum", "total"):
            self.register_buffer(name, torch.zeros((max(columns) + 1,) if columns else ()))

    @torch.no_grad()
    def update(self, values: Tensor, weights: Tensor) -> None:
        """Take in `values`, averaged with `weights` that sum to 1."""
        sums = ((self.mean_sum, values * weights), (self.square_sum, values.square() * weights), (self.total, weights))
        for running, new in sums:
            if len(self.columns):
                new = torch.zeros_like(running).index_add_(0, self.columns, new.flatten(0, -2).sum(0))
            running.lerp_(new if len(self.columns) else new.sum(), 1 - self.decay)

    def follow(self, source: ValueNorm, tau: float) -> None:
        """Polyak averaging of the statistics: self += tau (source - self)."""
        for name in ("mean_sum", "square_sum", "total"):
            getattr(self, name).lerp_(getattr(source, name), tau)

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation; 0 and 1 before the first update."""
        mean = self.mean_sum / self.total.clamp(min=1e-12)
        variance = self.square_sum / self.total.clamp(min=1e-12) - mean.square()
        known = self.total > 0
        std = torch.where(known, variance.clamp(min=1e-4), torch.ones_like(variance)).sqrt()
        return (mean[self.columns], std[self.columns]) if len(self.columns) else (mean, std)

    def normalise(self, values: Tensor) -> Tensor:
        """To the network's units."""
        mean, std = self._numbers()
        return (values - mean) / std

    def restore(self, normalised: Tensor) -> Tensor:
        """To the rewards' units."""
        mean, std = self._numbers()
        return normalised * std + mean

    def _numbers(self) -> tuple[Tensor | float, Tensor | float]:
        """`scale`; where it is two numbers on a CPU, without a dozen operations on one number each."""
        if self.columns.numel() or not self.total.is_cpu:
            return self.scale()
        mean, square, total = self.mean_sum.item(), self.square_sum.item(), self.total.item()
        if total <= 0:
            return 0.0, 1.0
        mean, square = mean / total, square / total
        return mean, math.sqrt(max(square - mean * mean, 1e-4))
