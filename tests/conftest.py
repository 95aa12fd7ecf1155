"""Small environments that tests share; one thread, so that two test processes do not fight for two cores."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

torch.set_num_threads(1)


class Relay(ParallelEnv):
    """Two kinds of agents: runners (continuous, float64 observations, leave after 4 steps) and callers (discrete).

    A caller earns 1 for calling the number the runners were shown; the episode is cut off after 7 steps.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "relay", "render_modes": ["rgb_array"]}
    leave_after = 4
    limit = 7

    def __init__(self, render_mode: str | None = None, callers: int = 1) -> None:
        self.render_mode = render_mode
        self.possible_agents = ["runner_0", "runner_1", *[f"caller_{i}" for i in range(callers)]]
        self.agents: list[str] = []
        self.random = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        size = 3 if agent.startswith("runner") else 2
        return spaces.Box(-10, 10, (size,), np.float64)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        if agent.startswith("runner"):
            return spaces.Box(np.array([0.0, -2.0], np.float32), np.array([1.0, 4.0], np.float32))
        return spaces.Discrete(3, start=1)

    def _observations(self) -> dict[str, Any]:
        shown = {}
        for agent in self.agents:
            size = self.observation_space(agent).shape[0]
            shown[agent] = np.full(size, self.time, np.float64)
            shown[agent][0] = self.number
        return shown

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.time, self.number = 0, int(self.random.integers(1, 4))
        return self._observations(), {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        self.last_actions = actions
        self.time += 1
        rewards: dict[str, Any] = {}
        for agent in self.agents:
            if agent.startswith("runner"):
                assert self.action_space(agent).contains(actions[agent]), actions[agent]
                rewards[agent] = float(actions[agent][0])
            else:
                rewards[agent] = int(actions[agent] == self.number)  # an int, as some environments return
        leaving = self.time == self.leave_after
        terminations = {a: leaving and a.startswith("runner") for a in self.agents}
        truncations = dict.fromkeys(self.agents, self.time >= self.limit)
        observations = self._observations()
        infos: dict[str, Any] = {a: {} for a in self.agents}
        self.agents = [a for a in self.agents if not (terminations[a] or truncations[a])]
        return observations, rewards, terminations, truncations, infos

    def render(self) -> np.ndarray | None:
        if self.render_mode != "rgb_array":
            return None
        return np.full((40, 60, 3), 20 * self.time, np.uint8)

    def state(self) -> np.ndarray:
        return np.array([self.time, self.number])


@pytest.fixture
def relay() -> type[Relay]:
    return Relay
