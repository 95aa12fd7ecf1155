"""Distant goals that pay nothing on the way: what a hierarchy is for.

    expedition    every agent of a team must stand at its own far beacon at the same time

Agents start near the middle of the square [-1, 1]^2 and move at most `speed` in a step (stay, left, right, down, up).
Each has a beacon in one of the four corners, drawn anew for every episode. When all agents of a team are within
`radius` of their beacons in the same step, each of them earns 1 and the team has left; the episode ends when all teams
have, or at `max_steps` (a truncation). Nothing else pays.

A corner is farther away than a random walk gets: with the defaults, random play succeeds in none of 10,000 episodes.
An agent sees its place, its beacon's place, and where the others of its team are, relative to it. The global state is
everybody's place and beacon. Returns are per agent in [0, 1].
"""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.types import SELF, Discrete, EnvSpec, Groups, GroupSpec, Part, ShoalError, Step, Tree, View, columns

MOVES = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
CORNERS = torch.tensor([[-0.9, -0.9], [-0.9, 0.9], [0.9, -0.9], [0.9, 0.9]])


class Expedition:
    """Batched; satisfies `VecEnv`.

    Args:
        num_envs: environments that step together.
        n_agents: agents in all, in the order of the teams.
        n_teams: teams, of equally many agents.
        speed: distance of a step.
        radius: how near is there.
        max_steps: length of an episode.
    """

    def __init__(
        self,
        num_envs: int = 1,
        n_agents: int = 2,
        n_teams: int = 1,
        speed: float = 0.05,
        radius: float = 0.2,
        max_steps: int = 60,
    ) -> None:
        if min(num_envs, n_agents, n_teams, max_steps) < 1 or n_agents % n_teams:
            raise ShoalError(f"{n_agents} agents in {n_teams} teams: teams must be equally large, and all at least 1")
        if speed <= 0 or radius <= 0:
            raise ShoalError(f"speed and radius must be above 0, not {speed} and {radius}")
        self.num_envs, self.n_agents, self.n_teams = num_envs, n_agents, n_teams
        self.speed, self.radius, self.max_steps = speed, radius, max_steps
        names = tuple(f"agent_{i}" for i in range(n_agents))
        self.mates = n_agents // n_teams
        parts = Part(SELF, 4), Part("other", 2, self.mates - 1)
        self.spec = EnvSpec({"agent": GroupSpec(names, (columns(parts),), Discrete(5), parts=parts)}, 4 * n_agents)
        self.generator = torch.Generator().manual_seed(0)
        self.place = torch.zeros(num_envs, n_agents, 2)
        self.beacon = torch.zeros(num_envs, n_agents, 2)
        self.left = torch.zeros(num_envs, n_agents, dtype=torch.bool)
        self.steps = torch.zeros(num_envs, dtype=torch.int64)
        self.legal = {"agent": torch.zeros(num_envs, n_agents, 0, dtype=torch.bool)}

    def _view(self) -> View:
        place = self.place.unflatten(1, (self.n_teams, self.mates))
        apart = place.unsqueeze(2) - place.unsqueeze(3)  # [env, team, agent, other, 2]
        others = ~torch.eye(self.mates, dtype=torch.bool)
        apart = apart[:, :, others].unflatten(2, (self.mates, self.mates - 1)).flatten(3).flatten(1, 2)
        obs = torch.cat([self.place, self.beacon, apart], -1)
        state = torch.cat([self.place, self.beacon], -1).flatten(1)
        return View({"agent": obs.masked_fill(self.left.unsqueeze(-1), 0.0)}, self.legal, state)

    def _start(self, where: Tensor) -> None:
        shape = (len(where), self.n_agents)
        self.place[where] = torch.rand(*shape, 2, generator=self.generator) * 0.2 - 0.1
        self.beacon[where] = CORNERS[torch.randint(4, shape, generator=self.generator)]
        self.left[where], self.steps[where] = False, 0

    def reset(self, seed: int | None = None) -> View:
        """Start every environment anew; without a seed the random stream goes on."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self._start(torch.arange(self.num_envs))
        return self._view()

    def step(self, actions: Groups) -> Step:
        chosen = actions["agent"]
        if not ((chosen >= 0) & (chosen < 5)).all():
            raise ShoalError("actions of agent must be 0..4")
        alive = ~self.left
        self.place = (self.place + self.speed * MOVES[chosen] * alive.unsqueeze(-1)).clamp(-1, 1)
        self.steps += 1
        there = (self.place - self.beacon).norm(dim=-1) <= self.radius
        team = there.unflatten(1, (self.n_teams, self.mates)).all(-1).repeat_interleave(self.mates, 1)
        reward = {"agent": (team & alive).float()}
        self.left = self.left | team
        terminated = {"agent": self.left.clone()}
        ended = self.left.all(1) | (self.steps >= self.max_steps)
        view = successor = self._view()
        if ended.any():
            self._start(ended.nonzero().squeeze(1))
            view = self._view()
        return Step(view, successor, reward, terminated, {"agent": alive}, ended)

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """Agents as discs, their beacons as circles of the same colour."""
        from PIL import Image, ImageColor, ImageDraw

        size, scale = 320, 2
        picture = Image.new("RGB", (size * scale, size * scale), "white")
        draw = ImageDraw.Draw(picture)

        def disc(place: Tensor, radius: float, **style: Any) -> None:
            x, y = ((1.1 + v * s) / 2.2 * size * scale for v, s in zip(place.tolist(), (1, -1), strict=True))
            r = radius / 2.2 * size * scale
            draw.ellipse([x - r, y - r, x + r, y + r], **style)

        for i in range(self.n_agents):
            color = ImageColor.getrgb(f"hsv({360 * i // self.n_agents},70%,75%)")
            ring = self.radius * (1 - 0.5 * i / self.n_agents)  # of several in one corner, one in the other
            disc(self.beacon[index, i], ring, outline=color, width=4)
            if not self.left[index, i]:
                disc(self.place[index, i], 0.05, fill=color)
        draw.text((12, 8), f"step {int(self.steps[index])} of {self.max_steps}", fill="#333333", font_size=26)
        return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))

    def state_dict(self) -> Tree:
        arrays = {name: getattr(self, name) for name in ("place", "beacon", "left", "steps")}
        return {**arrays, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Tree) -> None:
        for name in ("place", "beacon", "left", "steps"):
            setattr(self, name, state[name].clone())
        self.generator.set_state(state["generator"])

    def close(self) -> None:
        pass


def names() -> list[str]:
    """The suite's environments."""
    return ["expedition"]


def make(name: str, num_envs: int, **arguments: Any) -> Expedition:
    """A batch of `expedition`."""
    return Expedition(num_envs, **arguments)


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of `make`, beside name and num_envs."""
    found = dict(inspect.signature(Expedition).parameters)
    del found["num_envs"]
    return found


def hints(name: str) -> dict[str, Any]:
    """Types of those arguments."""
    return get_type_hints(Expedition.__init__)


def sources(name: str) -> tuple[Any, ...]:
    """Whose docstrings say what they mean."""
    return (Expedition,)
