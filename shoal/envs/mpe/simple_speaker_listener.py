"""simple_speaker_listener (cooperative communication): the speaker knows the goal, only the listener can go there.

Both are rewarded with minus the listener's squared distance to the goal, one of three landmarks. Nothing collides.
Observation of the speaker, who cannot move: the goal's colour. Observation of the listener, who cannot speak: own
velocity, the landmarks relative to itself, the speaker's word (one of three, one-hot).
"""

from __future__ import annotations

from typing import NamedTuple

from shoal.envs.common import pcg64
from shoal.envs.mpe.world import Agent, Landmark, Layout, distance, scatter, write_relative
from shoal.jit import compiled

SPEAKER, LISTENER = 0, 1
LANDMARKS = 2  # the first one's number
COLORS = ((0.65, 0.15, 0.15), (0.15, 0.65, 0.15), (0.15, 0.15, 0.65))  # of the landmarks
WORDS = 3


class Params(NamedTuple):
    """Nothing to choose."""


def layout(p: Params) -> Layout:
    dark = (0.25, 0.25, 0.25)
    agents = [
        Agent("speaker_0", obs_size=3, size=0.075, movable=False, collide=False, silent=False, color=dark),
        Agent("listener_0", obs_size=2 + 6 + WORDS, size=0.075, collide=False, color=dark),
    ]
    return Layout(agents, [Landmark(size=0.04, color=color) for color in COLORS], dim_c=WORDS, goals=1)


def colors(p, w):  # type: ignore[no-untyped-def]
    red, green, blue = COLORS[w.goal[0]]
    return {LISTENER: (red + 0.45, green + 0.45, blue + 0.45)}


@compiled
def reset(p, w):  # type: ignore[no-untyped-def]
    w.goal[0] = pcg64.integer(w.rng, len(COLORS))
    scatter(w, 0, LANDMARKS + len(COLORS), 1.0)


@compiled
def reward(p, w, out):  # type: ignore[no-untyped-def]
    out[SPEAKER] = out[LISTENER] = -(distance(w.pos, LISTENER, LANDMARKS + w.goal[0]) ** 2)


@compiled
def observe(p, w, i, out):  # type: ignore[no-untyped-def]
    if i == SPEAKER:
        out[0], out[1], out[2] = COLORS[w.goal[0]]
        return
    out[0], out[1] = w.vel[i, 0], w.vel[i, 1]
    k = 2
    for number in range(len(COLORS)):
        k = write_relative(w.pos, i, LANDMARKS + number, out, k)
    for c in range(WORDS):
        out[k + c] = w.comm[SPEAKER, c]
