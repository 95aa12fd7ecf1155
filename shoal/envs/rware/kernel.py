"""The rules of the warehouse, compiled for many of them at once: those of the package `rware` 2.0.0, step by step.

A warehouse lies in rows of cells with a margin as wide as agents see, so that nothing need be asked at its edge. All
that can be seen of a cell is one byte of `World.look`, kept up to date as things move; what an agent sees is its
neighbourhood's bytes, looked up in a table of features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from shoal.envs.common import pcg64
from shoal.envs.common.kernel_env import compiled_kernel
from shoal.jit import compiled, jit
from shoal.roll import begin, finish

NOOP, FORWARD, LEFT, RIGHT, TOGGLE_LOAD = range(5)
MOVES = 5
GLOBAL, INDIVIDUAL, TWO_STAGE = range(3)
FLATTENED, IMAGE, IMAGE_DICT = range(3)

# A byte of `look`: the agent's direction (up, down, left, right) + 1, and what else there is
AGENT, SHELF, REQUESTED, LOADED, GOAL, INSIDE = 7, 8, 16, 32, 64, 128
SELF = 8  # numbers that a flat observation begins with
AROUND = 7  # and those for each cell, without messages
FEATURES = 6  # numbers that IMAGE_DICT begins with
FLOAT = 4  # bytes

TURN_LEFT, TURN_RIGHT = (2, 3, 1, 0), (3, 2, 0, 1)  # by direction
PERTURB, PROBES = np.uint64(5), 9  # CPython's PERTURB_SHIFT and LINEAR_PROBES


class Scratch(NamedTuple):
    """What a thread writes on, in the row of its first environment: compiled functions may not allocate."""

    target: NDArray[np.int64]  # [env, agent]: the cell where it wants to be
    height: NDArray[np.int64]  # [env, agent]: longest chain of agents that want to follow
    goes: NDArray[np.bool_]  # [env, agent]
    free: NDArray[np.bool_]  # [env, agent]: at the head of its chain is an empty cell
    drawn: NDArray[np.int64]  # [env, shelf or agent]: random numbers
    nodes: NDArray[np.int64]  # [env, 2 agent]
    queue: NDArray[np.int64]  # [env, 2 agent]
    tables: NDArray[np.int64]  # [env, 3, slot]


class Params(NamedTuple):
    """A warehouse that does not change."""

    stride: int
    """Cells of a row, with the margin."""
    reach: int
    """How far agents see."""
    requests: int
    msg_bits: int
    max_steps: int
    """0: no limit."""
    max_idle: int
    """Steps without a delivery; 0: no limit."""
    reward: int
    observation: int
    directional: bool
    empty: NDArray[np.uint8]  # [cell]: `look` without agents and requests
    highway: NDArray[np.bool_]  # [cell]
    x: NDArray[np.float32]  # [cell], as observed
    y: NDArray[np.float32]
    cells: NDArray[np.int64]  # those inside, row by row
    shelves: NDArray[np.int64]  # [shelf]: where each stands at first
    goals: NDArray[np.int64]
    table: NDArray[np.float32]  # [look, feature]
    hashes: NDArray[np.uint64]  # [cell]: Python's hash of (x, y)
    scratch: Scratch


class World(NamedTuple):
    """What changes, `[env, ...]`. Agents and shelves are numbered from 1 where 0 means none."""

    rng: NDArray[np.uint64]  # [env, 6]
    cell: NDArray[np.int16]  # [env, agent]
    direction: NDArray[np.int8]  # [env, agent]
    load: NDArray[np.int16]  # [env, agent]: the shelf it carries
    delivered: NDArray[np.bool_]  # [env, agent]: it has delivered the shelf it carries
    message: NDArray[np.int16]  # [env, agent]: bits
    look: NDArray[np.uint8]  # [env, cell]
    agent: NDArray[np.int16]  # [env, cell]
    shelf: NDArray[np.int16]  # [env, cell]
    place: NDArray[np.int16]  # [env, shelf]: its cell
    requested: NDArray[np.bool_]  # [env, shelf]
    idle: NDArray[np.int64]  # [env]: steps since a delivery


def world(p: Params, num_envs: int, num_agents: int) -> World:
    """Arrays for `num_envs` warehouses."""
    cells, shelves = len(p.empty), len(p.shelves)
    agents = (num_envs, num_agents)
    return World(
        rng=np.zeros((num_envs, 6), np.uint64),
        cell=np.zeros(agents, np.int16),
        direction=np.zeros(agents, np.int8),
        load=np.zeros(agents, np.int16),
        delivered=np.zeros(agents, np.bool_),
        message=np.zeros(agents, np.int16),
        look=np.zeros((num_envs, cells), np.uint8),
        agent=np.zeros((num_envs, cells), np.int16),
        shelf=np.zeros((num_envs, cells), np.int16),
        place=np.zeros((num_envs, shelves), np.int16),
        requested=np.zeros((num_envs, shelves), np.bool_),
        idle=np.zeros(num_envs, np.int64),
    )


def scratch(num_envs: int, num_agents: int, num_shelves: int) -> Scratch:
    """Arrays of which only the threads' rows ever take memory."""
    return Scratch(
        target=np.empty((num_envs, num_agents), np.int64),
        height=np.empty((num_envs, num_agents), np.int64),
        goes=np.empty((num_envs, num_agents), np.bool_),
        free=np.empty((num_envs, num_agents), np.bool_),
        drawn=np.empty((num_envs, max(num_agents, num_shelves)), np.int64),
        nodes=np.empty((num_envs, 2 * num_agents), np.int64),
        queue=np.empty((num_envs, 2 * num_agents), np.int64),
        tables=np.empty((num_envs, 3, 16 * num_agents + 8), np.int64),
    )


