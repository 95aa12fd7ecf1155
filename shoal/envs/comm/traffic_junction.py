"""Traffic junction: cars that see only their own cell cross each other's ways, and must not meet on one.

After CommNet (Sukhbaatar et al. 2016, arXiv 1605.07736) and IC3Net (Singh et al. 2019, arXiv 1812.09755) and its code
(`ic3net_envs.traffic_junction_env`). Cars enter where roads do, each with a route to some exit; they keep to the right.

    action          0 gas: one cell on; 1 brake: stay
    observation     last action; route, one-hot; own row and column, one-hot; of each cell within `vision`: no road,
                    number of cars
    reward          -0.01 for each step that the car has been on its way; -10 while another is in its cell
    entry           in each step, at every entrance with probability `rate`, while fewer than all cars are on the road
    end             the time limit

    task            roads                           grid    cars    routes  limit   rate
    easy            two one-way streets             7x7     5       2       20      0.3
    medium          two two-way streets             14x14   10      12      40      0.2
    hard            four two-way streets            18x18   20      56      80      0.05

An episode without a collision is a success; the published figure is their share, the greedy episodes' that never pay a
reward of -5 or less. In easy, nobody turns; in hard, a car turns at two of its crossings at most.

An agent is a seat: when its car has left, it waits for another, is not `alive`, its observation is zeros and nobody
hears it; its return goes on, so nothing is ever `terminated`. State: of each car whether it is on the road, its row and
its column.

What differs from the code: cells are not named by a number each but by row and column; the route is one-hot instead of
one number; there is a global state; `rate` is the code's last (0.3, 0.2, 0.05) from the start, where its trainer lets
it rise from 0.1, 0.05, 0.02; a seat's return goes on with its next car; the time limit is the environment's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.envs.common.kernel_env import FILES, KernelEnv, Pixels
from shoal.envs.common.pcg64 import integer, uniform
from shoal.jit import compiled, jit
from shoal.roll import begin, finish
from shoal.types import Discrete, GroupSpec, ShoalError

TASKS = {"easy": (7, 5, 20, 0.3), "medium": (14, 10, 40, 0.2), "hard": (18, 20, 80, 0.05)}
SEEN = 2  # numbers about a cell
WAIT, CRASH = -0.01, -10.0
Cell = tuple[int, int]


class Params(NamedTuple):
    dim: int
    vision: int
    limit: int
    rate: float
    routes: NDArray[np.int64]  # [route, step, 2]: row and column; those of an entrance follow each other
    lengths: NDArray[np.int64]  # [route]
    entrances: int
    road: NDArray[np.bool_]  # [row, column]


class World(NamedTuple):
    route: NDArray[np.int64]  # [env, car]; -1: not on the road
    at: NDArray[np.int64]  # [env, car]: steps along it
    time: NDArray[np.int64]  # [env, car]: since it entered
    last: NDArray[np.int64]  # [env, car]: its last action
    rng: NDArray[np.uint64]  # [env, 6]


def plan(task: str) -> tuple[list[list[list[Cell]]], NDArray[np.bool_]]:
    """Of each entrance all routes, as cells; and where there is road, `[row, column]`."""
    dim = TASKS[task][0]
    road = np.zeros((dim, dim), np.bool_)
    if task == "easy":
        middle = dim // 2
        road[middle], road[:, middle] = True, True
        return [[[(k, middle) for k in range(dim)]], [[(middle, k) for k in range(dim)]]], road
    firsts = [dim // 2 - 1] if task == "medium" else [dim // 3 - 2, 2 * dim // 3]  # of a road's two lanes
    lanes = [first + k for first in firsts for k in range(2)]
    road[lanes], road[:, lanes] = True, True
    junction = np.zeros_like(road)
    junction[np.ix_(lanes, lanes)] = True
    starts = [((0, first), (1, 0)) for first in firsts]  # from the top, and so on
    starts += [((first + 1, 0), (0, 1)) for first in firsts]
    starts += [((dim - 1, first + 1), (-1, 0)) for first in firsts]
    starts += [((first, dim - 1), (0, -1)) for first in firsts]
    return [_routes(cell, heading, len(firsts), junction) for cell, heading in starts], road


def _routes(cell: Cell, heading: Cell, turns: int, junction: NDArray[np.bool_]) -> list[list[Cell]]:
    """All ways on from `cell`: at each of the next `turns` junctions straight on, right or left."""
    path, dim = [cell], len(junction)
    while True:
        following = cell[0] + heading[0], cell[1] + heading[1]
        if not (0 <= following[0] < dim and 0 <= following[1] < dim):
            return [path]
        if junction[following] and not junction[cell] and turns:
            break
        cell = following
        path.append(cell)
    far = following[0] + heading[0], following[1] + heading[1]
    right, left = (heading[1], -heading[0]), (-heading[1], heading[0])
    ways = [([following], far, heading), ([], following, right), ([following], far, left)]
    return [
        [*path, *crossed, *rest]
        for crossed, entered, towards in ways
        for rest in _routes(entered, towards, turns - 1, junction)
    ]


@compiled
def _enter(p, w, e, entrance):  # type: ignore[no-untyped-def]
    """A car on one of the entrance's routes, in a seat that is free; none if all are taken."""
    free = 0
    for i in range(w.route.shape[1]):
        free += w.route[e, i] < 0
    if free == 0 or uniform(w.rng[e], 0.0, 1.0) > p.rate:
        return
    seat, each = integer(w.rng[e], free), len(p.routes) // p.entrances
    for i in range(w.route.shape[1]):
        if w.route[e, i] < 0:
            if seat == 0:
                w.route[e, i] = entrance * each + integer(w.rng[e], each)
                w.at[e, i], w.time[e, i], w.last[e, i] = 0, 0, 0
                return
            seat -= 1


