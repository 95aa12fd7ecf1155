"""Predator-prey: predators that see almost nothing look for a prey that does not move, until all have found it.

After IC3Net (Singh et al. 2019, arXiv 1812.09755) and its code (`ic3net_envs.predator_prey_env`). Every predator sees
its own place and the cells within `vision` of it. Who has found the prey stays there, and can tell the others where.

    action          0 up, 1 right, 2 down, 3 left, 4 stay; a wall stops
    observation     own row and column, one-hot; of each cell within `vision`: outside, prey, number of predators
    reward          -0.05 for each step away from the prey; on it 0 (mixed), 0.05 k (cooperative) or 0.05 / k
                    (competitive) with k predators on it
    end             mixed: terminates when all are on the prey; else only the time limit

    task            grid    predators   vision  limit
    easy            5x5     3           0       20
    medium          10x10   5           1       40
    hard            20x20   10          1       80

The README of that code trains in `mixed`, and its figure is the mean number of steps: an episode's length here. A
predator on the prey is present and heard and not `alive`: it cannot do anything. State: every predator's place and
whether it has found the prey, and the prey's place.

What differs from the code: cells are not named by a number each (10x10 cells and vision 1 would be 936 numbers instead
of 47) but by the predator's own row and column; there is a global state; the time limit is the environment's.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.envs.common.kernel_env import FILES, KernelEnv, Pixels
from shoal.envs.common.pcg64 import integer
from shoal.jit import compiled, jit
from shoal.roll import begin, finish
from shoal.types import Discrete, GroupSpec, ShoalError

TASKS = {"easy": (5, 3, 0, 20), "medium": (10, 5, 1, 40), "hard": (20, 10, 1, 80)}
MODES = {"mixed": 0, "cooperative": 1, "competitive": 2}
Mode = Literal["mixed", "cooperative", "competitive"]
SEEN = 3  # numbers about a cell
STEP, PREY = -0.05, 0.05


class Params(NamedTuple):
    dim: int
    vision: int
    limit: int
    mode: int


class World(NamedTuple):
    place: NDArray[np.int64]  # [env, predator, 2]: row and column
    prey: NDArray[np.int64]  # [env, 2]
    found: NDArray[np.bool_]  # [env, predator]
    rng: NDArray[np.uint64]  # [env, 6]


@compiled
def _free(w, e, count, row, column):  # type: ignore[no-untyped-def]
    """Whether none of the first `count` predators, nor the prey, is there."""
    taken = w.prey[e, 0] == row and w.prey[e, 1] == column
    for i in range(count):
        taken |= w.place[e, i, 0] == row and w.place[e, i, 1] == column
    return not taken


@compiled
def _begin(p, w, b, e):  # type: ignore[no-untyped-def]
    """Everybody on a cell of its own."""
    w.prey[e, 0], w.prey[e, 1] = integer(w.rng[e], p.dim), integer(w.rng[e], p.dim)
    for i in range(w.place.shape[1]):
        row, column = integer(w.rng[e], p.dim), integer(w.rng[e], p.dim)
        while not _free(w, e, i, row, column):
            row, column = integer(w.rng[e], p.dim), integer(w.rng[e], p.dim)
        w.place[e, i, 0], w.place[e, i, 1] = row, column
        w.found[e, i] = False
    b.steps[e] = 0


@compiled
def _show(p, w, e, obs, state):  # type: ignore[no-untyped-def]
    predators = w.place.shape[1]
    obs[e] = 0.0
    for i in range(predators):
        row, column = w.place[e, i, 0], w.place[e, i, 1]
        obs[e, i, row] = 1.0
        obs[e, i, p.dim + column] = 1.0
        k = 2 * p.dim
        for r in range(row - p.vision, row + p.vision + 1):
            for c in range(column - p.vision, column + p.vision + 1):
                if r < 0 or c < 0 or r >= p.dim or c >= p.dim:
                    obs[e, i, k] = 1.0
                if w.prey[e, 0] == r and w.prey[e, 1] == c:
                    obs[e, i, k + 1] = 1.0
                for j in range(predators):
                    if w.place[e, j, 0] == r and w.place[e, j, 1] == c:
                        obs[e, i, k + 2] += 1.0
                k += SEEN
        state[e, 3 * i] = row / (p.dim - 1)
        state[e, 3 * i + 1] = column / (p.dim - 1)
        state[e, 3 * i + 2] = w.found[e, i]
    state[e, 3 * predators] = w.prey[e, 0] / (p.dim - 1)
    state[e, 3 * predators + 1] = w.prey[e, 1] / (p.dim - 1)


@compiled
def _move(p, w, e, i, action):  # type: ignore[no-untyped-def]
    if action == 0:
        w.place[e, i, 0] = max(w.place[e, i, 0] - 1, 0)
    elif action == 1:
        w.place[e, i, 1] = min(w.place[e, i, 1] + 1, p.dim - 1)
    elif action == 2:
        w.place[e, i, 0] = min(w.place[e, i, 0] + 1, p.dim - 1)
    elif action == 3:
        w.place[e, i, 1] = max(w.place[e, i, 1] - 1, 0)


@compiled
def _play(p, w, b, e, actions):  # type: ignore[no-untyped-def]
    predators, on_prey = w.place.shape[1], 0
    for i in range(predators):
        b.alive[e, i] = not w.found[e, i]
        if not w.found[e, i]:
            _move(p, w, e, i, actions[e, i])
        w.found[e, i] = w.place[e, i, 0] == w.prey[e, 0] and w.place[e, i, 1] == w.prey[e, 1]
        on_prey += w.found[e, i]
    for i in range(predators):
        if not w.found[e, i]:
            b.reward[e, i] = STEP
        elif p.mode == 0:
            b.reward[e, i] = 0.0
        else:
            b.reward[e, i] = PREY * on_prey if p.mode == 1 else PREY / on_prey
    b.steps[e] += 1
    over = p.mode == 0 and on_prey == predators
    b.terminated[e] = over
    b.ended[e] = over or b.steps[e] >= p.limit


@jit(*FILES)
def kernel(lo, hi, roll, start, p, w, b, actions):  # type: ignore[no-untyped-def]
    for t in range(roll[0]):
        begin(roll, lo, hi, t)
        for e in range(lo, hi):
            if not start:
                _play(p, w, b, e, actions)
                _show(p, w, e, b.next_obs, b.next_state)
            if start or b.ended[e]:
                _begin(p, w, b, e)
                _show(p, w, e, b.obs, b.state)
            else:
                b.obs[e], b.state[e] = b.next_obs[e], b.next_state[e]
        finish(roll, lo, hi, t)


def draw(p: Params, w: World, index: int) -> Pixels:
    """The prey green, predators red, darker where there are several; on the prey yellow."""
    cells = np.full((p.dim, p.dim, 3), 235, np.uint8)
    cells[tuple(w.prey[index])] = (60, 170, 60)
    for place, found in zip(w.place[index], w.found[index], strict=True):
        before = cells[tuple(place)]
        cells[tuple(place)] = (230, 190, 40) if found else np.minimum(before, (210, 70, 60)) * 0.95
    size = max(240 // p.dim, 4)
    return np.kron(cells, np.ones((size, size, 1), np.uint8))


def build(
    task: str, num_envs: int, *, mode: Mode = "mixed", vision: int = -1, max_steps: int = 0, threads: int = 0
) -> KernelEnv:
    """
    Args:
        task: easy, medium or hard.
        mode: what is earned on the prey.
        vision: cells that a predator sees in each direction; -1: the task's.
        max_steps: time limit; 0: the task's.
        threads: 0 chooses by the number of environments.
    """
    dim, predators, seen, limit = TASKS[task]
    if mode not in MODES:
        raise ShoalError(f"predator_prey has no mode {mode!r}: mixed, cooperative or competitive")
    if vision < -1 or vision >= dim or max_steps < 0:
        raise ShoalError(f"predator_prey needs vision in 0..{dim - 1} and max_steps >= 0, not {vision} and {max_steps}")
    seen = seen if vision < 0 else vision
    world = World(
        place=np.zeros((num_envs, predators, 2), np.int64),
        prey=np.zeros((num_envs, 2), np.int64),
        found=np.zeros((num_envs, predators), np.bool_),
        rng=np.zeros((num_envs, 6), np.uint64),
    )
    names = tuple(f"predator_{i}" for i in range(predators))
    group: Any = GroupSpec(names, (2 * dim + SEEN * (2 * seen + 1) ** 2,), Discrete(5))
    params = Params(dim, seen, max_steps or limit, MODES[mode])
    return KernelEnv(
        kernel, params, world, "predator", group, num_envs, draw=draw, state_size=3 * predators + 2, threads=threads
    )