# Episodes begin


@compiled
def _distinct(rng, population, size, out):  # type: ignore[no-untyped-def]
    """`size` different numbers below `population`, as `Generator.choice(population, size, replace=False)`."""
    if population > 10000 and size > population // 50:  # numpy shuffles the tail of 0..population-1
        for k in range(population):
            out[k] = k
        for k in range(population - 1, max(population - size, 1) - 1, -1):
            j = pcg64.integer(rng, k + 1)
            out[j], out[k] = out[k], out[j]
        for k in range(size):
            out[k] = out[population - size + k]
        return
    for k in range(size):  # Floyd's method
        top = population - size + k
        value = pcg64.integer(rng, top + 1)
        for j in range(k):
            if out[j] == value:
                value = top
                break
        out[k] = value
    for k in range(size - 1, 0, -1):
        j = pcg64.integer(rng, k + 1)
        out[j], out[k] = out[k], out[j]


@compiled
def _begin(p, w, e, row):  # type: ignore[no-untyped-def]
    """A new episode: agents anywhere, looking anywhere; shelves at their places; random requests."""
    rng, drawn = w.rng[e], p.scratch.drawn[row]
    n, shelves = w.cell.shape[1], p.shelves.shape[0]
    for c in range(p.empty.shape[0]):
        w.look[e, c] = p.empty[c]
        w.agent[e, c] = w.shelf[e, c] = 0
    for s in range(shelves):
        w.place[e, s] = p.shelves[s]
        w.shelf[e, p.shelves[s]] = s + 1
        w.requested[e, s] = False
    _distinct(rng, p.cells.shape[0], n, drawn)
    for i in range(n):
        w.cell[e, i] = p.cells[drawn[i]]
    for i in range(n):
        w.direction[e, i] = pcg64.integer(rng, 4)
        w.look[e, w.cell[e, i]] |= w.direction[e, i] + 1
        w.agent[e, w.cell[e, i]] = i + 1
        w.load[e, i] = w.message[e, i] = 0
        w.delivered[e, i] = False
    _distinct(rng, shelves, p.requests, drawn)
    for k in range(p.requests):
        w.requested[e, drawn[k]] = True
        w.look[e, p.shelves[drawn[k]]] |= REQUESTED
    w.idle[e] = 0


# Who may move


@compiled
def _probe(table, mask, start):  # type: ignore[no-untyped-def]
    """The first empty slot for a hash, as CPython's sets look for it."""
    perturb, i = start, np.int64(start & np.uint64(mask))
    while True:
        for k in range(PROBES + 1 if i + PROBES <= mask else 1):
            if table[i + k] < 0:
                return i + k
        perturb >>= PERTURB
        i = np.int64((np.uint64(i) * np.uint64(5) + np.uint64(1) + perturb) & np.uint64(mask))


@compiled
def _add(tables, which, mask, used, cell, hashes):  # type: ignore[no-untyped-def]
    """Add to a set of `used` cells; returns its mask, which has changed if it was resized."""
    table = tables[which]
    table[_probe(table, mask, hashes[cell])] = cell
    used += 1
    if used * 5 < mask * 3:
        return mask
    size = 8
    while size <= used * 4:
        size *= 2
    spare = tables[2]
    for k in range(size):
        spare[k] = -1
    for k in range(mask + 1):
        if table[k] >= 0:
            spare[_probe(spare, size - 1, hashes[table[k]])] = table[k]
    for k in range(size):
        table[k] = spare[k]
    return size - 1


