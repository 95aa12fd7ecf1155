"""Returns and targets: each numbered equation once, as a pure function.

Nobody else writes `(1 - terminated)`. `terminated` stops the bootstrap; `ended` says that the next row is another
episode. A time limit ends an episode without terminating it, so its successor's value still counts
(Pardo et al. 2018, arXiv 1712.00378).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from shoal import tree
from shoal.types import Batch


def td_target(reward: Tensor, terminated: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """r + gamma (1 - terminated) V(s'): the one-step target (Sutton & Barto 2018, eq. 6.2). Any shape, all alike."""
    return reward + gamma * next_value.masked_fill(terminated, 0.0)


def outcome(batch: Batch, reward: Literal["own", "sum", "mean"], team: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What happened, as values are learned from it: reward, terminated and present, `[time, batch, column]`.

    A column is an agent, of all groups in turn; a team is one column, whose return stops when all agents have
    terminated. `reward` is each agent's own, or the sum or mean of all agents' rewards.
    """
    groups = batch.groups.values()
    own, terminated, present = (
        tree.join([getattr(g, name) for g in groups], -1) for name in ("reward", "terminated", "present")
    )
    shared = own.sum(-1, keepdim=True) if reward == "sum" else own.mean(-1, keepdim=True)
    if team:
        return shared, terminated.all(-1, keepdim=True), present.any(-1, keepdim=True)
    return own if reward == "own" else shared.expand_as(own), terminated, present


def to_the_end(batch: Batch) -> Batch:
    """`batch` `[time, env, ...]` with nobody gone before the whole team is.

    For values of each agent, of rewards that are shared: what the team earns after an agent has left is still what that
    agent has worked for. In MAPPO's code too, returns stop with the episode, and the dead are left out of losses only.
    """
    groups = batch.groups.values()
    over = torch.cat([agents.terminated for agents in groups], -1).all(-1, keepdim=True)
    here = torch.cat([agents.present for agents in groups], -1).any(-1, keepdim=True)
    return replace(
        batch,
        groups={
            name: replace(a, terminated=over.expand_as(a.terminated), present=here.expand_as(a.present))
            for name, a in batch.groups.items()
        },
    )


def mean_weights(mask: Tensor) -> Tensor:
    """Weights with which a sum is the mean over the places where `mask`; all 0 where nothing is."""
    weight = mask.to(torch.float32)
    return weight.div_(weight.sum().clamp_(min=1.0))


def gae(
    reward: Tensor, terminated: Tensor, ended: Tensor, value: Tensor, next_value: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv 1506.02438, eq. 16), `[time, ...]`.

    A_t = delta_t + gamma lam A_{t+1} with delta_t = td_target_t - V(s_t); the sum stops where an episode ends, or the
    agent's part in it. `next_value[t]` is V of the successor of step t: a time limit cuts the sum, not the bootstrap.
    """
    delta = td_target(reward, terminated, next_value, gamma) - value
    decay = (gamma * lam) * (~(terminated | ended)).to(delta.dtype)
    for t in reversed(range(len(delta) - 1)):
        delta[t].addcmul_(decay[t], delta[t + 1])
    return delta


def lambda_return(
    reward: Tensor, terminated: Tensor, ended: Tensor, next_value: Tensor, gamma: float, lam: float
) -> Tensor:
    """R_t = r + gamma ((1 - lam) V(s_{t+1}) + lam R_{t+1}) (Sutton & Barto 2018, eq. 12.18), `[time, ...]`.

    `next_value[t]` is V of the successor of step t, by which R_{t+1} is replaced where there is no further step of the
    episode. With V(s) = max_a Q(s, a) it is Peng's Q(lambda).
    """
    target = td_target(reward, terminated, next_value, gamma)
    for t in reversed(range(len(target) - 1)):
        further = torch.where(ended[t], next_value[t], target[t + 1])
        target[t] = td_target(reward[t], terminated[t], torch.lerp(next_value[t], further, lam), gamma)
    return target


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
