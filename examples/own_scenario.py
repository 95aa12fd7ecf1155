"""A particle scenario of one's own, as fast as the built-in ones: agents gather at the beacon only some of them see.

shoal train maddpg examples/own_scenario.py:make --env.N 4 --num-envs 64 --update-every 64
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from shoal.envs.mpe.env import ParticleEnv
from shoal.envs.mpe.world import Agent, Landmark, Layout, distance, scatter, write_neighbors, write_relative
from shoal.jit import compiled
from shoal.types import ShoalError


class Params(NamedTuple):
    N: int = 3
    """Agents; the first of them sees the beacon."""


def layout(p: Params) -> Layout:
    if p.N < 2:
        raise ShoalError(f"gather needs N >= 2, not {p.N}")
    guide = Agent("guide_0", obs_size=4 + 2 * p.N, size=0.1, color=(0.85, 0.55, 0.2))
    followers = [Agent(f"follower_{i}", obs_size=2 + 2 * p.N, size=0.1) for i in range(p.N - 1)]
    return Layout([guide, *followers], [Landmark(color=(0.2, 0.6, 0.3))])


@compiled
def reset(p, w):
    scatter(w, 0, p.N + 1, 1.0)


@compiled
def reward(p, w, out):
    for i in range(p.N):
        out[i] = -distance(w.pos, i, p.N)


@compiled
def observe(p, w, i, out):
    out[0], out[1], out[2], out[3] = w.vel[i, 0], w.vel[i, 1], w.pos[i, 0], w.pos[i, 1]
    k = write_neighbors(w, i, 0, p.N, 0, out, 4)
    if i == 0:
        write_relative(w.pos, i, p.N, out, k)


def make(num_envs: int = 1, N: int = 3, max_cycles: int = 25, continuous_actions: bool = False) -> Any:
    """What `shoal train` calls."""
    module = sys.modules[__name__]
    return ParticleEnv(module, num_envs, N=N, max_cycles=max_cycles, continuous_actions=continuous_actions)