@compiled
def _component(w, e, target, source, queue):  # type: ignore[no-untyped-def]
    """Cells reached from `source` along wishes in either direction, in networkx's order; returns how many."""
    n = target.shape[0]
    queue[0] = source
    found, k = 1, 0
    while k < found:
        here = queue[k]
        for i in range(-1, n):  # first where the agent here wants to go, then those who want to come
            if i < 0:
                if w.agent[e, here] == 0:
                    continue
                other = target[w.agent[e, here] - 1]
            elif target[i] == here:
                other = np.int64(w.cell[e, i])
            else:
                continue
            new = True
            for j in range(found):
                new = new and queue[j] != other
            if new:
                queue[found] = other
                found += 1
        k += 1
    return found


@jit(_nrt=False)
def _precedes(p, w, e, row, one, two):  # type: ignore[no-untyped-def]
    """Whether of two agents with equally long chains, agent `one` goes first.

    The package leaves this to the order in which networkx lists the nodes of a part of the graph of wishes. That is the
    order in which they were added, agent by agent, but where the part has less than half of the nodes, it is the order
    of a Python set (of a set, made of a set) of coordinates, which depends on nothing but these.
    """
    s = p.scratch
    target, nodes, queue, tables = s.target[row], s.nodes[row], s.queue[row], s.tables[row]
    n = w.cell.shape[1]
    count = 0
    for i in range(n):
        for place in (np.int64(w.cell[e, i]), target[i]):
            new = True
            for k in range(count):
                new = new and nodes[k] != place
            if new:
                nodes[count] = place
                count += 1
    first, second = np.int64(w.cell[e, one]), np.int64(w.cell[e, two])
    size = _component(w, e, target, first, queue)
    if 2 * size >= count:
        for k in range(count):
            if nodes[k] == first or nodes[k] == second:
                return nodes[k] == first
    source = np.int64(-1)
    for k in range(count):  # the part's first node is where networkx begins
        for j in range(size):
            if source < 0 and queue[j] == nodes[k]:
                source = nodes[k]
    _component(w, e, target, source, queue)
    for k in range(8):
        tables[0, k] = tables[1, k] = -1
    mask = again = 7
    for k in range(size):
        mask = _add(tables, 0, mask, k, queue[k], p.hashes)
    used = 0
    for k in range(mask + 1):
        if tables[0, k] >= 0:
            again = _add(tables, 1, again, used, tables[0, k], p.hashes)
            used += 1
    for k in range(again + 1):
        if tables[1, k] == first or tables[1, k] == second:
            return tables[1, k] == first
    return True


@compiled
def _resolve(p, w, e, row):  # type: ignore[no-untyped-def]
    """Writes `goes` for those who want to another cell.

    Wishes are edges from cell to cell, at most one from each. Those on a circle of three or more go. Where a chain ends
    in an empty cell, the longest one goes, all of it; the others stay, as do all behind somebody who stays.
    """
    s = p.scratch
    target, height, goes, free = s.target[row], s.height[row], s.goes[row], s.free[row]
    n = w.cell.shape[1]
    for i in range(n):
        height[i] = 0
    for i in range(n):
        goes[i] = free[i] = False
        if target[i] == w.cell[e, i]:
            continue
        j, steps = i, 0
        while steps <= n:  # longer: it leads to a circle that agent i is not on
            ahead = w.agent[e, target[j]] - 1
            if ahead < 0:
                free[i] = goes[i] = True
                break
            steps += 1
            if ahead == i:
                goes[i] = steps > 2  # two cannot change places
                break
            if target[ahead] == w.cell[e, ahead]:
                break
            height[ahead] = max(height[ahead], steps)
            j = ahead
    for i in range(n):
        for j in range(i):
            if free[i] and free[j] and target[i] == target[j]:
                if height[i] == height[j]:
                    loser = i if _precedes(p, w, e, row, j, i) else j
                else:
                    loser = i if height[i] < height[j] else j
                goes[loser] = False
    for i in range(n):
        if free[i] and goes[i]:
            j = i
            while True:
                ahead = w.agent[e, target[j]] - 1
                if ahead < 0:
                    break
                if not goes[ahead]:
                    goes[i] = False
                    break
                j = ahead


# A step


