"""What a scenario of the particle world is written with: entities, the world's state, and helpers on it.

A scenario is a module (see `simple_spread`) with

    Params                  a NamedTuple of the scenario's own arguments, with their defaults
    layout(p)               the entities, as a `Layout`
    reset(p, w)             places the entities and chooses the goals of one environment, `w`
    reward(p, w, out)       writes every agent's reward into out[agent]
    observe(p, w, i, out)   writes agent i's observation into out[feature]
    terminal(p, w)          optional: whether the episode is over before its time limit
    colors(p, w)            optional, not compiled: colours that depend on the episode, `{entity: (r, g, b)}`

The functions on `w` are decorated with `compiled`, which neither counts references nor lets a function allocate arrays:
that is ten times faster here, since helpers of a few operations are called with a dozen arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.envs.common import pcg64
from shoal.jit import compiled
from shoal.types import Part, ShoalError, columns


@dataclass(frozen=True)
class Agent:
    """An agent of a layout. `parts` say what `observe` writes for it, or `obs_size` alone, how many numbers."""

    name: str
    obs_size: int = 0
    size: float = 0.05
    movable: bool = True
    collide: bool = True
    silent: bool = True
    accel: float = 5.0
    max_speed: float = np.inf
    color: tuple[float, float, float] = (0.35, 0.35, 0.85)
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if self.parts:
            object.__setattr__(self, "obs_size", columns(self.parts))


@dataclass(frozen=True)
class Landmark:
    """A landmark of a layout."""

    size: float = 0.05
    collide: bool = False
    color: tuple[float, float, float] = (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class Layout:
    """The entities of a scenario: agents first, in the order of their groups, then landmarks."""

    agents: list[Agent]
    landmarks: list[Landmark] = field(default_factory=list)
    dim_c: int = 0
    """Words an agent can say."""
    goals: int = 0
    """Integers of an episode's own (which landmark is the goal, say), in `w.goal`."""

    @property
    def entities(self) -> list[Agent | Landmark]:
        return [*self.agents, *self.landmarks]


class World(NamedTuple):
    """What compiled code sees as `w`: the state of one environment, then constants of the entities.

    The environments' states lie side by side in arrays with a leading environment axis, in another `World`.
    """

    pos: NDArray[np.float64]  # [entity, 2]
    vel: NDArray[np.float64]  # [agent, 2]
    comm: NDArray[np.float64]  # [agent, dim_c]
    goal: NDArray[np.int64]  # [goals]
    rng: NDArray[np.uint64]  # [6], see pcg64
    force: NDArray[np.float64]  # [agent, 2], scratch
    order: NDArray[np.int64]  # [entity], scratch
    size: NDArray[np.float64]  # [entity]
    collide: NDArray[np.bool_]  # [entity]
    movable: NDArray[np.bool_]  # [agent]
    silent: NDArray[np.bool_]  # [agent]
    accel: NDArray[np.float64]  # [agent]
    max_speed: NDArray[np.float64]  # [agent]
    obs_start: NDArray[np.int64]  # [agent + 1]: columns of an agent's observation in the state
    box_start: NDArray[np.int64]  # [agent + 1]: columns of an agent's continuous action


@compiled
def distance(pos, a, b):  # type: ignore[no-untyped-def]
    """Between entities a and b."""
    x = pos[a, 0] - pos[b, 0]
    y = pos[a, 1] - pos[b, 1]
    return np.sqrt(x * x + y * y)


@compiled
def touching(w, a, b):  # type: ignore[no-untyped-def]
    """Whether entities a and b overlap."""
    return distance(w.pos, a, b) < w.size[a] + w.size[b]


@compiled
def scatter(w, first, last, span):  # type: ignore[no-untyped-def]
    """Entities first..last-1 at random places in [-span, span]."""
    for a in range(first, last):
        w.pos[a, 0] = pcg64.uniform(w.rng, -span, span)
        w.pos[a, 1] = pcg64.uniform(w.rng, -span, span)


@compiled
def write_relative(pos, i, b, out, k):  # type: ignore[no-untyped-def]
    """Entity b's position as agent i sees it, into out[k], out[k+1]; the next free column."""
    out[k] = pos[b, 0] - pos[i, 0]
    out[k + 1] = pos[b, 1] - pos[i, 1]
    return k + 2


@compiled
def nearest(pos, i, first, last, count, order):  # type: ignore[no-untyped-def]
    """The `count` entities of first..last-1 without i that are nearest to agent i, nearest first, into `order`.

    Returns how many there are.
    """
    n = 0
    for b in range(first, last):
        if b == i:
            continue
        slot = n  # insertion: what is farther moves up
        while slot > 0 and distance(pos, i, order[slot - 1]) > distance(pos, i, b):
            order[slot] = order[slot - 1]
            slot -= 1
        order[slot] = b
        n += 1
    return min(n, count)


@compiled
def write_neighbors(w, i, first, last, count, out, k):  # type: ignore[no-untyped-def]
    """Positions of entities first..last-1 without i as agent i sees them, into out[k:]; the next free column.

    All of them in order with `count` 0; else the `count` nearest, nearest first, and zeros where there are fewer.
    """
    if count == 0:
        for b in range(first, last):
            if b != i:
                k = write_relative(w.pos, i, b, out, k)
        return k
    found = nearest(w.pos, i, first, last, count, w.order)
    for j in range(count):
        if j < found:
            write_relative(w.pos, i, w.order[j], out, k + 2 * j)
        else:
            out[k + 2 * j] = out[k + 2 * j + 1] = 0.0
    return k + 2 * count


@compiled
def edge_cost(pos, i):  # type: ignore[no-untyped-def]
    """What agent i pays for fleeing: on each axis, nothing to 0.9, rising to 1 at 1.0, then exponentially, to 10."""
    cost = 0.0
    for d in range(2):
        x = abs(pos[i, d])
        if x >= 1.0:
            cost += min(np.exp(2.0 * x - 2.0), 10.0)
        elif x >= 0.9:
            cost += (x - 0.9) * 10.0
    return cost


def check_neighbors(p: Any) -> None:
    """Raise if the numbers of neighbours seen make no sense."""
    agents, landmarks = p.num_agent_neighbors, p.num_landmark_neighbors
    if agents < 0 or landmarks < 0:
        raise ShoalError(
            "num_agent_neighbors and num_landmark_neighbors must be at least 1, or 0 to see all, "
            f"not {agents} and {landmarks}"
        )
