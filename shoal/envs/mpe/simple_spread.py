"""simple_spread (cooperative navigation): N agents cover N landmarks without touching each other.

Every agent is rewarded for how near the closest agent is to each landmark (`1 - local_ratio` of it) and loses 1 for
each agent it touches (`local_ratio` of it). Observation: own velocity and position, landmarks and others relative to
itself, the others' (empty) words.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shoal.envs.mpe.world import (
    Agent,
    Landmark,
    Layout,
    check_neighbors,
    distance,
    scatter,
    touching,
    write_neighbors,
)
from shoal.jit import compiled
from shoal.types import SELF, Part, ShoalError

CAPTURE_RADIUS = 0.1


class Params(NamedTuple):
    N: int = 3
    """Agents, and landmarks."""
    local_ratio: float = 0.5
    """Weight of an agent's own collisions; the rest is the weight of the landmarks' distances."""
    curriculum: bool = False
    """Start without the collision penalty (stage 0); `curriculum_stage` 1 has it."""
    curriculum_stage: int = 0
    """0 or 1; counts only with `curriculum`."""
    terminate_on_success: bool = False
    """End the episode when every landmark has an agent within 0.1."""
    num_agent_neighbors: int = 0
    """Others an agent sees, nearest first; 0: all."""
    num_landmark_neighbors: int = 0
    """Landmarks an agent sees, nearest first; 0: all."""


def layout(p: Params) -> Layout:
    if p.N < 1 or not 0 <= p.local_ratio <= 1:
        raise ShoalError(f"simple_spread needs N >= 1 and local_ratio in 0..1, not {p.N} and {p.local_ratio}")
    if p.curriculum_stage not in (0, 1):
        raise ShoalError(f"simple_spread's curriculum_stage is 0 or 1, not {p.curriculum_stage}")
    check_neighbors(p)
    other = Part("other", 2, p.num_agent_neighbors or p.N - 1)  # where they are, and what they say
    parts = Part(SELF, 4), Part("landmark", 2, p.num_landmark_neighbors or p.N), other, other
    agents = [Agent(f"agent_{i}", size=0.15, parts=parts) for i in range(p.N)]
    return Layout(agents, [Landmark() for _ in range(p.N)], dim_c=2)


@compiled
def reset(p, w):  # type: ignore[no-untyped-def]
    scatter(w, 0, 2 * p.N, 1.0)


@compiled
def reward(p, w, out):  # type: ignore[no-untyped-def]
    together = 0.0
    for landmark in range(p.N, 2 * p.N):
        closest = np.inf
        for i in range(p.N):
            closest = min(closest, distance(w.pos, i, landmark))
        together -= closest
    for i in range(p.N):
        out[i] = together * (1 - p.local_ratio)
    if p.curriculum and p.curriculum_stage == 0:
        return
    for i in range(p.N):
        for j in range(i + 1, p.N):
            if touching(w, i, j):
                out[i] -= p.local_ratio
                out[j] -= p.local_ratio


@compiled
def observe(p, w, i, out):  # type: ignore[no-untyped-def]
    out[0], out[1] = w.vel[i, 0], w.vel[i, 1]
    out[2], out[3] = w.pos[i, 0], w.pos[i, 1]
    k = write_neighbors(w, i, p.N, 2 * p.N, p.num_landmark_neighbors, out, 4)
    k = write_neighbors(w, i, 0, p.N, p.num_agent_neighbors, out, k)
    for j in range(k, len(out)):
        out[j] = 0.0  # the silent agents' words


@compiled
def terminal(p, w):  # type: ignore[no-untyped-def]
    if not p.terminate_on_success:
        return False
    for landmark in range(p.N, 2 * p.N):
        closest = np.inf
        for i in range(p.N):
            closest = min(closest, distance(w.pos, i, landmark))
        if closest >= CAPTURE_RADIUS:
            return False
    return True