@compiled
def _act(p, w, b, e, row, actions):  # type: ignore[no-untyped-def]
    """All agents' actions, at once; drops in two stages are rewarded."""
    n = w.cell.shape[1]
    target, goes = p.scratch.target[row], p.scratch.goes[row]
    moving = False
    for i in range(n):
        here = np.int64(w.cell[e, i])
        there, action = here, actions[e, i]
        if p.msg_bits:
            w.message[e, i] = action // MOVES
            action %= MOVES
        if action == FORWARD:
            d = w.direction[e, i]
            there += (p.stride if d == 1 else -p.stride) if d < 2 else 2 * np.int64(d) - 5
            look = w.look[e, there]
            # Who carries a shelf is stopped by another, unless that is carried too and may move on
            if not look & INSIDE or (w.load[e, i] and look & SHELF and not look & LOADED):
                there = here
            moving = moving or there != here
        target[i] = there
    if moving:
        _resolve(p, w, e, row)
        for i in range(n):
            here = w.cell[e, i]
            if target[i] != here and goes[i]:
                w.agent[e, here] = 0
                w.look[e, here] &= GOAL | INSIDE if w.load[e, i] else GOAL | INSIDE | SHELF | REQUESTED
                if w.load[e, i]:
                    w.shelf[e, here] = 0
        for i in range(n):
            there = target[i]
            if there != w.cell[e, i] and goes[i]:
                w.cell[e, i] = there
                w.agent[e, there] = i + 1
                look = w.direction[e, i] + 1
                if w.load[e, i]:
                    shelf = w.load[e, i] - 1
                    w.shelf[e, there] = shelf + 1
                    w.place[e, shelf] = there
                    look |= SHELF | LOADED | (REQUESTED if w.requested[e, shelf] else 0)
                w.look[e, there] |= look
    for i in range(n):
        b.reward[e, i] = 0.0
        action, here = actions[e, i] % MOVES, w.cell[e, i]
        if action in (LEFT, RIGHT):
            d = w.direction[e, i]
            w.direction[e, i] = TURN_LEFT[d] if action == LEFT else TURN_RIGHT[d]
            w.look[e, here] = (w.look[e, here] & ~AGENT) | (w.direction[e, i] + 1)
        elif action == TOGGLE_LOAD and not w.load[e, i]:
            w.load[e, i] = w.shelf[e, here]
            if w.load[e, i]:
                w.look[e, here] |= LOADED
        elif action == TOGGLE_LOAD and not p.highway[here]:
            w.load[e, i] = 0
            w.look[e, here] &= ~LOADED
            if w.delivered[e, i]:
                b.reward[e, i] = 0.5
            w.delivered[e, i] = False


@compiled
def _deliver(p, w, b, e):  # type: ignore[no-untyped-def]
    """Rewards for requested shelves at the goals, and new requests for them; returns whether there were any."""
    n, shelves = w.cell.shape[1], p.shelves.shape[0]
    some = False
    for g in range(p.goals.shape[0]):
        goal = p.goals[g]
        if not w.look[e, goal] & REQUESTED:
            continue
        some = True
        left = pcg64.integer(w.rng[e], shelves - p.requests)
        new = 0
        while True:  # to the one that was drawn among those not requested
            if not w.requested[e, new]:
                if left == 0:
                    break
                left -= 1
            new += 1
        w.requested[e, w.shelf[e, goal] - 1] = False
        w.look[e, goal] &= ~REQUESTED
        w.requested[e, new] = True
        w.look[e, w.place[e, new]] |= REQUESTED
        carrier = w.agent[e, goal] - 1
        if p.reward == GLOBAL:
            for i in range(n):
                b.reward[e, i] += 1.0
        elif p.reward == INDIVIDUAL:
            b.reward[e, carrier] += 1.0
        else:
            w.delivered[e, carrier] = True
            b.reward[e, carrier] += 0.5
    return some


@intrinsic
def _copy(context, source, i, target, j, count):  # type: ignore[no-untyped-def]
    """`target.flat[j : j + count] = source.flat[i : i + count]`, in few wide moves: observing is mostly this.

    Both are C-ordered arrays of float32.
    """

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        arrays = [context.make_array(signature.args[k])(context, builder, args[k]) for k in (0, 2)]
        start, end = (builder.gep(array.data, [at]) for array, at in zip(arrays, (args[1], args[3]), strict=True))
        cgutils.raw_memcpy(builder, end, start, args[4], context.get_constant(types.intp, FLOAT))
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64, types.int64), generate


