"""The tutorial's test environment, done right.

Every agent has a state of `state_dim` numbers, normally distributed at the start of an episode. Each step adds
0.1 times normal noise to every number and 0.1 times the agent's first action number to all of them, and pays 1 where
|state[0]| < 2, else -1. An agent sees its own state. Other action numbers do nothing, as in the tutorial.

Per agent and episode of 200 steps: a = -sign(state[0]) earns 199.7, doing nothing 135, random actions 125.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.jit import jit
from shoal.types import Box, EnvSpec, Groups, GroupSpec, ShoalError, Step, Tree, View

RewardMode = Literal["individual", "cooperative", "competitive"]
LIMIT = 2.0


class Drift:
    """Batched; satisfies `VecEnv`.

    Args:
        num_envs: environments that step together.
        n_agents, state_dim, action_dim: as the tutorial's.
        max_steps: length of an episode; reaching it is a truncation.
        reward_mode: `individual`: each agent its own reward; `cooperative`: everyone the mean; `competitive`: zero-sum,
            each agent's reward minus the mean of the others'.
    """

    def __init__(
        self,
        num_envs: int = 1,
        n_agents: int = 2,
        state_dim: int = 4,
        action_dim: int = 2,
        max_steps: int = 200,
        reward_mode: RewardMode = "individual",
    ) -> None:
        for name, value in (("n_agents", n_agents), ("state_dim", state_dim), ("action_dim", action_dim)):
            if value < 1:
                raise ShoalError(f"{name} must be at least 1, not {value}")
        if num_envs < 1 or max_steps < 1:
            raise ShoalError(f"num_envs and max_steps must be at least 1, not {num_envs} and {max_steps}")
        if reward_mode not in RewardMode.__args__:  # type: ignore[attr-defined]
            raise ShoalError(f"reward_mode is individual, cooperative or competitive, not {reward_mode!r}")
        if reward_mode == "competitive" and n_agents < 2:
            raise ShoalError("competitive rewards need at least 2 agents")
        self.num_envs, self.max_steps, self.reward_mode = num_envs, max_steps, reward_mode
        names = tuple(f"agent_{i}" for i in range(n_agents))
        self.spec = EnvSpec({"agent": GroupSpec(names, (state_dim,), Box(action_dim))}, n_agents * state_dim)
        self.states = np.zeros((num_envs, n_agents, state_dim), np.float32)
        self.steps = np.zeros(num_envs, np.int64)
        self.random = np.random.default_rng(0)
        self.legal = {"agent": torch.zeros(num_envs, n_agents, 0, dtype=torch.bool)}
        self.never = {"agent": torch.zeros(num_envs, n_agents, dtype=torch.bool)}
        self.always = {"agent": torch.ones(num_envs, n_agents, dtype=torch.bool)}

    def _view(self) -> View:
        # A copy: the states go on changing, and what was shown must not.
        obs = torch.from_numpy(self.states.copy())
        return View({"agent": obs}, self.legal, obs.flatten(1))

    def reset(self, seed: int | None = None) -> View:
        """Start every environment anew; without a seed the random stream goes on."""
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.states = self.random.standard_normal(self.states.shape, np.float32)
        self.steps[:] = 0
        return self._view()

    def step(self, actions: Groups) -> Step:
        reward = np.empty(self.states.shape[:2], np.float32)
        _step(self.random, self.states, actions["agent"].numpy(), reward)
        self.steps += 1
        ended = self.steps >= self.max_steps
        view = successor = self._view()
        if ended.any():
            where = ended.nonzero()[0]
            self.states[where] = self.random.standard_normal((len(where), *self.states.shape[1:]), np.float32)
            self.steps[where] = 0
            view = self._view()
        paid = {"agent": torch.from_numpy(_shared(reward, self.reward_mode))}
        return Step(view, successor, paid, self.never, self.always, torch.from_numpy(ended))

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """The agents on the line of their first number: green inside the limits, red outside."""
        from PIL import Image, ImageDraw

        scale, (width, height) = 2, (480, 40 + 40 * self.states.shape[1])
        picture = Image.new("RGB", (width * scale, height * scale), "white")
        draw = ImageDraw.Draw(picture)

        def x(value: float) -> float:
            return (width / 2 + min(max(value, -5.0), 5.0) * width / 11) * scale

        draw.rectangle([x(-LIMIT), 0, x(LIMIT), height * scale], fill="#eef6ee")
        for tick in range(-5, 6):
            draw.line([x(tick), 0, x(tick), height * scale], fill="#dddddd", width=scale)
        for i, value in enumerate(self.states[index, :, 0]):
            y, r = (40 + 40 * i) * scale, 11 * scale
            inside = abs(value) < LIMIT
            draw.line([x(-5), y, x(5), y], fill="#bbbbbb", width=scale)
            draw.ellipse([x(value) - r, y - r, x(value) + r, y + r], fill="#3a9a5b" if inside else "#c8443c")
        draw.text((8 * scale, 6 * scale), f"step {self.steps[index]}", fill="#333333", font_size=12 * scale)
        return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))

    def state_dict(self) -> Tree:
        states, steps = torch.from_numpy(self.states.copy()), torch.from_numpy(self.steps.copy())
        return {"states": states, "steps": steps, "random": self.random.bit_generator.state}

    def load_state_dict(self, state: Tree) -> None:
        self.states, self.steps = state["states"].numpy().copy(), state["steps"].numpy().copy()
        self.random.bit_generator.state = state["random"]

    def close(self) -> None:
        pass


@jit()
def _step(random, states, actions, reward):  # type: ignore[no-untyped-def]
    """The dynamics of the tutorial's test script, and each agent's own reward."""
    for e in range(states.shape[0]):
        for i in range(states.shape[1]):
            push = 0.1 * min(max(actions[e, i, 0], -1.0), 1.0)
            for k in range(states.shape[2]):
                states[e, i, k] += 0.1 * random.standard_normal() + push
            reward[e, i] = 1.0 if abs(states[e, i, 0]) < LIMIT else -1.0


def _shared(reward: NDArray[np.float32], mode: RewardMode) -> NDArray[np.float32]:
    """`[env, agent]` rewards as the agents get them."""
    total: NDArray[np.float32] = reward.sum(1, keepdims=True)
    agents = reward.shape[1]
    if mode == "cooperative":
        return np.repeat(total / agents, agents, 1)
    if mode == "competitive":
        others: NDArray[np.float32] = (total - reward) / np.float32(agents - 1)
        return reward - others
    return reward


def names() -> list[str]:
    """The suite's environments."""
    return ["drift"]


def make(name: str, num_envs: int, **arguments: object) -> Drift:
    """A batch of `drift`."""
    return Drift(num_envs, **arguments)  # type: ignore[arg-type]


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of `make`, beside name and num_envs."""
    found = dict(inspect.signature(Drift).parameters)
    del found["num_envs"]
    return found


def hints(name: str) -> dict[str, Any]:
    """Types of those arguments."""
    return get_type_hints(Drift.__init__)


def sources(name: str) -> tuple[Any, ...]:
    """Whose docstrings say what they mean."""
    return (Drift,)
