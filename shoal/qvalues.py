"""What Q-learning reads from tables of values: those of the actions taken, and of the best ones that follow.

Each is written with PyTorch's operations, and for float32 on a CPU compiled: one pass instead of half a dozen, which
take longer to start than to compute. A test holds the two equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from shoal import pointers
from shoal.actions import best, mask_logits
from shoal.jit import jit
from shoal.pointers import at, flags, words

Rows = tuple[int, int, int, int, int]
"""An address, and the bytes from time to time, environment to environment, agent to agent and action to action."""


def taken(q: Tensor, action: Tensor, present: Tensor, absent: float = 0.0) -> Tensor:
    """Of values `[time, batch, agent, size]` those of `action` `[time, batch, agent]`; `absent` where nobody is
    `present`."""
    if q.is_cpu and q.dtype == torch.float32:
        found: Tensor = _Taken.apply(q, action, present, absent)
        return found
    return q.gather(-1, action.unsqueeze(-1)).squeeze(-1).masked_fill(~present, absent)


@torch.no_grad()
def following(
    q: Tensor, judged: Tensor, legal: Tensor, terminated: Tensor, absent: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The best legal actions by `q` `[time, batch, agent, size]`, and their values by `judged`.

    Args:
        legal: `[time, batch, agent, size]`; size 0: everything is.
        absent: the value where `terminated`.

    Returns:
        Actions and values `[time, batch, agent]`.
    """
    if q.is_cpu and q.dtype == judged.dtype == torch.float32:
        action, value = torch.empty(q.shape[:3], dtype=torch.int64), torch.empty(q.shape[:3])
        legal, terminated = legal.contiguous(), terminated.contiguous()
        masks = legal.data_ptr() if legal.shape[3] else 0, terminated.data_ptr()
        _following(tuple(q.shape), _rows(q), _rows(judged), masks, (action.data_ptr(), value.data_ptr()), absent)
        return action, value
    action = best(mask_logits(q, legal))
    return action, judged.gather(-1, action.unsqueeze(-1)).squeeze(-1).masked_fill(terminated, absent)


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, action: Tensor, present: Tensor, absent: float) -> Tensor:
        action, present, found = action.contiguous(), present.contiguous(), q.new_empty(q.shape[:3])
        ctx.save_for_backward(q, action, present)
        _take(tuple(q.shape), _rows(q), action.data_ptr(), present.data_ptr(), found.data_ptr(), absent)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        q, action, present = ctx.saved_tensors
        to_q, grad = torch.zeros_like(q), grad.contiguous()
        _give(tuple(q.shape), _rows(to_q), action.data_ptr(), present.data_ptr(), grad.data_ptr())
        return to_q, None, None, None


def _rows(q: Tensor) -> Rows:
    time, env, agent, action = q.stride()
    return q.data_ptr(), 4 * time, 4 * env, 4 * agent, 4 * action


@njit(inline="always")
def _row(rows: Any, t: Any, e: Any, i: Any) -> Any:
    return rows[0] + t * rows[1] + e * rows[2] + i * rows[3]


@jit(pointers)
def _take(shape: tuple[int, int, int, int], q: Rows, action: int, present: int, found: int, absent: float) -> None:
    """Fills `found`."""
    line, count = 0, shape[0] * shape[1] * shape[2]
    actions, here, out = words(action, 1, count)[0], flags(present, count), at(found, 1, count)[0]
    for t in range(shape[0]):
        for e in range(shape[1]):
            for i in range(shape[2]):
                value = at(_row(q, t, e, i) + actions[line] * q[4], 1, 1)[0, 0]
                out[line] = value if here[line] else np.float32(absent)
                line += 1


@jit(pointers)
def _give(shape: tuple[int, int, int, int], to_q: Rows, action: int, present: int, grad: int) -> None:
    """From the gradient of what `_take` fills: writes to `to_q` where that is not 0."""
    line, count = 0, shape[0] * shape[1] * shape[2]
    actions, here, given = words(action, 1, count)[0], flags(present, count), at(grad, 1, count)[0]
    for t in range(shape[0]):
        for e in range(shape[1]):
            for i in range(shape[2]):
                if here[line]:
                    at(_row(to_q, t, e, i) + actions[line] * to_q[4], 1, 1)[0, 0] = given[line]
                line += 1


@jit(pointers)
def _following(
    shape: tuple[int, int, int, int],
    q: Rows,
    judged: Rows,
    masks: tuple[int, int],
    found: tuple[int, int],
    absent: float,
) -> None:
    """Fills the actions and the values that are `found`."""
    line, size, count = 0, shape[3], shape[0] * shape[1] * shape[2]
    over = flags(masks[1], count)
    actions, values = words(found[0], 1, count)[0], at(found[1], 1, count)[0]
    for t in range(shape[0]):
        for e in range(shape[1]):
            for i in range(shape[2]):
                row, chosen, most, legal = _row(q, t, e, i), 0, np.float32(-np.inf), masks[0] + line * size
                for k in range(size):
                    value = at(row + k * q[4], 1, 1)[0, 0]
                    if value > most and (masks[0] == 0 or flags(legal, size)[k]):
                        chosen, most = k, value
                actions[line] = chosen
                value = at(_row(judged, t, e, i) + chosen * judged[4], 1, 1)[0, 0]
                values[line] = np.float32(absent) if over[line] else value
                line += 1