@compiled
def _observe(p, w, e, out):  # type: ignore[no-untyped-def]
    """Every agent's observation, into `out[e]`."""
    side = 2 * p.reach + 1
    for i in range(w.cell.shape[1]):
        here, d = np.int64(w.cell[e, i]), w.direction[e, i]
        row = (e * out.shape[1] + i) * out.shape[2]
        if p.observation == FLATTENED:
            out[e, i, 0], out[e, i, 1] = p.x[here], p.y[here]
            out[e, i, 2] = w.load[e, i] > 0
            for k in range(4):
                out[e, i, 3 + k] = d == k
            out[e, i, 7] = p.highway[here]
            k = SELF
            for dy in range(side):
                first = here + (dy - p.reach) * p.stride - p.reach
                for cell in range(first, first + side):
                    look = w.look[e, cell] & (AGENT | SHELF | REQUESTED)
                    if p.msg_bits == 0:
                        _copy(p.table, look * AROUND, out, row + k, AROUND)
                        k += AROUND
                        continue
                    for f in range(AROUND - 2):
                        out[e, i, k + f] = p.table[look, f]
                    k += AROUND - 2
                    said = w.message[e, w.agent[e, cell] - 1] if look & AGENT else 0
                    for bit in range(p.msg_bits):
                        out[e, i, k + bit] = (said >> bit) & 1
                    k += p.msg_bits
                    for f in range(2):
                        out[e, i, k + f] = p.table[look, AROUND - 2 + f]
                    k += 2
            continue
        k = 0
        if p.observation == IMAGE_DICT:
            for f in range(4):
                out[e, i, f] = d == f
            out[e, i, 4] = p.highway[here]
            out[e, i, 5] = w.load[e, i] > 0
            k = FEATURES
        # The first pixel's cell, and the steps from row to row and from pixel to pixel, as the agent looks
        up, left = p.reach * p.stride, p.reach
        first, down, right = here - up - left, p.stride, 1
        if p.directional and d == 1:
            first, down, right = here + up + left, -p.stride, -1
        elif p.directional and d == 2:
            first, down, right = here + up - left, 1, -p.stride
        elif p.directional and d == 3:
            first, down, right = here - up + left, -1, p.stride
        for f in range(p.table.shape[1]):
            for y in range(side):
                for x in range(side):
                    out[e, i, k] = p.table[w.look[e, first + y * down + x * right], f]
                    k += 1


@compiled_kernel
def advance(lo, hi, roll, start, p, w, b, actions):  # type: ignore[no-untyped-def]
    """See `KernelEnv`."""
    for t in range(roll[0]):
        begin(roll, lo, hi, t)
        for e in range(lo, hi):
            if not start:
                _act(p, w, b, e, lo, actions)
                delivered = _deliver(p, w, b, e)
                b.steps[e] += 1
                w.idle[e] = 0 if delivered else w.idle[e] + 1
                b.ended[e] = (p.max_steps > 0 and b.steps[e] >= p.max_steps) or (
                    p.max_idle > 0 and w.idle[e] >= p.max_idle
                )
                _observe(p, w, e, b.next_obs)
            if start or b.ended[e]:
                _begin(p, w, e, lo)
                b.steps[e] = 0
                _observe(p, w, e, b.obs)
            else:
                size = b.obs.shape[1] * b.obs.shape[2]
                _copy(b.next_obs, e * size, b.obs, e * size, size)
        finish(roll, lo, hi, t)


def features(layers: tuple[Any, ...]) -> NDArray[np.float32]:
    """What an agent sees in a cell, by its byte: `[256, feature]`, for a picture of these layers or, without, flat."""
    look = np.arange(256)
    agent = look & AGENT
    seen: dict[str, NDArray[Any]] = {
        "SHELVES": look & SHELF > 0,
        "REQUESTS": look & REQUESTED > 0,
        "AGENTS": agent > 0,
        "AGENT_DIRECTION": agent,
        "AGENT_LOAD": look & LOADED > 0,
        "GOALS": look & GOAL > 0,
        "ACCESSIBLE": (look & INSIDE > 0) & (agent == 0),
    }
    if layers:
        return np.stack([seen[layer] for layer in layers], 1).astype(np.float32)
    facing = np.maximum(agent - 1, 0)  # the package shows nobody as looking up
    columns = [seen["AGENTS"], *(facing == d for d in range(4)), seen["SHELVES"], seen["REQUESTS"]]
    return np.stack(columns, 1).astype(np.float32)
