"""simple_world_comm: `simple_tag` with food for the good agents, forests to hide in, and a leader of the adversaries.

Every adversary gains 5 for each pair of a good agent and an adversary that touch, and loses a tenth of its distance to
the nearest good agent. A good agent loses 5 for each adversary that touches it and twice `edge_cost`, gains 2 for each
food it touches, and loses a twentieth of its distance to the nearest food.
Who is in a forest is seen only by those in it too, and sees only them; all but the leader, who always sees everyone
and says one of four words to the adversaries. Observation: own velocity and position, landmarks (obstacles, food,
forests) and other agents relative to itself, the other good agents' velocities, for each forest 1 if the agent is in it
and -1 if not (before the velocities for good agents), and for adversaries the leader's word. What is hidden reads zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shoal.envs.mpe.world import (
    Agent,
    Landmark,
    Layout,
    distance,
    edge_cost,
    scatter,
    touching,
    write_relative,
)
from shoal.jit import compiled
from shoal.types import SELF, Part, ShoalError

LEADER = 0  # the first adversary
WORDS = 4


class Params(NamedTuple):
    num_good: int = 2
    """Good agents, the prey."""
    num_adversaries: int = 4
    """Their predators, with the leader."""
    num_obstacles: int = 1
    """Landmarks that stand in the way."""
    num_food: int = 2
    """Landmarks the good agents want to touch."""
    num_forests: int = 2
    """Landmarks that hide who is in them."""


def layout(p: Params) -> Layout:
    if min(p.num_good, p.num_adversaries, p.num_food) < 1 or min(p.num_obstacles, p.num_forests) < 0:
        raise ShoalError(
            "simple_world_comm needs num_good, num_adversaries and num_food >= 1, num_obstacles and num_forests >= 0, "
            f"not {p.num_good}, {p.num_adversaries}, {p.num_food}, {p.num_obstacles} and {p.num_forests}"
        )
    landmarks = [
        *[Landmark(size=0.2, collide=True) for _ in range(p.num_obstacles)],
        *[Landmark(size=0.03, color=(0.15, 0.15, 0.65)) for _ in range(p.num_food)],
        *[Landmark(size=0.3, color=(0.6, 0.9, 0.6)) for _ in range(p.num_forests)],
    ]
    obstacles, food = Part("obstacle", 2, p.num_obstacles), Part("food", 2, p.num_food)
    landmark = Part(SELF, 4), obstacles, food, Part("forest", 2, p.num_forests)
    inside, chief, word = Part("forest", 1, p.num_forests), Part("leader", 2), Part(SELF, WORDS)
    good_ones, mates = Part("agent", 2, p.num_good), Part("agent", 2, p.num_good - 1)  # where they are, then how fast
    leads = *landmark, Part("adversary", 2, p.num_adversaries - 1), good_ones, good_ones, inside, word
    theirs = *landmark, chief, Part("adversary", 2, p.num_adversaries - 2), good_ones, good_ones, inside, word
    ours = *landmark, chief, Part("adversary", 2, p.num_adversaries - 1), mates, inside, mates
    leader = Agent(
        "leadadversary_0", size=0.075, silent=False, accel=3.0, max_speed=1.0, color=(0.65, 0.15, 0.15), parts=leads
    )
    adversaries = [
        Agent(f"adversary_{i}", size=0.075, accel=3.0, max_speed=1.0, color=(0.95, 0.45, 0.45), parts=theirs)
        for i in range(p.num_adversaries - 1)
    ]
    good = [
        Agent(f"agent_{i}", size=0.045, accel=4.0, max_speed=1.3, color=(0.45, 0.95, 0.45), parts=ours)
        for i in range(p.num_good)
    ]
    return Layout([leader, *adversaries, *good], landmarks, dim_c=WORDS)


@compiled
def _food(p):  # type: ignore[no-untyped-def]
    """The first food's number."""
    return p.num_adversaries + p.num_good + p.num_obstacles


@compiled
def _forests(p):  # type: ignore[no-untyped-def]
    """The first forest's number."""
    return _food(p) + p.num_food


@compiled
def reset(p, w):  # type: ignore[no-untyped-def]
    scatter(w, 0, p.num_adversaries + p.num_good, 1.0)
    scatter(w, p.num_adversaries + p.num_good, w.pos.shape[0], 0.9)
    scatter(w, _food(p), w.pos.shape[0], 0.9)  # mpe2 draws them twice; so do we, to have the same episodes


@compiled
def reward(p, w, out):  # type: ignore[no-untyped-def]
    agents = p.num_adversaries + p.num_good
    total = 0
    for i in range(p.num_adversaries, agents):
        touches = 0
        for j in range(p.num_adversaries):
            touches += touching(w, i, j)
        eaten, nearest_food = 0, np.inf
        for food in range(_food(p), _forests(p)):
            eaten += touching(w, i, food)
            nearest_food = min(nearest_food, distance(w.pos, i, food))
        out[i] = 2.0 * eaten - 0.05 * nearest_food - 5.0 * touches - 2.0 * edge_cost(w.pos, i)
        total += touches
    for j in range(p.num_adversaries):
        nearest_good = np.inf
        for i in range(p.num_adversaries, agents):
            nearest_good = min(nearest_good, distance(w.pos, i, j))
        out[j] = 5.0 * total - 0.1 * nearest_good


@compiled
def _sees(p, w, i, j):  # type: ignore[no-untyped-def]
    """Whether agent i sees agent j."""
    if i == LEADER:
        return True
    hidden = False
    for forest in range(_forests(p), w.pos.shape[0]):
        here, there = touching(w, i, forest), touching(w, j, forest)
        if here and there:
            return True
        hidden = hidden or here or there
    return not hidden


@compiled
def _write_forests(p, w, i, out, k):  # type: ignore[no-untyped-def]
    for forest in range(_forests(p), w.pos.shape[0]):
        out[k] = 1.0 if touching(w, i, forest) else -1.0
        k += 1
    return k


@compiled
def observe(p, w, i, out):  # type: ignore[no-untyped-def]
    agents = p.num_adversaries + p.num_good
    good = i >= p.num_adversaries
    out[0], out[1] = w.vel[i, 0], w.vel[i, 1]
    out[2], out[3] = w.pos[i, 0], w.pos[i, 1]
    k = 4
    for landmark in range(agents, w.pos.shape[0]):
        k = write_relative(w.pos, i, landmark, out, k)
    velocity = k + 2 * (agents - 1)  # where the velocities begin
    if good:
        velocity = _write_forests(p, w, i, out, velocity)
    for j in range(agents):
        if j == i:
            continue
        seen = _sees(p, w, i, j)
        write_relative(w.pos, i, j, out, k)
        if not seen:
            out[k] = out[k + 1] = 0.0
        k += 2
        if j >= p.num_adversaries:
            out[velocity] = w.vel[j, 0] if seen else 0.0
            out[velocity + 1] = w.vel[j, 1] if seen else 0.0
            velocity += 2
    if not good:
        k = _write_forests(p, w, i, out, velocity)
        for c in range(WORDS):
            out[k + c] = w.comm[LEADER, c]
