"""simple_push (keep-away): an adversary pushes a good agent off its goal, one of two landmarks, which it must guess.

The good agent is rewarded with minus its distance to the goal; the adversary with that distance less its own. The two
collide. Observation of both: own velocity, landmarks and the other agent relative to itself. The good agent also sees
the goal relative to itself and its own colour, which tells the goal (after the velocity), and the landmarks' colours
(before the other agent).
"""

from __future__ import annotations

from typing import NamedTuple

from shoal.envs.common import pcg64
from shoal.envs.mpe.world import Agent, Landmark, Layout, distance, scatter, write_relative
from shoal.jit import compiled

ADVERSARY, GOOD = 0, 1
LANDMARKS = 2  # the first one's number
COLORS = ((0.1, 0.9, 0.1), (0.1, 0.1, 0.9))  # of the landmarks
GOOD_COLORS = ((0.25, 0.75, 0.25), (0.25, 0.25, 0.75))  # of the good agent, by its goal


class Params(NamedTuple):
    """Nothing to choose."""


def layout(p: Params) -> Layout:
    agents = [Agent("adversary_0", obs_size=8, color=(0.75, 0.25, 0.25)), Agent("agent_0", obs_size=19)]
    return Layout(agents, [Landmark(color=color) for color in COLORS], goals=1)


def colors(p, w):  # type: ignore[no-untyped-def]
    return {GOOD: GOOD_COLORS[w.goal[0]]}


@compiled
def reset(p, w):  # type: ignore[no-untyped-def]
    w.goal[0] = pcg64.integer(w.rng, len(COLORS))
    scatter(w, 0, LANDMARKS + len(COLORS), 1.0)


@compiled
def reward(p, w, out):  # type: ignore[no-untyped-def]
    goal = LANDMARKS + w.goal[0]
    out[GOOD] = -distance(w.pos, GOOD, goal)
    out[ADVERSARY] = distance(w.pos, GOOD, goal) - distance(w.pos, ADVERSARY, goal)


@compiled
def observe(p, w, i, out):  # type: ignore[no-untyped-def]
    out[0], out[1] = w.vel[i, 0], w.vel[i, 1]
    k = 2
    if i == GOOD:
        k = write_relative(w.pos, i, LANDMARKS + w.goal[0], out, k)
        out[k], out[k + 1], out[k + 2] = GOOD_COLORS[w.goal[0]]
        k += 3
    for number in range(len(COLORS)):
        k = write_relative(w.pos, i, LANDMARKS + number, out, k)
    if i == GOOD:
        for number in range(len(COLORS)):
            out[k], out[k + 1], out[k + 2] = COLORS[number]
            k += 3
    write_relative(w.pos, i, 1 - i, out, k)
