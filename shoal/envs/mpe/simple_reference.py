"""simple_reference: two agents, each of which must go to a landmark that only the other knows; so both move and talk.

An agent's own reward is minus the distance of the *other* agent to the landmark it knows of (`local_ratio` of it); the
rest is the mean of both agents' rewards. Nothing collides. Observation: own velocity, the three landmarks relative to
itself, the colour of the landmark the other must reach, the other's word (one of ten, one-hot).
"""

from __future__ import annotations

from typing import NamedTuple

from shoal.envs.common import pcg64
from shoal.envs.mpe.world import Agent, Landmark, Layout, distance, scatter, write_relative
from shoal.jit import compiled
from shoal.types import ShoalError

LANDMARKS = 2  # the first one's number
COLORS = ((0.75, 0.25, 0.25), (0.25, 0.75, 0.25), (0.25, 0.25, 0.75))  # of the landmarks
WORDS = 10


class Params(NamedTuple):
    local_ratio: float = 0.5
    """Weight of an agent's own reward; the rest is the weight of the mean."""


def layout(p: Params) -> Layout:
    if not 0 <= p.local_ratio <= 1:
        raise ShoalError(f"simple_reference needs local_ratio in 0..1, not {p.local_ratio}")
    agents = [Agent(f"agent_{i}", obs_size=2 + 6 + 3 + WORDS, collide=False, silent=False) for i in range(2)]
    return Layout(agents, [Landmark(color=color) for color in COLORS], dim_c=WORDS, goals=2)


def colors(p, w):  # type: ignore[no-untyped-def]
    return {1 - i: COLORS[w.goal[i]] for i in range(2)}


@compiled
def reset(p, w):  # type: ignore[no-untyped-def]
    for i in range(2):
        w.goal[i] = pcg64.integer(w.rng, len(COLORS))  # where the other must go
    scatter(w, 0, LANDMARKS + len(COLORS), 1.0)


@compiled
def reward(p, w, out):  # type: ignore[no-untyped-def]
    first = -distance(w.pos, 1, LANDMARKS + w.goal[0])
    second = -distance(w.pos, 0, LANDMARKS + w.goal[1])
    shared = (first + second) / 2 * (1 - p.local_ratio)
    out[0] = shared + first * p.local_ratio
    out[1] = shared + second * p.local_ratio


@compiled
def observe(p, w, i, out):  # type: ignore[no-untyped-def]
    out[0], out[1] = w.vel[i, 0], w.vel[i, 1]
    k = 2
    for number in range(len(COLORS)):
        k = write_relative(w.pos, i, LANDMARKS + number, out, k)
    out[k], out[k + 1], out[k + 2] = COLORS[w.goal[i]]
    for c in range(WORDS):
        out[k + 3 + c] = w.comm[1 - i, c]
