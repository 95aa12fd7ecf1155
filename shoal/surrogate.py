"""What policy gradients are taken of: log-probabilities of discrete actions, and PPO's clipped objective.

Each is written with PyTorch's operations, and for float32 on a CPU compiled with its gradient: one pass over a batch
instead of a dozen, during which Python's lock is not held. A test holds the two equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal import elementary
from shoal.elementary import exp, log
from shoal.jit import jit

Array = NDArray[np.float32]
BLOCK = 256
"""Rows whose numbers stay in the first cache."""
EXACT = {"nsz", "arcp", "contract"}
"""Liberties that compilers may take: sums are not reordered, and what is not a number stays that."""


def likelihood(logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of `action` `[...]`, and the entropy, of the distribution with `logits` `[..., size]`."""
    if _compiled(logits):
        found: tuple[Tensor, Tensor] = _Likelihood.apply(logits, action)
        return found
    # actions first: over a short last axis PyTorch's softmax is four times as slow
    log_p = logits.movedim(-1, 0).contiguous().log_softmax(0)
    taken = log_p.gather(0, action.unsqueeze(0)).squeeze(0)
    return taken, -(log_p.exp() * log_p).sum(0)


def clipped(
    log_prob: Tensor, old: Tensor, advantage: Tensor, entropy: Tensor, alive: Tensor, clip: float
) -> tuple[Tensor, ...]:
    """PPO's objective (Schulman et al. 2017, arXiv 1707.06347, eq. 7), negated; entropy; divergence; what was clipped.

    All arguments are shaped alike, results are sums over where `alive`. With ratio = exp(log_prob - old):

        objective = min(ratio advantage, clip(ratio, 1 - clip, 1 + clip) advantage)

    and without `clip` (0) the first of these. The divergence is Schulman's estimate, ratio - 1 - log ratio; it and the
    number that was clipped have no gradient.
    """
    if _compiled(log_prob):
        sums: tuple[Tensor, ...] = _Clipped.apply(log_prob, old, advantage, entropy, alive, clip)
        return sums
    change = log_prob - old
    ratio = change.exp()
    objective = ratio * advantage
    if clip:
        objective = torch.minimum(objective, ratio.clamp(1 - clip, 1 + clip) * advantage)
    moved = (ratio - 1 - change).detach()
    beyond = (ratio - 1).abs() > clip
    return tuple((part * alive).sum() for part in (-objective, entropy, moved, beyond))


def _compiled(x: Tensor) -> bool:
    return x.is_cpu and x.dtype == torch.float32


