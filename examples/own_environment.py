"""An environment of one's own: a PettingZoo `ParallelEnv` with two kinds of agents.

Two boats (continuous speed) and a buoy (left, stay, right) drift along a river and shall come together. Boats and buoy
see and do different things, so they are two groups, `boat` and `buoy`. Train it with

    shoal train maddpg examples/own_environment.py:make --total-steps 10000
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

import shoal


class River(ParallelEnv):
    """Positions are numbers on a line. Everybody loses the mean distance between the boats and the buoy."""

    metadata: ClassVar[dict[str, Any]] = {"name": "river"}

    def __init__(self, drift: float = 0.1, max_steps: int = 25) -> None:
        self.drift, self.max_steps = drift, max_steps
        self.possible_agents = ["boat_0", "boat_1", "buoy_0"]
        self.agents: list[str] = []
        self.random = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        # a boat sees itself and the buoy; the buoy sees itself and both boats
        return spaces.Box(-np.inf, np.inf, (2,) if agent.startswith("boat") else (3,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        # the networks act in [-1, 1]; shoal rescales to these bounds
        return spaces.Box(-0.3, 0.3, (1,), np.float32) if agent.startswith("boat") else spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents, self.steps = list(self.possible_agents), 0
        self.positions = self.random.uniform(-2, 2, 3)
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        self.steps += 1
        moves = [actions["boat_0"][0], actions["boat_1"][0], 0.1 * (actions["buoy_0"] - 1)]
        self.positions = self.positions + moves + self.drift * self.random.normal(size=3)
        distance = np.abs(self.positions[:2] - self.positions[2]).mean()
        over = self.steps >= self.max_steps
        observations, infos = self._observations(), {agent: {} for agent in self.agents}
        rewards = dict.fromkeys(self.agents, -float(distance))
        terminations = dict.fromkeys(self.agents, False)  # nothing here ends the game itself
        truncations = dict.fromkeys(self.agents, over)  # the time limit
        if over:
            self.agents = []
        return observations, rewards, terminations, truncations, infos

    def _observations(self) -> dict[str, Any]:
        one, two, buoy = self.positions
        seen = {"boat_0": [one, buoy], "boat_1": [two, buoy], "buoy_0": [buoy, one, two]}
        return {agent: np.array(seen[agent], np.float32) for agent in self.agents}  # new arrays each time


def make(drift: float = 0.1, max_steps: int = 25) -> River:
    """What `shoal train maddpg examples/own_environment.py:make --env.drift 0.2` calls.

    Args:
        drift: standard deviation of the river's push in each step.
        max_steps: length of an episode.
    """
    return River(drift, max_steps)


if __name__ == "__main__":
    shoal.check_env(make())
    print("the environment keeps its contract")
