"""Many particle worlds at once: the physics of MPE compiled with numba, and the environment around it.

A scenario is a module (see `simple_spread`) with

    Params                  a NamedTuple of the scenario's own arguments, with their defaults
    layout(p)               the entities, as a `Layout`
    reset(p, w)             places the entities and chooses the goals of one environment, `w`
    reward(p, w, out)       writes every agent's reward into out[agent]
    observe(p, w, i, out)   writes agent i's observation into out[feature]
    terminal(p, w)          optional: whether the episode is over before its time limit
    colors(p, w)            optional, not compiled: colours that depend on the episode, `{entity: (r, g, b)}`

The functions on `w` are decorated with `compiled`, which neither counts references nor lets a function allocate arrays:
that is ten times faster here, since helpers of a few operations are called with a dozen arrays. The order of a step is
that of the package `mpe2`: forces from the old positions, then positions, then velocities.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numba.extending import overload
from numpy.typing import NDArray

from shoal.envs.mpe import pcg64
from shoal.envs.mpe.pcg64 import compiled
from shoal.types import Action, Box, Discrete, EnvSpec, Groups, GroupSpec, ShoalError, Step, Tree, View

DT = 0.1
DAMPING = 0.25
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3
MOVES = 5  # stay, left, right, down, up
THREAD_ENVS = 1024  # environments a thread must have to be worth waking


@dataclass(frozen=True)
class Agent:
    """An agent of a layout. `obs_size` is the width of what `observe` writes for it."""

    name: str
    obs_size: int
    size: float = 0.05
    movable: bool = True
    collide: bool = True
    silent: bool = True
    accel: float = 5.0
    max_speed: float = np.inf
    color: tuple[float, float, float] = (0.35, 0.35, 0.85)


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


STATE = ("pos", "vel", "comm", "goal", "rng")  # what a checkpoint must hold


class Buffers(NamedTuple):
    """What a step writes."""

    obs: NDArray[np.float32]  # [env, state]: every agent's observation, side by side
    next_obs: NDArray[np.float32]  # the same before an automatic reset
    reward: NDArray[np.float32]  # [env, agent]
    terminated: NDArray[np.bool_]  # [env]
    ended: NDArray[np.bool_]  # [env]
    steps: NDArray[np.int64]  # [env]: of the episode so far


# The scenario's functions are chosen by the type of its Params: compiled once a scenario, and cached on disk, which
# closures over compiled functions would not be.
SCENARIOS: dict[type, ModuleType] = {}
OPTIONS: dict[str, Any] = {
    "jit_options": {"_nrt": False, "forceinline": True, "error_model": "numpy"},
    "strict": False,  # a scenario may annotate its functions
}


def reset(p: Any, w: World) -> None: ...
def reward(p: Any, w: World, out: Any) -> None: ...
def observe(p: Any, w: World, i: int, out: Any) -> None: ...
def terminal(p: Any, w: World) -> bool:
    return False


def _scenario_function(p: Any, name: str) -> Callable[..., Any]:
    function = getattr(SCENARIOS[p.instance_class], name, terminal)
    return getattr(function, "py_func", function)


@overload(reset, **OPTIONS)
def _(p, w):  # type: ignore[no-untyped-def]
    return _scenario_function(p, "reset")


@overload(reward, **OPTIONS)
def _(p, w, out):  # type: ignore[no-untyped-def]
    return _scenario_function(p, "reward")


@overload(observe, **OPTIONS)
def _(p, w, i, out):  # type: ignore[no-untyped-def]
    return _scenario_function(p, "observe")


@overload(terminal, **OPTIONS)
def _(p, w):  # type: ignore[no-untyped-def]
    return _scenario_function(p, "terminal")


# Helpers for scenarios


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


# The step


@compiled
def _unit(x):  # type: ignore[no-untyped-def]
    """From [-1, 1] to [0, 1]."""
    return min(max(np.float64(x) * 0.5 + 0.5, 0.0), 1.0)


@compiled
def _decode(w, discrete, box, continuous):  # type: ignore[no-untyped-def]
    """Actions into forces and words, as mpe2's `_set_action`."""
    for i in range(w.vel.shape[0]):
        w.force[i, 0] = w.force[i, 1] = 0.0
        for c in range(w.comm.shape[1]):
            w.comm[i, c] = 0.0
        if continuous:
            k = w.box_start[i]
            if w.movable[i]:  # stay, left, right, down, up
                w.force[i, 0] = (_unit(box[k + 2]) - _unit(box[k + 1])) * w.accel[i]
                w.force[i, 1] = (_unit(box[k + 4]) - _unit(box[k + 3])) * w.accel[i]
                k += MOVES
            if not w.silent[i]:
                for c in range(w.comm.shape[1]):
                    w.comm[i, c] = _unit(box[k + c])
            continue
        action = discrete[i]
        if w.movable[i]:
            move = action % MOVES
            action //= MOVES
            if move == 1 or move == 2:
                w.force[i, 0] = w.accel[i] * (2 * move - 3)
            elif move == 3 or move == 4:
                w.force[i, 1] = w.accel[i] * (2 * move - 7)
        if not w.silent[i]:
            w.comm[i, action] = 1.0