@compiled
def _drive(p, w, e, i, action):  # type: ignore[no-untyped-def]
    w.time[e, i] += 1
    w.last[e, i] = action
    if action == 0:
        w.at[e, i] += 1
        if w.at[e, i] == p.lengths[w.route[e, i]]:
            w.route[e, i] = -1


@compiled
def _show(p, w, e, obs, state, hears):  # type: ignore[no-untyped-def]
    cars, routes = w.route.shape[1], len(p.routes)
    obs[e] = 0.0
    state[e] = 0.0
    for i in range(cars):
        way = w.route[e, i]
        hears[e, 0, i] = way >= 0
        if way < 0:
            continue
        row, column = p.routes[way, w.at[e, i], 0], p.routes[way, w.at[e, i], 1]
        obs[e, i, 0] = w.last[e, i]
        obs[e, i, 1 + way] = 1.0
        obs[e, i, 1 + routes + row] = 1.0
        obs[e, i, 1 + routes + p.dim + column] = 1.0
        k = 1 + routes + 2 * p.dim
        for r in range(row - p.vision, row + p.vision + 1):
            for c in range(column - p.vision, column + p.vision + 1):
                if r < 0 or c < 0 or r >= p.dim or c >= p.dim or not p.road[r, c]:
                    obs[e, i, k] = 1.0
                for j in range(cars):
                    if _in(p, w, e, j, r, c):
                        obs[e, i, k + 1] += 1.0
                k += SEEN
        state[e, 3 * i] = 1.0
        state[e, 3 * i + 1] = row / (p.dim - 1)
        state[e, 3 * i + 2] = column / (p.dim - 1)


@compiled
def _in(p, w, e, j, row, column):  # type: ignore[no-untyped-def]
    """Whether car j is in that cell."""
    way = w.route[e, j]
    return way >= 0 and p.routes[way, w.at[e, j], 0] == row and p.routes[way, w.at[e, j], 1] == column


@compiled
def _crashed(p, w, e, i):  # type: ignore[no-untyped-def]
    way = w.route[e, i]
    for j in range(w.route.shape[1]):
        if j != i and _in(p, w, e, j, p.routes[way, w.at[e, i], 0], p.routes[way, w.at[e, i], 1]):
            return True
    return False


