"""simple_tag (predator and prey): slow adversaries chase fast good agents around obstacles.

Every adversary gains 10 for each pair of a good agent and an adversary that touch, whoever they are. A good agent loses
10 for each adversary that touches it, and what `edge_cost` says for leaving the field. Everything collides.
Observation: own velocity and position, obstacles and other agents relative to itself, the other good agents'
velocities; where only the nearest are seen, a velocity for each of them, zero for adversaries.
"""

from __future__ import annotations

from typing import NamedTuple

from shoal.envs.mpe.world import (
    Agent,
    Landmark,
    Layout,
    check_neighbors,
    edge_cost,
    scatter,
    touching,
    write_neighbors,
)
from shoal.jit import compiled
from shoal.types import SELF, Part, ShoalError

STAGES = (0.5, 0.75, 1.0)  # of the good agents' full speed


class Params(NamedTuple):
    num_good: int = 1
    """Good agents, the prey."""
    num_adversaries: int = 3
    """Their predators."""
    num_obstacles: int = 2
    """Landmarks that stand in the way."""
    curriculum: bool = False
    """Slow good agents: half speed in stage 0, three quarters in stage 1, all of it in stage 2."""
    curriculum_stage: int = 0
    """0, 1 or 2; counts only with `curriculum`."""
    terminate_on_success: bool = False
    """End the episode when every good agent is being touched by an adversary."""
    num_agent_neighbors: int = 0
    """Others an agent sees, nearest first; 0: all."""
    num_landmark_neighbors: int = 0
    """Obstacles an agent sees, nearest first; 0: all."""


def layout(p: Params) -> Layout:
    if p.num_good < 1 or p.num_adversaries < 1 or p.num_obstacles < 0:
        raise ShoalError(
            "simple_tag needs num_good >= 1, num_adversaries >= 1 and num_obstacles >= 0, "
            f"not {p.num_good}, {p.num_adversaries} and {p.num_obstacles}"
        )
    if not 0 <= p.curriculum_stage < len(STAGES):
        raise ShoalError(f"simple_tag's curriculum_stage is 0, 1 or 2, not {p.curriculum_stage}")
    check_neighbors(p)
    speed = STAGES[p.curriculum_stage] if p.curriculum else 1.0

    def parts(num_adversaries: int, num_good: int) -> tuple[Part, ...]:
        """What is seen of so many others: where they are, then how fast."""
        good = Part("agent", 2, num_good)
        others: tuple[Part, ...] = Part("adversary", 2, num_adversaries), good, good
        if p.num_agent_neighbors:
            others = (Part("other", 2, p.num_agent_neighbors),) * 2
        return Part(SELF, 4), Part("obstacle", 2, p.num_landmark_neighbors or p.num_obstacles), *others

    theirs, ours = parts(p.num_adversaries - 1, p.num_good), parts(p.num_adversaries, p.num_good - 1)
    adversaries = [
        Agent(f"adversary_{i}", size=0.075, accel=3.0, max_speed=1.0, color=(0.85, 0.35, 0.35), parts=theirs)
        for i in range(p.num_adversaries)
    ]
    good = [
        Agent(f"agent_{i}", accel=4.0 * speed, max_speed=1.3 * speed, color=(0.35, 0.85, 0.35), parts=ours)
        for i in range(p.num_good)
    ]
    return Layout([*adversaries, *good], [Landmark(size=0.2, collide=True) for _ in range(p.num_obstacles)])


@compiled
def reset(p, w):  # type: ignore[no-untyped-def]
    agents = p.num_adversaries + p.num_good
    scatter(w, 0, agents, 1.0)
    scatter(w, agents, agents + p.num_obstacles, 0.9)


@compiled
def reward(p, w, out):  # type: ignore[no-untyped-def]
    total = 0
    for i in range(p.num_adversaries, p.num_adversaries + p.num_good):
        touches = 0
        for j in range(p.num_adversaries):
            touches += touching(w, i, j)
        out[i] = -10.0 * touches - edge_cost(w.pos, i)
        total += touches
    for j in range(p.num_adversaries):
        out[j] = 10.0 * total


@compiled
def observe(p, w, i, out):  # type: ignore[no-untyped-def]
    agents = p.num_adversaries + p.num_good
    out[0], out[1] = w.vel[i, 0], w.vel[i, 1]
    out[2], out[3] = w.pos[i, 0], w.pos[i, 1]
    k = write_neighbors(w, i, agents, agents + p.num_obstacles, p.num_landmark_neighbors, out, 4)
    k = write_neighbors(w, i, 0, agents, p.num_agent_neighbors, out, k)
    if p.num_agent_neighbors == 0:
        for j in range(p.num_adversaries, agents):
            if j != i:
                out[k], out[k + 1] = w.vel[j, 0], w.vel[j, 1]
                k += 2
        return
    for slot in range(p.num_agent_neighbors):  # w.order holds them still
        out[k] = out[k + 1] = 0.0
        if slot < agents - 1 and w.order[slot] >= p.num_adversaries:
            out[k], out[k + 1] = w.vel[w.order[slot], 0], w.vel[w.order[slot], 1]
        k += 2


@compiled
def terminal(p, w):  # type: ignore[no-untyped-def]
    if not p.terminate_on_success:
        return False
    for i in range(p.num_adversaries, p.num_adversaries + p.num_good):
        caught = False
        for j in range(p.num_adversaries):
            caught = caught or touching(w, i, j)
        if not caught:
            return False
    return True