@compiled
def _collide(w):  # type: ignore[no-untyped-def]
    """Contact forces between every pair that collides."""
    agents = w.vel.shape[0]
    for a in range(agents):
        for b in range(a + 1, w.pos.shape[0]):
            if not (w.collide[a] and w.collide[b]):
                continue
            dist = distance(w.pos, a, b)
            depth = (w.size[a] + w.size[b] - dist) / CONTACT_MARGIN
            if depth < -50.0 or dist == 0.0:  # a softplus below 2e-22: no force
                continue
            penetration = max(depth, 0.0) + np.log1p(np.exp(-abs(depth)))
            scale = CONTACT_FORCE / dist * (penetration * CONTACT_MARGIN)
            for d in range(2):
                push = (w.pos[a, d] - w.pos[b, d]) * scale
                if w.movable[a]:
                    w.force[a, d] += push
                if b < agents and w.movable[b]:
                    w.force[b, d] -= push


@compiled
def _integrate(w):  # type: ignore[no-untyped-def]
    for i in range(w.vel.shape[0]):
        if not w.movable[i]:
            continue
        for d in range(2):
            w.pos[i, d] += w.vel[i, d] * DT
            w.vel[i, d] = w.vel[i, d] * (1 - DAMPING) + w.force[i, d] * DT
        speed = np.sqrt(w.vel[i, 0] ** 2 + w.vel[i, 1] ** 2)
        if speed > w.max_speed[i]:
            w.vel[i, 0] = w.vel[i, 0] / speed * w.max_speed[i]
            w.vel[i, 1] = w.vel[i, 1] / speed * w.max_speed[i]


@compiled
def _observe_all(p, w, out):  # type: ignore[no-untyped-def]
    for i in range(w.vel.shape[0]):
        observe(p, w, i, out[w.obs_start[i] : w.obs_start[i + 1]])


@compiled
def _restart(p, w, out):  # type: ignore[no-untyped-def]
    for i in range(w.vel.shape[0]):
        w.vel[i, 0] = w.vel[i, 1] = 0.0
        for c in range(w.comm.shape[1]):
            w.comm[i, c] = 0.0
    reset(p, w)
    _observe_all(p, w, out)


@compiled
def _one(w, e):  # type: ignore[no-untyped-def]
    """Environment e of all of them."""
    return World(
        w.pos[e], w.vel[e], w.comm[e], w.goal[e], w.rng[e], w.force[e], w.order[e], w.size, w.collide, w.movable,
        w.silent, w.accel, w.max_speed, w.obs_start, w.box_start,
    )  # fmt: skip


