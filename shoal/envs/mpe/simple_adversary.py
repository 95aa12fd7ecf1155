"""simple_adversary (physical deception): N good agents hide from one adversary which of N landmarks is the goal.

The adversary is rewarded with minus its distance to the goal; every good agent with the adversary's distance less that
of the good agent nearest to the goal. So the good agents do best to spread over all landmarks. Nothing collides.
Observation: landmarks and other agents relative to itself; a good agent's begins with the goal relative to itself,
which the adversary must guess.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shoal.envs.common import pcg64
from shoal.envs.mpe.world import (
    Agent,
    Landmark,
    Layout,
    check_neighbors,
    distance,
    scatter,
    write_neighbors,
    write_relative,
)
from shoal.jit import compiled
from shoal.types import SELF, Part, ShoalError

ADVERSARY = 0  # agents 1..N are good


class Params(NamedTuple):
    N: int = 2
    """Good agents, and landmarks."""
    num_agent_neighbors: int = 0
    """Others an agent sees, nearest first; 0: all."""
    num_landmark_neighbors: int = 0
    """Landmarks an agent sees, nearest first; 0: all. Good agents always see the goal besides."""


def layout(p: Params) -> Layout:
    if p.N < 1:
        raise ShoalError(f"simple_adversary needs N >= 1, not {p.N}")
    check_neighbors(p)
    landmark, nearest = Part("landmark", 2, p.num_landmark_neighbors or p.N), p.num_agent_neighbors
    theirs: tuple[Part, ...] = landmark, Part("agent", 2, p.N)
    ours: tuple[Part, ...] = Part(SELF, 2), landmark, Part("adversary", 2), Part("agent", 2, p.N - 1)
    if nearest:
        theirs, ours = (landmark, Part("other", 2, nearest)), (Part(SELF, 2), landmark, Part("other", 2, nearest))
    red, size = (0.85, 0.35, 0.35), 0.15
    adversary = Agent("adversary_0", size=size, collide=False, color=red, parts=theirs)
    good = [Agent(f"agent_{i}", size=size, collide=False, parts=ours) for i in range(p.N)]
    landmarks = [Landmark(size=0.08, color=(0.15, 0.15, 0.15)) for _ in range(p.N)]
    return Layout([adversary, *good], landmarks, goals=1)


def colors(p, w):  # type: ignore[no-untyped-def]
    return {w.goal[0]: (0.15, 0.65, 0.15)}


@compiled
def reset(p, w):  # type: ignore[no-untyped-def]
    w.goal[0] = p.N + 1 + pcg64.integer(w.rng, p.N)
    scatter(w, 0, 2 * p.N + 1, 1.0)


@compiled
def reward(p, w, out):  # type: ignore[no-untyped-def]
    goal = w.goal[0]
    theirs = distance(w.pos, ADVERSARY, goal)
    ours = np.inf
    for i in range(1, p.N + 1):
        ours = min(ours, distance(w.pos, i, goal))
    out[ADVERSARY] = -theirs
    for i in range(1, p.N + 1):
        out[i] = theirs - ours


@compiled
def observe(p, w, i, out):  # type: ignore[no-untyped-def]
    k = 0
    if i != ADVERSARY:
        k = write_relative(w.pos, i, w.goal[0], out, k)
    k = write_neighbors(w, i, p.N + 1, 2 * p.N + 1, p.num_landmark_neighbors, out, k)
    write_neighbors(w, i, 0, p.N + 1, p.num_agent_neighbors, out, k)
