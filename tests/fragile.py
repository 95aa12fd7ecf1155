"""An environment that breaks when it is told to, or at random; and one that steps many worlds at once."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
import time
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv
from torch import Tensor

from shoal.types import Discrete, EnvSpec, GroupSpec, Step, View

IN_WORKER = "pytest" not in sys.modules


def fail(how: str) -> None:
    if how == "raise":
        raise RuntimeError("the dam broke")
    if how == "hang":
        while True:
            time.sleep(0.01)
    if how == "stuck":  # in C, without giving Python's lock away
        ctypes.PyDLL(None).sleep(1000)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(3)


FAULTS = ["", "raise", "hang", "stuck", "kill", "exit"]


class Fragile(ParallelEnv):
    """Two agents see a random number, the step and their last action; an episode is cut off after 6 steps.

    Args:
        obey: the first agent's action k brings about `FAULTS[k]`.
        fault: happens in worker processes only.
        after: steps of all environments of a worker after which it does; 0: never.
        chance: that it does, in each step.
        signal: comes at any moment in the five seconds after a worker's first step.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "fragile"}

    steps = 0

    def __init__(
        self, obey: bool = False, fault: str = "", after: int = 0, chance: float = 0.0, signal: int = 0
    ) -> None:
        self.obey, self.fault, self.after, self.chance, self.signal = obey, fault, after, chance, signal
        self.possible_agents = ["a_0", "a_1"]
        self.agents: list[str] = []
        self.random = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-100, 100, (3,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(len(FAULTS))

    def _observations(self, actions: dict[str, Any]) -> dict[str, Any]:
        return {a: np.array([self.number, self.time, actions.get(a, 0)], np.float32) for a in self.agents}

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents, self.time, self.number = list(self.possible_agents), 0, self.random.normal()
        return self._observations({}), {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        if self.obey:
            fail(FAULTS[actions["a_0"]])
        Fragile.steps += 1
        if IN_WORKER and self.signal and Fragile.steps == 1:
            threading.Timer(5 * random.random(), os.kill, (os.getpid(), self.signal)).start()
        if IN_WORKER and (Fragile.steps == self.after or random.random() < self.chance):
            fail(self.fault)
        self.time += 1
        over = self.time >= 6
        observations = self._observations(actions)
        rewards = {a: float(self.random.normal() + (action == 2)) for a, action in actions.items()}
        flags = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, over)
        infos: dict[str, Any] = {a: {} for a in self.agents}
        self.agents = [] if over else self.agents
        return observations, rewards, *flags, infos

    def render(self) -> Any:
        return np.full((2, 3, 3), self.time, np.uint8)


class Walks:
    """A `VecEnv` without a state: everybody walks at random, `num_envs` worlds from one stream."""

    def __init__(self, num_envs: int = 1) -> None:
        self.num_envs = num_envs
        self.spec = EnvSpec({"walker": GroupSpec(("walker_0",), (1,), Discrete(2))})
        self.random = torch.Generator()

    def _view(self) -> View:
        legal = torch.zeros(self.num_envs, 1, 0, dtype=torch.bool)
        return View({"walker": self.place.view(-1, 1, 1)}, {"walker": legal}, torch.zeros(self.num_envs, 0))

    def reset(self, seed: int | None = None) -> View:
        if seed is not None:
            self.random.manual_seed(seed)
        self.place = torch.zeros(self.num_envs)
        return self._view()

    def step(self, actions: dict[str, Tensor]) -> Step:
        self.place = self.place + torch.randn(self.num_envs, generator=self.random)
        ended = self.place.abs() > 2
        successor = self._view()
        self.place = self.place * ~ended
        flags = {"walker": ended.unsqueeze(1)}
        alive = {"walker": torch.ones(self.num_envs, 1, dtype=torch.bool)}
        return Step(self._view(), successor, {"walker": successor.obs["walker"][..., 0]}, flags, alive, ended)

    def close(self) -> None: ...
