"""Rollouts that are compiled from the first step to the last: the policy, the environments, and what is kept of it.

Between two compiled steps Python takes longer than a small network does. So a kernel that steps environments can be
given a `Roll`: how many steps, and C functions to call before and after each, by their addresses. They store what is
shown, act, and store what happened; none of them knows the environment, and no kernel knows the policy.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit
from torch import Tensor

from shoal import pointers
from shoal.jit import c_function, compiled
from shoal.pointers import Numbers, call, flags, move, words
from shoal.types import Batch, Groups, Step, View

Roll = tuple[int, int, int, int, int, int]
"""Steps; C functions that store what is shown, act, and store what happened (0: none); tables for them, for acting."""
ONCE: Roll = (1, 0, 0, 0, 0, 0)
"""One step, with actions that have been chosen before."""
SIGNATURE = "void(int64, int64, int64, int64)"
"""Of those functions: a table, the first of the environments, that after the last, and the number of the step."""


@compiled
def begin(roll, low, high, t):  # type: ignore[no-untyped-def]
    """Before environments low..high-1 step for the t-th time."""
    if roll[1]:
        call(roll[1], (roll[4], low, high, t))
        call(roll[2], (roll[5], low, high, t))


@compiled
def finish(roll, low, high, t):  # type: ignore[no-untyped-def]
    """After that."""
    if roll[3]:
        call(roll[3], (roll[4], low, high, t))


class Recorder:
    """Copies what happens, step by step, from where environments and policy have it into a rollout.

    Args:
        rollout: `[time, env, ...]`.
        actions, step: where the environments read and write, see `Compiled`.
        memory: the policy's; `start` takes its place where an episode ended.
    """

    def __init__(self, rollout: Batch, actions: Groups, step: Step, memory: Groups, start: Groups) -> None:
        shown, happened = _seen(step.view, rollout, ""), _seen(step.successor, rollout, "next_")
        happened.append((step.ended, rollout.ended))
        for name, agents in rollout.groups.items():
            shown.append((memory[name], agents.memory))
            happened += [
                (actions[name], agents.action),
                (step.reward[name], agents.reward),
                (step.terminated[name], agents.terminated),
                (step.alive[name], agents.alive),
            ]
        anew = [(m.data_ptr(), start[n].data_ptr(), m[0].numel() * 4) for n, m in memory.items() if m.numel()]
        self.tables = [_copies(pairs) for pairs in (shown, happened)] + [np.array(anew, np.int64).reshape(-1, 3)]
        sizes = [n for table in self.tables for n in (len(table), table.ctypes.data)]
        self.table = np.array([*sizes, step.ended.data_ptr()], np.int64)
        self.address = self.table.ctypes.data
        self.kept = rollout, actions, step, memory, start  # whose addresses these are


def _seen(view: View, rollout: Batch, when: str) -> list[tuple[Tensor, Tensor]]:
    pairs = [(view.state, getattr(rollout, f"{when}state")), (view.hears, getattr(rollout, f"{when}hears"))]
    for name, agents in rollout.groups.items():
        pairs += [
            (view.obs[name], getattr(agents, f"{when}obs")),
            (view.legal[name], getattr(agents, f"{when}legal")),
        ]
    return pairs


def _copies(pairs: list[tuple[Tensor, Tensor]]) -> Numbers:
    """A row for each pair that is not empty: see `_copy`."""
    rows = []
    for source, target in pairs:
        if not target.numel():
            continue
        assert (source.dtype, source.shape) == (target.dtype, target.shape[1:])
        assert target.is_contiguous()
        size = source.element_size()
        row, step = size * source[0].numel(), target.stride(0) * size
        if source[0].is_contiguous():
            parts, distance, part = 1, row, row
        else:  # agent by agent
            parts, distance = source.shape[1], source.stride(1) * size
            part = row // parts
            assert source[0, 0].is_contiguous()
        rows.append((source.data_ptr(), source.stride(0) * size, distance, target.data_ptr(), step, row, parts, part))
    return np.array(rows, np.int64).reshape(-1, 8)


@njit(inline="always")
def _copy(rows: Any, low: Any, high: Any, t: Any) -> None:
    """Of environments low..high-1 into the t-th step.

    A row has an address, and the bytes from environment to environment and part to part; the address of the copy, and
    the bytes from step to step and environment to environment; how many parts, and their bytes.
    """
    for k in range(rows.shape[0]):
        source, env, distance = rows[k, 0], rows[k, 1], rows[k, 2]
        row, parts, part = rows[k, 5], rows[k, 6], rows[k, 7]
        target = rows[k, 3] + t * rows[k, 4]
        if parts == 1 and env == row:
            move(target + low * row, source + low * env, (high - low) * row)
        else:
            for e in range(low, high):
                for i in range(parts):
                    move(target + e * row + i * part, source + e * env + i * distance, part)


def _show(table: int, low: int, high: int, t: int) -> None:
    """Stores what is acted on."""
    head = words(table, 1, 7)[0]
    _copy(words(head[1], head[0], 8), low, high, t)


def _keep(table: int, low: int, high: int, t: int) -> None:
    """Stores what happened, and lets memory begin anew where an episode ended."""
    head = words(table, 1, 7)[0]
    _copy(words(head[3], head[2], 8), low, high, t)
    anew, ended = words(head[5], head[4], 3), flags(head[6], high)
    for k in range(anew.shape[0]):
        for e in range(low, high):
            if ended[e]:
                move(anew[k, 0] + e * anew[k, 2], anew[k, 1] + e * anew[k, 2], anew[k, 2])


@cache
def functions() -> tuple[Any, Any]:
    """`_show` and `_keep` in C."""
    return c_function(_show, SIGNATURE, pointers), c_function(_keep, SIGNATURE, pointers)
