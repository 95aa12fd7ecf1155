"""gymnasium environments of several agents, as lbforaging and rware have them, as PettingZoo `ParallelEnv`s.

Spaces, observations and actions are tuples there, an item an agent; rewards are a list; one flag ends the episode for
all, and the time limit comes back as a termination.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from shoal.envs.common.extras import unversioned
from shoal.types import ShoalError, nearest


class TupleEnv:
    """A PettingZoo `ParallelEnv` around `env`; agents are `agent_0`, `agent_1`, ...

    Args:
        env: made without gymnasium's wrappers.
        cut_off: whether the episode that just ended did so by its time limit only.
        forget: called before a reset, to clear what the package would carry over from the episode before.
    """

    def __init__(
        self, env: Any, cut_off: Callable[[Any], bool], forget: Callable[[Any], None] = lambda env: None
    ) -> None:
        self.env, self.cut_off, self.forget = env, cut_off, forget
        self.possible_agents = [f"agent_{i}" for i in range(len(env.action_space))]
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> Any:
        return self.env.observation_space[self.possible_agents.index(agent)]

    def action_space(self, agent: str) -> Any:
        return self.env.action_space[self.possible_agents.index(agent)]

    def _each(self, values: Any) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values, strict=True))

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.forget(self.env)
        observations, _ = self.env.reset(seed=seed)
        self.agents = list(self.possible_agents)
        return self._each(observations), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        given = tuple(actions[agent] for agent in self.possible_agents)
        observations, rewards, ended, cut, _ = self.env.step(given)
        if ended and self.cut_off(self.env):
            ended, cut = False, True
        if ended or cut:
            self.agents = []
        flags = (dict.fromkeys(self.possible_agents, bool(flag)) for flag in (ended, cut))
        return self._each(observations), self._each(map(float, rewards)), *flags, self._each([{}] * len(rewards))

    def render(self) -> NDArray[np.uint8]:
        return np.asarray(self.env.render(mode="rgb_array"), np.uint8)

    def close(self) -> None:
        if getattr(self.env, "viewer", None) or getattr(self.env, "renderer", None):
            self.env.close()


def registered(package: ModuleType, name: str) -> Any:
    """gymnasium's entry of the environment that `package` registers as `name`, with or without its version.

    Raises:
        ShoalError: it registers none of that name.
    """
    known = {id: s for id, s in gymnasium.registry.items() if str(s.entry_point).startswith(package.__name__)}
    found = sorted(id for id in known if name in (id, unversioned(id)))
    if not found:
        raise ShoalError(f"{package.__name__} has no {name!r}; {nearest(name, map(unversioned, known))}")
    return known[found[-1]]


def create(spec: Any, **arguments: Any) -> Any:
    """An environment without gymnasium's wrappers, some of its registered arguments replaced.

    Raises:
        ShoalError: it does not take the arguments.
    """
    arguments = {k: v for k, v in {**spec.kwargs, **arguments}.items() if k != "render_mode"}
    try:
        return load_env_creator(str(spec.entry_point))(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ShoalError(f"{spec.id} is not made with {arguments}: {error}") from error
