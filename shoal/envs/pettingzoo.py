"""Any PettingZoo `ParallelEnv` as a batch of environments, stepped one after the other in this process.

Agents with the same stem of their name (`knight_0`, `knight_1`: `knight`), observation shape and action space form
a group. Observations become float32, continuous actions are rescaled from [-1, 1] to the space's bounds, an agent that
has left is not `alive`, and a truncation is never a termination.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

from shoal import actions as action_spaces
from shoal.envs.common.extras import headless
from shoal.types import Action, Box, Discrete, EnvSpec, Groups, GroupSpec, ShoalError, Step, Tree, View, nearest

SERIAL = OPEN = True
Factory = Callable[[], Any]
CONSTANT = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Tuple, spaces.Dict)


class AgentAdapter:
    """One agent's spaces: how its observations are read and its actions written."""

    def __init__(self, agent: str, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        self.agent = agent
        self.masked = isinstance(observation, spaces.Dict) and "action_mask" in observation.spaces
        self.space: spaces.Space[Any] = observation["observation"] if self.masked else observation  # type: ignore[index]
        self.flatten = isinstance(self.space, CONSTANT)
        if self.flatten:
            flat = spaces.flatten_space(self.space)
            if not isinstance(flat, spaces.Box):
                raise ShoalError(f"the observation space of {agent} cannot be flattened: {self.space}")
            self.obs_shape: tuple[int, ...] = flat.shape
        elif isinstance(self.space, spaces.Box):
            self.obs_shape = self.space.shape or (1,)
        else:
            raise ShoalError(
                f"the observation space of {agent} is {self.space}; a Box, or a space that flattens to one, is needed"
            )
        self.action, self.offset, self.low, self.high = self._action(action)
        self.action_space = action

    def _action(self, space: spaces.Space[Any]) -> tuple[Action, int, NDArray[Any], NDArray[Any]]:
        none = np.zeros(0, np.float32)
        if isinstance(space, spaces.Discrete):
            return Discrete(int(space.n)), int(space.start), none, none
        if isinstance(space, spaces.Box):
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise ShoalError(
                    f"the action space of {self.agent} has no bounds ({space}): give it finite low and high, "
                    "to which actions in [-1, 1] are rescaled"
                )
            return Box(int(np.prod(space.shape))), 0, space.low.ravel(), space.high.ravel()
        raise ShoalError(f"the action space of {self.agent} is {space}; Discrete or Box is needed")

    def read(self, value: Any, place: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Observation `[*obs_shape]` and, for a masked agent, which actions are legal."""
        mask = None
        if self.masked:
            value, mask = value["observation"], np.asarray(value["action_mask"], bool)
            if mask.shape != (self.action.size,) or not mask.any():
                raise ShoalError(
                    f"{place}: the action mask of {self.agent} allows nothing or is not [{self.action.size}]"
                )
        if self.flatten:
            value = spaces.flatten(self.space, value)
        obs = np.asarray(value).reshape(self.obs_shape) if self.obs_shape == (1,) else np.asarray(value)
        if obs.shape != self.obs_shape:
            raise ShoalError(
                f"{place}: the observation of {self.agent} has shape {obs.shape}, its space says {self.obs_shape}"
            )
        if not np.isfinite(obs).all():
            raise ShoalError(f"{place}: the observation of {self.agent} holds NaN or infinity")
        return obs, mask

    def write(self, action: NDArray[Any]) -> Any:
        """The environment's own action from ours."""
        if isinstance(self.action, Discrete):
            return int(action) + self.offset
        space = self.action_space
        scaled = self.low + (action.clip(-1, 1) + 1) / 2 * (self.high - self.low)
        return scaled.astype(space.dtype).reshape(space.shape).clip(space.low, space.high)  # type: ignore[attr-defined]

    @property
    def kind(self) -> tuple[str, tuple[int, ...], Action, bool]:
        """Agents of the same kind share a group."""
        stem = re.sub(r"[_\-]?\d+$", "", self.agent) or "agent"
        return stem, self.obs_shape, self.action, self.masked


def group_agents(adapters: list[AgentAdapter]) -> dict[str, GroupSpec]:
    """Groups by kind, named by the stem; where unlike agents share a stem, all but the first get a number."""
    kinds: dict[Any, list[str]] = {}
    for adapter in adapters:
        kinds.setdefault(adapter.kind, []).append(adapter.agent)
    groups: dict[str, GroupSpec] = {}
    for (stem, obs_shape, action, masked), names in kinds.items():
        name, number = stem, 1
        while name in groups:
            number += 1
            name = f"{stem}_{number}"
        groups[name] = GroupSpec(tuple(names), obs_shape, action, masked)
    return groups


class ParallelEnvs:
    """`num_envs` environments of a PettingZoo factory; satisfies `VecEnv`.

    Episode k of environment i (counted from `first`) starts from a seed derived from (seed, i, k). A checkpoint holds
    those numbers and the actions since, from which a deterministic environment is brought back to where it was.

    Args:
        factory: makes one environment.
        num_envs: how many to make.
        name: for error messages.
        first: number of the first environment, where others of the same batch are elsewhere.

    Raises:
        ShoalError: spaces that cannot be used, or an observation or reward that is not what the spaces promise.
    """

    def __init__(self, factory: Factory, num_envs: int, name: str = "environment", first: int = 0) -> None:
        if num_envs < 1:
            raise ShoalError(f"num_envs must be at least 1, not {num_envs}")
        self.name, self.num_envs, self.first = name, num_envs, first
        self.envs = [factory() for _ in range(num_envs)]
        one = self.envs[0]
        agents = getattr(one, "possible_agents", None)
        if not agents:
            raise ShoalError(f"{name} has no possible_agents: shoal must know every agent before the first episode")
        adapters = [AgentAdapter(a, one.observation_space(a), one.action_space(a)) for a in agents]
        self.adapters = {adapter.agent: adapter for adapter in adapters}
        groups = group_agents(adapters)
        self.place = {a: (n, j) for n, group in groups.items() for j, a in enumerate(group.agents)}
        self.seed, self.episode = 0, [-1] * num_envs
        self.history: list[list[Groups]] = [[] for _ in range(num_envs)]
        self.steps = [0] * num_envs
        one.reset(seed=0)
        self.spec = EnvSpec(groups, self._state(one).size)
        self.view, self.successor = self._blank(), self._blank()
        blank = {n: torch.zeros(num_envs, g.num_agents) for n, g in groups.items()}
        self.reward = blank
        self.terminated = {n: torch.zeros_like(x, dtype=torch.bool) for n, x in blank.items()}
        self.alive = {n: torch.zeros_like(x, dtype=torch.bool) for n, x in blank.items()}
        self.ended = torch.zeros(num_envs, dtype=torch.bool)

    def _blank(self) -> View:
        obs, legal = {}, {}
        for name, g in self.spec.groups.items():
            obs[name] = torch.zeros(self.num_envs, g.num_agents, *g.obs_shape)
            legal[name] = torch.zeros(self.num_envs, g.num_agents, g.action.size if g.masked else 0, dtype=torch.bool)
        return View(obs, legal, torch.zeros(self.num_envs, self.spec.state_size))

    @staticmethod
    def _state(env: Any) -> NDArray[np.float32]:
        """The global state, flat; empty where there is none that works."""
        try:
            state = np.asarray(env.state())
            return state.astype(np.float32).ravel() if state.dtype.kind in "fiub" else np.zeros(0, np.float32)
        except Exception:  # PettingZoo's own environments raise NotImplementedError, TypeError or AttributeError here
            return np.zeros(0, np.float32)

    def _show(self, index: int, observations: dict[str, Any], into: View) -> None:
        """Write one environment's observations into a view; zeros for agents that are not there."""
        place = f"{self.name}, environment {index}, step {self.steps[index]}"
        for name, group in self.spec.groups.items():
            if len(observations) < self.spec.num_agents:
                into.obs[name][index] = 0.0
            if group.masked:
                into.legal[name][index] = False
                into.legal[name][index, :, 0] = True
        for agent, value in observations.items():
            obs, mask = self.adapters[agent].read(value, place)
            name, j = self.place[agent]
            into.obs[name].numpy()[index, j] = obs
            if mask is not None:
                into.legal[name][index, j] = torch.from_numpy(mask)
        if self.spec.state_size:
            state = self._state(self.envs[index])
            if state.size != self.spec.state_size:
                raise ShoalError(
                    f"{place}: state() has {state.size} numbers, at the start it had {self.spec.state_size}"
                )
            into.state[index] = torch.from_numpy(state)

    def episode_seed(self, index: int) -> int:
        """What the current episode of an environment was reset with."""
        numbers = [self.seed, self.first + index, self.episode[index]]
        return int(np.random.SeedSequence(numbers).generate_state(1)[0]) % 2**31

    def _start(self, index: int) -> None:
        self.episode[index] += 1
        self.history[index], self.steps[index] = [], 0
        observations, _ = self.envs[index].reset(seed=self.episode_seed(index))
        self._show(index, observations, self.view)

    def reset(self, seed: int | None = None) -> View:
        """Start every environment anew; without a seed with the seeds of the next episodes."""
        if seed is not None:
            self.seed, self.episode = seed, [-1] * self.num_envs
        for index in range(self.num_envs):
            self._start(index)
        return self.view

    def step(self, actions: Groups) -> Step:
        if self.episode[0] < 0:
            raise ShoalError("reset the environment before its first step")
        for index in range(self.num_envs):
            self._step_one(index, {name: action[index] for name, action in actions.items()})
            if self.ended[index]:
                self._start(index)
        return Step(self.view, self.successor, self.reward, self.terminated, self.alive, self.ended)

    def _step_one(self, index: int, actions: Groups) -> None:
        env = self.envs[index]
        if not self.history[index]:
            for terminated in self.terminated.values():
                terminated[index] = False
        self.history[index].append({name: action.clone() for name, action in actions.items()})
        self.steps[index] += 1
        acting = list(env.agents)
        given = {}
        for agent in acting:
            name, j = self.place[agent]
            given[agent] = self.adapters[agent].write(actions[name][j].numpy())
        observations, rewards, terminations, truncations, _ = env.step(given)
        for reward, alive in zip(self.reward.values(), self.alive.values(), strict=True):
            reward[index], alive[index] = 0.0, False
        left = set()
        for agent in acting:
            name, j = self.place[agent]
            self.reward[name][index, j] = self._reward(index, agent, rewards)
            self.alive[name][index, j] = True
            self.terminated[name][index, j] = bool(terminations[agent])
            if terminations[agent] or truncations[agent]:
                left.add(agent)
            if agent not in observations and not terminations[agent]:
                place = f"{self.name}, environment {index}, step {self.steps[index]}"
                raise ShoalError(f"{place}: no observation of {agent}, who is still there or was truncated")
        for agent in self.place.keys() - set(acting):  # it left earlier: nothing more to bootstrap from
            name, j = self.place[agent]
            self.terminated[name][index, j] = True
        staying = [agent for agent in env.agents if agent not in left]
        self.ended[index] = not staying
        self._show(index, {a: o for a, o in observations.items() if a in given}, self.successor)
        if len(staying) == len(self.place):
            self._copy_view(index)
        elif staying:
            self._show(index, {a: observations[a] for a in staying}, self.view)

    def _reward(self, index: int, agent: str, rewards: dict[str, Any]) -> float:
        value = float(rewards.get(agent, np.nan))
        if not np.isfinite(value):
            place = f"{self.name}, environment {index}, step {self.steps[index]}"
            raise ShoalError(f"{place}: the reward of {agent} is {value if agent in rewards else 'missing'}")
        return value

    def _copy_view(self, index: int) -> None:
        for name in self.view.obs:
            self.view.obs[name][index] = self.successor.obs[name][index]
            self.view.legal[name][index] = self.successor.legal[name][index]
        self.view.state[index] = self.successor.state[index]

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """The environment's own picture `[height, width, 3]`.

        Raises:
            ShoalError: it does not give one (it must be made with `render_mode="rgb_array"`).
        """
        picture = self.envs[index].render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
            raise ShoalError(f"{self.name} gave no picture [height, width, 3] from render()")
        return picture.astype(np.uint8)

    def state_dict(self) -> Tree:
        history = [{n: torch.stack([row[n] for row in rows]) for n in rows[0]} if rows else {} for rows in self.history]
        return {
            "seed": self.seed,
            "episode": list(self.episode),
            "history": history,
            "obs": dict(self.view.obs),
        }

    def load_state_dict(self, state: Tree) -> None:
        self.seed = state["seed"]
        for index, (episode, history) in enumerate(zip(state["episode"], state["history"], strict=True)):
            self.episode[index] = episode - 1
            if episode < 0:  # never reset
                self.episode[index] = -1
                continue
            self._start(index)
            for t in range(len(next(iter(history.values()), ()))):
                self._step_one(index, {name: rows[t] for name, rows in history.items()})
        started = [episode >= 0 for episode in state["episode"]]
        if any(not torch.equal(self.view.obs[n][started], obs[started]) for n, obs in state["obs"].items()):
            warnings.warn(
                f"{self.name} does not repeat an episode from its seed and actions: the run goes on, "
                "but not bit for bit as without the interruption",
                stacklevel=2,
            )

    def close(self) -> None:
        for env in self.envs:
            env.close()


def random_actions(env: ParallelEnvs, generator: torch.Generator) -> Groups:
    """Uniformly random legal actions for what the environments show now."""
    return {
        name: action_spaces.random(group.action, env.view.legal[name], generator)
        for name, group in env.spec.groups.items()
    }


def names() -> list[str]:
    """PettingZoo's registered parallel environments (not all of them are installed)."""
    headless()
    import pettingzoo

    return sorted(str(key) for key in getattr(pettingzoo, "parallel_registry", {}))


def make(name: str, num_envs: int, *, first: int = 0, **arguments: Any) -> ParallelEnvs:
    """`butterfly/pistonball-v6` by PettingZoo's own `make`, or `some.module` by its `parallel_env`."""
    headless()
    import pettingzoo

    if "." in name.split("/")[-1]:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ShoalError(f"cannot import {name!r}: {error}") from error
        return ParallelEnvs(lambda: module.parallel_env(**arguments), num_envs, name, first)
    known = names()
    if not any(name in (k, k.rsplit("-v", 1)[0]) for k in known):
        raise ShoalError(f"PettingZoo has no parallel environment {name!r}; {nearest(name, known)}")
    full = name if name in known else max((k for k in known if k.rsplit("-v", 1)[0] == name), default=name)
    try:
        return ParallelEnvs(lambda: pettingzoo.make("parallel", full, **arguments), num_envs, name, first)
    except (ImportError, DependencyNotInstalled) as error:
        family = full.split("/")[0]
        raise ShoalError(f"{name} is not installed: pip install 'pettingzoo[{family}]' ({error})") from error
