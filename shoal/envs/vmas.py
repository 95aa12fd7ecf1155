"""VMAS: multi-robot scenarios in two dimensions, batched in torch. From the package vmas, written for 1.5.

Agents of the same stem, observation and action space are a group; all see flat observations, and there is no global
state. An episode is cut off after `max_steps`, a truncation; a scenario that is finished earlier terminates for all.
All environments of a batch draw from one random stream, seeded by `reset`; nothing else in the process draws from it.

The package is GPL-3: it is called here, and imported only where it is used.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.envs.common.extras import require
from shoal.envs.common.spaces import AgentAdapter, group_agents
from shoal.types import Discrete, EnvSpec, Groups, ShoalError, Step, View, nearest

OPEN = True
SCENARIOS = [
    "balance", "ball_passage", "ball_trajectory", "buzz_wire", "discovery", "dispersion", "dropout", "flocking",
    "football", "give_way", "joint_passage", "joint_passage_size", "multi_give_way", "navigation", "passage",
    "reverse_transport", "road_traffic", "sampling", "transport", "wheel", "wind_flocking", "simple",
    "simple_adversary", "simple_crypto", "simple_push", "simple_reference", "simple_speaker_listener", "simple_spread",
    "simple_tag", "simple_world_comm",
]  # fmt: skip


class VmasEnvs:
    """A scenario in a batch of `num_envs`; satisfies `VecEnv`.

    Args:
        num_envs: environments in the batch.
        name: of the scenario.
        max_steps: after which an episode is cut off (100, as BenchMARL has it for most scenarios).
        continuous_actions: forces in two dimensions (and, where agents talk, words in [0, 1]); without, the package's
            choices for them, numbered through.
        arguments: of the scenario.

    Raises:
        ShoalError: no such scenario, or an argument that it does not take.
    """

    def __init__(
        self, num_envs: int, name: str, max_steps: int = 100, continuous_actions: bool = True, **arguments: Any
    ) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # gym, which comes with it, says that it is unmaintained
            vmas = require("vmas", "vmas")
            shared = require("vmas.simulator.environment", "vmas").Environment.vmas_random_state
        if num_envs < 1 or max_steps < 1:
            raise ShoalError(f"num_envs and max_steps must be at least 1, not {num_envs} and {max_steps}")
        self.num_envs, self.name, self.random, self._shared = num_envs, name, list(shared), shared
        with self._own_randomness(), warnings.catch_warnings():
            warnings.filterwarnings("error", "Scenario kwargs")  # arguments that the scenario does not take
            try:
                self.env: Any = vmas.make_env(
                    name,
                    num_envs,
                    continuous_actions=continuous_actions,
                    max_steps=max_steps,
                    seed=0,
                    terminated_truncated=True,
                    **arguments,
                )
            except (AssertionError, TypeError, UserWarning) as error:
                known = "" if name in SCENARIOS else f"; {nearest(name, SCENARIOS)}"
                raise ShoalError(f"vmas does not make {name} with {arguments}: {error}{known}") from error
            shown = self._observe()
        self.names = [agent.name for agent in self.env.agents]
        adapters = [
            AgentAdapter(
                agent,
                gymnasium.spaces.Box(-np.inf, np.inf, (shown[k].shape[1],)),
                gymnasium.spaces.Box(space.low, space.high)
                if continuous_actions
                else gymnasium.spaces.Discrete(int(space.n)),
            )
            for k, (agent, space) in enumerate(zip(self.names, self.env.action_space, strict=True))
        ]
        self.adapters = dict(zip(self.names, adapters, strict=True))
        groups = group_agents(adapters)
        self.spec = EnvSpec(groups)
        self.columns = {g: [self.names.index(agent) for agent in group.agents] for g, group in groups.items()}
        self.place = {self.names.index(a): (g, j) for g, group in groups.items() for j, a in enumerate(group.agents)}
        self.low, self.high = ([torch.as_tensor(getattr(a, side)) for a in adapters] for side in ("low", "high"))
        self.nobody = {n: torch.zeros(num_envs, g.num_agents, 0, dtype=torch.bool) for n, g in groups.items()}
        self.alive = {n: torch.ones(num_envs, g.num_agents, dtype=torch.bool) for n, g in groups.items()}
        self.seeded = False

    @contextlib.contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """The package has one random stream for all environments of the process: put this one's in its place."""
        before, self._shared[:] = list(self._shared), self.random
        try:
            with torch.no_grad():
                yield
        finally:
            self.random, self._shared[:] = list(self._shared), before

    def _observe(self) -> list[Tensor]:
        """What each agent sees, `[env, size]`."""
        (shown,) = self.env.get_from_scenario(
            get_observations=True, get_rewards=False, get_infos=False, get_dones=False
        )
        return [_flat(seen) for seen in shown]

    def _grouped(self, values: list[Tensor]) -> Groups:
        """A tensor an agent, `[env, ...]`, to one a group, `[env, agent, ...]`."""
        return {g: torch.stack([values[k] for k in columns], 1).float() for g, columns in self.columns.items()}

    def _view(self, shown: list[Tensor]) -> View:
        return View(self._grouped(shown), self.nobody, torch.zeros(self.num_envs, 0))

    def reset(self, seed: int | None = None) -> View:
        """Start every environment anew; without a seed the random stream goes on (or starts from 0)."""
        if seed is None and not self.seeded:
            seed = 0
        self.seeded = True
        with self._own_randomness():
            self.env.reset(seed=seed, return_observations=False)
            return self._view(self._observe())

    def step(self, actions: Groups) -> Step:
        if not self.seeded:
            raise ShoalError("reset the environment before its first step")
        with self._own_randomness():
            shown, rewards, terminated, truncated, _ = self.env.step([self._write(actions, k) for k in self.place])
            successor, ended = self._view([_flat(seen) for seen in shown]), terminated | truncated
            view = self._restart(successor, ended)
        for name, obs in successor.obs.items():
            if not torch.isfinite(obs).all():
                raise ShoalError(f"vmas/{self.name}: an observation of {name} holds NaN or infinity")
        stops = {name: terminated.unsqueeze(1).expand_as(alive).clone() for name, alive in self.alive.items()}
        return Step(view, successor, self._grouped([reward.flatten() for reward in rewards]), stops, self.alive, ended)

    def _write(self, actions: Groups, agent: int) -> Tensor:
        """The package's own actions `[env, size]` of an agent."""
        name, j = self.place[agent]
        action = actions[name][:, j]
        if isinstance(self.spec.groups[name].action, Discrete):
            return action.unsqueeze(1)
        low, high = self.low[agent], self.high[agent]
        return (low + (action.clamp(-1, 1) + 1) / 2 * (high - low)).clamp(low, high)

    def _restart(self, successor: View, ended: Tensor) -> View:
        """What to act on: the successor, or where an episode ended the next one's first observation."""
        if not ended.any():
            return successor
        if ended.all():
            self.env.reset(return_observations=False)
            return self._view(self._observe())
        for index in ended.nonzero().flatten().tolist():
            self.env.reset_at(index, return_observations=False)
        fresh = self._grouped(self._observe())
        obs = {name: seen.clone() for name, seen in successor.obs.items()}
        for name, seen in obs.items():
            seen[ended] = fresh[name][ended]
        return View(obs, successor.legal, successor.state)

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """The package's own picture `[height, width, 3]`."""
        with self._own_randomness():
            return np.asarray(self.env.render(mode="rgb_array", env_index=index), np.uint8)

    def close(self) -> None:
        if self.env.viewer is not None:
            self.env.viewer.close()


def _flat(seen: Tensor | dict[str, Any]) -> Tensor:
    """`[env, size]`; dicts in their order."""
    return torch.cat([_flat(part) for part in seen.values()], 1) if isinstance(seen, dict) else seen.flatten(1)


def names() -> list[str]:
    """The package's scenarios, without those for debugging."""
    return SCENARIOS


def make(name: str, num_envs: int, **arguments: Any) -> VmasEnvs:
    """`balance`, with the scenario's own arguments (`n_agents=3`), `max_steps` and `continuous_actions`."""
    return VmasEnvs(num_envs, name, **arguments)