@cache
def _kernels(scenario: str, version: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """`reset_range` and `step_range` over environments lo..hi-1.

    numba's cache looks at the file of these functions alone; `version`, a hash of every file they are built from, makes
    a changed scenario compile again. Each scenario has its own files in the cache: numba loads such a file with the
    types in it, and those of somebody's own module are not to be had wherever another scenario is used.
    """

    def reset_range(lo, hi, p, worlds, buffers):  # type: ignore[no-untyped-def]
        version  # noqa: B018
        for e in range(lo, hi):
            buffers.steps[e] = 0
            _restart(p, _one(worlds, e), buffers.obs[e])

    def step_range(lo, hi, p, worlds, buffers, max_cycles, discrete, box, continuous):  # type: ignore[no-untyped-def]
        version  # noqa: B018
        for e in range(lo, hi):
            w = _one(worlds, e)
            _decode(w, discrete[e], box[e], continuous)
            _collide(w)
            _integrate(w)
            buffers.steps[e] += 1
            reward(p, w, buffers.reward[e])
            _observe_all(p, w, buffers.next_obs[e])
            truncated = buffers.steps[e] >= max_cycles
            buffers.terminated[e] = not truncated and terminal(p, w)
            buffers.ended[e] = truncated or buffers.terminated[e]
            if buffers.ended[e]:
                buffers.steps[e] = 0
                _restart(p, w, buffers.obs[e])
            else:
                for k in range(buffers.obs.shape[1]):
                    buffers.obs[e, k] = buffers.next_obs[e, k]

    for kernel in (reset_range, step_range):
        kernel.__qualname__ += f".{scenario}"
    compile_ = njit(nogil=True, cache=True, _nrt=False, error_model="numpy")
    return compile_(reset_range), compile_(step_range)


def _version(scenario: ModuleType) -> str:
    digest = hashlib.sha256()
    for path in [Path(__file__), Path(pcg64.__file__), Path(str(scenario.__file__))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


class ParticleEnv:
    """Batched environments of one scenario; satisfies `VecEnv`.

    Environment i draws from numpy's generator seeded with `seed + i`, so environment 0 starts its episodes exactly as
    the Python package does with `seed`.

    Args:
        scenario: a module with the functions this module's docstring lists.
        num_envs: environments that step together.
        max_cycles: steps in an episode; reaching it is a truncation.
        continuous_actions: numbers in [-1, 1] instead of choices: for an agent that moves five (stay, left, right,
            down, up; a push of (right - left, up - down) / 2), then one for each word it can say.
        threads: 0 chooses by the number of environments.
        arguments: the scenario's own.

    Raises:
        ShoalError: an argument the scenario does not have, or an impossible value.
    """

    def __init__(
        self,
        scenario: ModuleType,
        num_envs: int = 1,
        *,
        max_cycles: int = 25,
        continuous_actions: bool = False,
        threads: int = 0,
        **arguments: Any,
    ) -> None:
        if num_envs < 1 or max_cycles < 1:
            raise ShoalError(f"num_envs and max_cycles must be at least 1, not {num_envs} and {max_cycles}")
        if unknown := [key for key in arguments if key not in scenario.Params._fields]:
            known = ", ".join(scenario.Params._fields) or "none"
            raise ShoalError(f"{scenario.__name__} takes no {', '.join(unknown)}; its own arguments: {known}")
        for needed in ("Params", "layout", "reset", "reward", "observe"):
            if not hasattr(scenario, needed):
                raise ShoalError(f"the scenario {scenario.__name__} has no {needed}")
        SCENARIOS[scenario.Params] = scenario
        self.scenario, self.num_envs, self.continuous = scenario, num_envs, continuous_actions
        self.params = scenario.Params(**{key: 0 if value is None else value for key, value in arguments.items()})
        self.layout: Layout = scenario.layout(self.params)
        self.max_cycles = max_cycles
        self.world = _world(self.layout, num_envs)
        self.reset_kernel, self.step_kernel = _kernels(scenario.__name__, _version(scenario))
        self.threads = threads or max(1, min(os.cpu_count() or 1, num_envs // THREAD_ENVS))
        self.pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None
        groups = _groups(self.layout, continuous_actions)
        self.spec = EnvSpec(groups, state_size=int(self.world.obs_start[-1]))
        self._allocate()
        self.seeded = False

    def _allocate(self) -> None:
        envs, agents, width = self.num_envs, len(self.layout.agents), self.spec.state_size
        self.buffers = Buffers(
            obs=np.zeros((envs, width), np.float32),
            next_obs=np.zeros((envs, width), np.float32),
            reward=np.zeros((envs, agents), np.float32),
            terminated=np.zeros(envs, np.bool_),
            ended=np.zeros(envs, np.bool_),
            steps=np.zeros(envs, np.int64),
        )
        b = Buffers(*[torch.from_numpy(array) for array in self.buffers])  # type: ignore[arg-type]
        self.discrete = np.zeros((envs, 0 if self.continuous else agents), np.int64)
        self.box = np.zeros((envs, int(self.world.box_start[-1]) if self.continuous else 0), np.float32)
        self.inputs: dict[str, NDArray[Any]] = {}
        reward, terminated, alive = {}, {}, {}
        start = 0
        for name, group in self.spec.groups.items():
            stop = start + group.num_agents
            reward[name] = b.reward[:, start:stop]
            terminated[name] = b.terminated[:, None].expand(-1, group.num_agents)  # type: ignore[attr-defined]
            alive[name] = torch.ones(envs, group.num_agents, dtype=torch.bool)
            if self.continuous:
                columns = self.box[:, self.world.box_start[start] : self.world.box_start[stop]]
                self.inputs[name] = columns.reshape(envs, group.num_agents, group.action.size)
                assert np.shares_memory(self.inputs[name], self.box) or group.action.size == 0
            else:
                self.inputs[name] = self.discrete[:, start:stop]
            start = stop
        self._view, self._successor = self._as_view(b.obs), self._as_view(b.next_obs)
        self._step = Step(self._view, self._successor, reward, terminated, alive, b.ended)  # type: ignore[arg-type]

    def _as_view(self, state: Any) -> View:
        obs, legal, start = {}, {}, 0
        for name, group in self.spec.groups.items():
            stop = start + group.num_agents * group.obs_size
            obs[name] = state[:, start:stop].unflatten(1, (group.num_agents, group.obs_size))
            legal[name] = torch.zeros(self.num_envs, group.num_agents, 0, dtype=torch.bool)
            start = stop
        return View(obs, legal, state)

    def reset(self, seed: int | None = None) -> View:
        """Start every environment anew; without a seed the streams go on (or start from 0)."""
        if seed is not None or not self.seeded:
            self.world.rng[:] = pcg64.streams([(seed or 0) + i for i in range(self.num_envs)])
            self.seeded = True
        self._run(self.reset_kernel)
        return self._view

    def step(self, actions: Groups) -> Step:
        if not self.seeded:
            raise ShoalError("reset the environment before its first step")
        for name, array in self.inputs.items():
            np.copyto(array, actions[name].numpy())
        self._run(self.step_kernel, self.max_cycles, self.discrete, self.box, self.continuous)
        return self._step

    def _run(self, kernel: Callable[..., None], *arguments: Any) -> None:
        if self.pool is None:
            kernel(0, self.num_envs, self.params, self.world, self.buffers, *arguments)
            return
        edges = np.linspace(0, self.num_envs, self.threads + 1).astype(int).tolist()
        work = (self.params, self.world, self.buffers, *arguments)
        others = [self.pool.submit(kernel, lo, hi, *work) for lo, hi in pairwise(edges[1:])]
        kernel(edges[0], edges[1], *work)
        for other in others:
            other.result()

    def world_of(self, index: int) -> World:
        """Environment `index` as the scenario's functions see it; its arrays are the environment's own."""
        return _one.py_func(self.world, index)  # type: ignore[no-any-return]

    def colors(self, index: int) -> list[tuple[float, float, float]]:
        """Red, green and blue in 0..1 of every entity of one environment."""
        colors = [entity.color for entity in self.layout.entities]
        special = getattr(self.scenario, "colors", None)
        for entity, color in special(self.params, self.world_of(index)).items() if special else ():
            colors[entity] = color
        return colors

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """A picture `[height, width, 3]` of one environment."""
        from shoal.envs.mpe.draw import draw

        return draw(self, index)

    def state_dict(self) -> Tree:
        state: Tree = {name: torch.from_numpy(getattr(self.world, name).view()) for name in STATE if name != "rng"}
        state["rng"] = torch.from_numpy(self.world.rng.view(np.int64))
        return {**state, "steps": torch.from_numpy(self.buffers.steps), "obs": self._view.state}

    def load_state_dict(self, state: Tree) -> None:
        for name in STATE:
            array = getattr(self.world, name)
            array[...] = state[name].numpy().view(array.dtype)
        self.buffers.steps[:] = state["steps"].numpy()
        self._view.state.copy_(state["obs"])
        self.seeded = True

    def close(self) -> None:
        if self.pool:
            self.pool.shutdown()


def _world(layout: Layout, envs: int) -> World:
    agents, entities = layout.agents, layout.entities
    box_sizes = [MOVES * a.movable + layout.dim_c * (not a.silent) for a in agents]
    return World(
        pos=np.zeros((envs, len(entities), 2)),
        vel=np.zeros((envs, len(agents), 2)),
        comm=np.zeros((envs, len(agents), layout.dim_c)),
        goal=np.zeros((envs, layout.goals), np.int64),
        rng=np.zeros((envs, 6), np.uint64),
        force=np.zeros((envs, len(agents), 2)),
        order=np.zeros((envs, len(entities)), np.int64),
        size=np.array([entity.size for entity in entities], np.float64),
        collide=np.array([entity.collide for entity in entities], np.bool_),
        movable=np.array([a.movable for a in agents], np.bool_),
        silent=np.array([a.silent for a in agents], np.bool_),
        accel=np.array([a.accel for a in agents], np.float64),
        max_speed=np.array([a.max_speed for a in agents], np.float64),
        obs_start=np.cumsum([0] + [a.obs_size for a in agents]),
        box_start=np.cumsum([0, *box_sizes]),
    )


def _groups(layout: Layout, continuous: bool) -> dict[str, GroupSpec]:
    groups: dict[str, GroupSpec] = {}
    for agent in layout.agents:
        name = agent.name.rsplit("_", 1)[0]
        if continuous:
            action: Action = Box(MOVES * agent.movable + layout.dim_c * (not agent.silent))
        else:
            action = Discrete((MOVES if agent.movable else 1) * (1 if agent.silent else layout.dim_c))
        before = groups.get(name, GroupSpec((), (agent.obs_size,), action))
        groups[name] = GroupSpec((*before.agents, agent.name), before.obs_shape, before.action)
    return groups
