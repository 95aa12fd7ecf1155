"""A game of one's own in turns: shoal train ippo examples/own_game.py:make

Nim: two players take one to three sticks from a heap in turn; whoever takes the last one wins. With a heap of 10 the
first player wins by leaving a multiple of four.
"""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv


class Nim(AECEnv):
    metadata: ClassVar[dict[str, Any]] = {"name": "nim"}

    def __init__(self, sticks: int = 10) -> None:
        self.sticks = sticks
        self.possible_agents = ["player_0", "player_1"]

    def observation_space(self, agent: str) -> spaces.Dict:
        return spaces.Dict(
            {"observation": spaces.MultiDiscrete([self.sticks + 1, 2]), "action_mask": spaces.MultiBinary(3)}
        )

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(3, start=1)

    def reset(self, seed: int | None = None, options: dict | None = None) -> None:
        self.heap = self.sticks
        self.agents = list(self.possible_agents)
        self.agent_selection = "player_0"
        self.rewards, self._cumulative_rewards = (dict.fromkeys(self.agents, 0.0) for _ in range(2))
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.infos = {agent: {} for agent in self.agents}

    def observe(self, agent: str) -> dict[str, np.ndarray]:
        mine = agent == self.agent_selection
        legal = np.array([mine and take <= self.heap for take in (1, 2, 3)], np.int8)
        return {"observation": np.array([self.heap, mine]), "action_mask": legal}

    def step(self, action: int | None) -> None:
        me = self.agent_selection
        if self.terminations[me]:
            self._was_dead_step(action)  # the empty step with which an agent leaves
            return
        other = self.possible_agents[1 - self.possible_agents.index(me)]
        self._cumulative_rewards[me] = 0.0
        self._clear_rewards()
        self.heap -= action
        if self.heap == 0:
            self.rewards |= {me: 1.0, other: -1.0}
            self.terminations = dict.fromkeys(self.agents, True)
        self.agent_selection = other
        self._accumulate_rewards()


def make(sticks: int = 10) -> Nim:
    return Nim(sticks)
