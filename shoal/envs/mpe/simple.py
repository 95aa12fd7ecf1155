"""simple: one agent, one landmark, nobody else; for finding out whether a learner works at all.

The agent is rewarded with minus its squared distance to the landmark. Observation: own velocity, the landmark relative
to itself.
"""

from __future__ import annotations

from typing import NamedTuple

from shoal.envs.mpe.world import Agent, Landmark, Layout, distance, scatter, write_relative
from shoal.jit import compiled


class Params(NamedTuple):
    """Nothing to choose."""


def layout(p: Params) -> Layout:
    agent = Agent("agent_0", obs_size=4, collide=False, color=(0.25, 0.25, 0.25))
    return Layout([agent], [Landmark(color=(0.75, 0.25, 0.25))])


@compiled
def reset(p, w):  # type: ignore[no-untyped-def]
    scatter(w, 0, 2, 1.0)


@compiled
def reward(p, w, out):  # type: ignore[no-untyped-def]
    out[0] = -(distance(w.pos, 0, 1) ** 2)


@compiled
def observe(p, w, i, out):  # type: ignore[no-untyped-def]
    out[0], out[1] = w.vel[i, 0], w.vel[i, 1]
    write_relative(w.pos, i, 1, out, 2)