class _Likelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        first = logits.movedim(-1, 0).contiguous()
        log_p, action = torch.empty_like(first), action.contiguous()
        taken, entropy = torch.empty(2, *action.shape)
        _log_softmax(*(x.detach().view(-1).numpy() for x in (first, action, log_p, taken, entropy)))
        ctx.save_for_backward(log_p, action, entropy)
        return taken, entropy

    @staticmethod
    def backward(ctx: Any, to_taken: Tensor, to_entropy: Tensor) -> tuple[Tensor, None]:
        log_p, action, entropy = ctx.saved_tensors
        to_logits = torch.empty_like(log_p)
        given = log_p, action, entropy, to_taken.contiguous(), to_entropy.contiguous(), to_logits
        _log_softmax_gradient(*(x.view(-1).numpy() for x in given))
        return to_logits.movedim(0, -1), None


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_prob: Tensor, old: Tensor, advantage: Tensor, entropy: Tensor, alive: Tensor, clip: float
    ) -> tuple[Tensor, ...]:
        sums, slope = torch.zeros(4, dtype=torch.float64), torch.empty(log_prob.shape)
        given = (x.detach().contiguous().view(-1).numpy() for x in (log_prob, old, advantage, entropy, alive))
        _objective(*given, np.float32(clip), sums.numpy(), slope.view(-1).numpy())
        ctx.save_for_backward(slope, alive)
        objective, more, moved, beyond = sums.to(torch.float32)
        ctx.mark_non_differentiable(moved, beyond)
        return objective, more, moved, beyond

    @staticmethod
    def backward(ctx: Any, to_objective: Tensor, to_entropy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        slope, alive = ctx.saved_tensors
        return slope * to_objective, None, None, alive * to_entropy, None, None


@jit(elementary, fastmath=EXACT)
def _log_softmax(logits: Array, action: NDArray[np.int64], log_p: Array, taken: Array, entropy: Array) -> None:
    """Fills what comes after `action`; `logits` and `log_p` are `[size, rows]`."""
    rows = len(action)
    size = len(logits) // max(rows, 1)
    most, total = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for low in range(0, rows, BLOCK):
        count = min(BLOCK, rows - low)
        most[:] = -np.inf
        total[:] = 0
        for k in range(size):
            line = logits[k * rows + low : k * rows + low + count]
            for i in range(count):
                most[i] = line[i] if line[i] > most[i] else most[i]
        for k in range(size):
            line, out = logits[k * rows + low : k * rows + low + count], log_p[k * rows + low : k * rows + low + count]
            for i in range(count):
                out[i] = line[i] - most[i]
            for i in range(count):
                total[i] += exp(out[i])
        for i in range(count):
            total[i] = log(total[i])
        mean = entropy[low : low + count]
        mean[:] = 0
        for k in range(size):
            out = log_p[k * rows + low : k * rows + low + count]
            for i in range(count):
                out[i] -= total[i]
            for i in range(count):
                mean[i] -= exp(out[i]) * out[i]
        for i in range(low, low + count):
            taken[i] = log_p[action[i] * rows + i]


@jit(elementary, fastmath=EXACT)
def _log_softmax_gradient(
    log_p: Array, action: NDArray[np.int64], entropy: Array, to_taken: Array, to_entropy: Array, to_logits: Array
) -> None:
    rows = len(action)
    size = len(log_p) // max(rows, 1)
    for k in range(size):
        line, out = log_p[k * rows : (k + 1) * rows], to_logits[k * rows : (k + 1) * rows]
        for i in range(rows):
            out[i] = -exp(line[i]) * (to_taken[i] + to_entropy[i] * (line[i] + entropy[i]))
    for i in range(rows):
        to_logits[action[i] * rows + i] += to_taken[i]


@jit(elementary, fastmath=EXACT)
def _objective(
    log_prob: Array,
    old: Array,
    advantage: Array,
    entropy: Array,
    alive: NDArray[np.bool_],
    clip: Any,
    sums: NDArray[np.float64],
    slope: Array,
) -> None:
    """Adds to `sums`; fills `slope`, the gradient of the first sum by `log_prob`."""
    one, least, most = np.float32(1.0), np.float32(1.0) - clip, np.float32(1.0) + clip
    ratio, lost = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for low in range(0, len(log_prob), BLOCK):
        count = min(BLOCK, len(log_prob) - low)
        now, before, gain = log_prob[low : low + count], old[low : low + count], advantage[low : low + count]
        counts, to_now = alive[low : low + count], slope[low : low + count]
        for i in range(count):
            ratio[i] = exp(now[i] - before[i])
        for i in range(count):
            lost[i] = -ratio[i] * gain[i]
        for i in range(count):
            to_now[i] = lost[i] if counts[i] else np.float32(0.0)
        if clip:
            for i in range(count):
                held = -min(max(ratio[i], least), most) * gain[i]
                to_now[i] = np.float32(0.0) if held > lost[i] else to_now[i]
                lost[i] = held if held > lost[i] else lost[i]
        for i in range(count):
            if counts[i]:
                sums[0] += lost[i]
                sums[1] += entropy[low + i]
                sums[2] += ratio[i] - one - (now[i] - before[i])
                sums[3] += abs(ratio[i] - one) > clip