@compiled
def _play(p, w, b, e, actions):  # type: ignore[no-untyped-def]
    cars = w.route.shape[1]
    for i in range(cars):
        b.alive[e, i] = w.route[e, i] >= 0
        if b.alive[e, i]:
            _drive(p, w, e, i, actions[e, i])
    for entrance in range(p.entrances):
        _enter(p, w, e, entrance)
    for i in range(cars):
        b.reward[e, i] = 0.0
        if w.route[e, i] >= 0:
            b.reward[e, i] = WAIT * w.time[e, i] + CRASH * _crashed(p, w, e, i)
    b.steps[e] += 1
    b.ended[e] = b.steps[e] >= p.limit


@jit(*FILES)
def kernel(lo, hi, roll, start, p, w, b, actions):  # type: ignore[no-untyped-def]
    for t in range(roll[0]):
        begin(roll, lo, hi, t)
        for e in range(lo, hi):
            if not start:
                _play(p, w, b, e, actions)
                _show(p, w, e, b.next_obs, b.next_state, b.next_hears)
            if start or b.ended[e]:
                w.route[e] = -1
                b.steps[e] = 0
                _show(p, w, e, b.obs, b.state, b.hears)
            else:
                b.obs[e], b.state[e], b.hears[e] = b.next_obs[e], b.next_state[e], b.next_hears[e]
        finish(roll, lo, hi, t)


def draw(p: Params, w: World, index: int) -> Pixels:
    """Roads grey; cars that go blue, that brake orange; red where there is more than one."""
    cells = np.full((p.dim, p.dim, 3), (120, 160, 110), np.uint8)
    cells[p.road] = 200
    count = np.zeros((p.dim, p.dim), int)
    for way, at, last in zip(w.route[index], w.at[index], w.last[index], strict=True):
        if way >= 0:
            place = tuple(p.routes[way, at])
            count[place] += 1
            cells[place] = (220, 30, 30) if count[place] > 1 else (240, 150, 40) if last else (50, 90, 200)
    size = max(240 // p.dim, 4)
    return np.kron(cells, np.ones((size, size, 1), np.uint8))


def build(
    task: str, num_envs: int, *, rate: float = 0.0, vision: int = 0, max_steps: int = 0, threads: int = 0
) -> KernelEnv:
    """
    Args:
        task: easy, medium or hard.
        rate: probability of a car at each entrance in each step; 0: the task's.
        vision: cells that a car sees in each direction.
        max_steps: time limit; 0: the task's.
        threads: 0 chooses by the number of environments.
    """
    dim, cars, limit, usual = TASKS[task]
    if not 0 <= rate <= 1 or not 0 <= vision < dim or max_steps < 0:
        raise ShoalError(
            f"traffic_junction needs rate in 0..1, vision in 0..{dim - 1} and max_steps >= 0, "
            f"not {rate}, {vision} and {max_steps}"
        )
    entrances, road = plan(task)
    routes = [route for some in entrances for route in some]
    table = np.zeros((len(routes), max(map(len, routes)), 2), np.int64)
    for row, route in zip(table, routes, strict=True):
        row[: len(route)] = route
    lengths = np.array([len(route) for route in routes])
    params = Params(dim, vision, max_steps or limit, rate or usual, table, lengths, len(entrances), road)

    def seats() -> NDArray[np.int64]:
        return np.zeros((num_envs, cars), np.int64)

    world = World(seats(), seats(), seats(), seats(), np.zeros((num_envs, 6), np.uint64))
    width = 1 + len(routes) + 2 * dim + SEEN * (2 * vision + 1) ** 2
    group: Any = GroupSpec(tuple(f"car_{i}" for i in range(cars)), (width,), Discrete(2))
    return KernelEnv(
        kernel, params, world, "car", group, num_envs, draw=draw, state_size=3 * cars, hears=(1, cars), threads=threads
    )
