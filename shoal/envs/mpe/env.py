"""The environment around the particle world: batches, groups, threads, pictures."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.envs.common import pcg64
from shoal.envs.common.shares import Shares
from shoal.envs.mpe import physics
from shoal.envs.mpe.physics import MOVES, Buffers
from shoal.envs.mpe.world import Layout, World
from shoal.roll import ONCE, Roll
from shoal.types import Action, Box, Discrete, EnvSpec, Groups, GroupSpec, ShoalError, Step, Tree, View

THREAD_ENVS = 1024  # environments a thread must have to be worth waking
STATE = ("pos", "vel", "comm", "goal", "rng")  # what a checkpoint must hold


class ParticleEnv:
    """Batched environments of one scenario; satisfies `VecEnv`.

    Environment i draws from numpy's generator seeded with `seed + i`, so environment 0 starts its episodes exactly as
    the Python package does with `seed`.

    Args:
        scenario: a module with the functions the docstring of `shoal.envs.mpe.world` lists.
        num_envs: environments that step together.
        max_cycles: steps in an episode; reaching it is a truncation.
        continuous_actions: numbers in [-1, 1] instead of choices: for an agent that moves five (stay, left, right,
            down, up; a push of (right - left, up - down) / 2), then one for each word it can say.
        dynamic_rescaling: in pictures wider than the field, discs shrink with it; else they keep their size.
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
        dynamic_rescaling: bool = True,
        threads: int = 0,
        **arguments: Any,
    ) -> None:
        if num_envs < 1 or max_cycles < 1:
            raise ShoalError(f"num_envs and max_cycles must be at least 1, not {num_envs} and {max_cycles}")
        if unknown := [key for key in arguments if key not in scenario.Params._fields]:
            known = ", ".join(scenario.Params._fields) or "none"
            raise ShoalError(f"{scenario.__name__} takes no {', '.join(unknown)}; its own arguments: {known}")
        self.kernel = physics.kernel_of(scenario)
        self.scenario, self.num_envs, self.continuous = scenario, num_envs, continuous_actions
        self.params = scenario.Params(**{key: 0 if value is None else value for key, value in arguments.items()})
        self.layout: Layout = scenario.layout(self.params)
        self.max_cycles, self.dynamic_rescaling = max_cycles, dynamic_rescaling
        self.world = _world(self.layout, num_envs)
        self.shares = Shares(num_envs, threads, THREAD_ENVS)
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
        self.inputs: Groups = {}
        reward, terminated, alive = {}, {}, {}
        start = 0
        for name, group in self.spec.groups.items():
            stop = start + group.num_agents
            reward[name] = b.reward[:, start:stop]
            terminated[name] = b.terminated[:, None].expand(-1, group.num_agents)  # type: ignore[attr-defined]
            alive[name] = torch.ones(envs, group.num_agents, dtype=torch.bool)
            if self.continuous:
                columns = self.box[:, self.world.box_start[start] : self.world.box_start[stop]]
                own = columns.reshape(envs, group.num_agents, group.action.size)
                assert np.shares_memory(own, self.box) or group.action.size == 0
                self.inputs[name] = torch.from_numpy(own)
            else:
                self.inputs[name] = torch.from_numpy(self.discrete[:, start:stop])
            start = stop
        self._view, self._successor = self._as_view(b.obs), self._as_view(b.next_obs)
        self.result = Step(self._view, self._successor, reward, terminated, alive, b.ended)  # type: ignore[arg-type]

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
        self.shares.run(self.kernel, *self._work(ONCE, start=True))
        return self._view

    def step(self, actions: Groups) -> Step:
        if not self.seeded:
            raise ShoalError("reset the environment before its first step")
        for name, array in self.inputs.items():
            np.copyto(array.numpy(), actions[name].numpy())
        self.shares.run(self.kernel, *self._work(ONCE, start=False))
        return self.result

    def _work(self, roll: Roll, start: bool) -> tuple[Any, ...]:
        rules = start, self.params, self.world, self.buffers, self.max_cycles
        return roll, *rules, self.discrete, self.box, self.continuous

    def play(self, low: int, high: int, roll: Roll) -> None:
        """See `Compiled`."""
        self.kernel(low, high, *self._work(roll, start=False))

    def world_of(self, index: int) -> World:
        """Environment `index` as the scenario's functions see it; its arrays are the environment's own."""
        return physics.one.py_func(self.world, index)  # type: ignore[no-any-return]

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
        steps = torch.from_numpy(self.buffers.steps)
        return {**state, "steps": steps, "obs": self._view.state, "seeded": self.seeded}

    def load_state_dict(self, state: Tree) -> None:
        for name in STATE:
            array = getattr(self.world, name)
            array[...] = state[name].numpy().view(array.dtype)
        self.buffers.steps[:] = state["steps"].numpy()
        self._view.state.copy_(state["obs"])
        self.seeded = state["seeded"]

    def close(self) -> None:
        self.shares.close()


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
        before = groups.get(name, GroupSpec((), (agent.obs_size,), action, parts=agent.parts))
        groups[name] = replace(before, agents=(*before.agents, agent.name))
    return groups
