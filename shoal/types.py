"""Every noun of shoal: spaces, specs, what an environment shows, what a learner gets, and the protocols.

Tensors are laid out `[time, env, agent, feature]`; leading axes may be absent, never reordered. Agents that share an
observation shape and an action space form a *group* and share one tensor axis. Absent means width 0, never `None`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Groups = dict[str, Tensor]
"""One tensor per group of agents."""

Metrics = dict[str, float]
"""Scalars by name, for the log."""

Tree = dict[str, Any]
"""Nested dicts and lists whose leaves are tensors, numbers, strings, booleans or None: what a checkpoint holds."""


class ShoalError(Exception):
    """Something the user can mend; its message says what was wrong and what would be right."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for the most similar known name, or the list of all."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # a wrong suite, say: compare what follows it
        tails = {k.split("/")[-1]: k for k in known}
        close = [tails[t] for t in difflib.get_close_matches(name.split("/")[-1], tails, n=1, cutoff=0.5)]
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


@dataclass(frozen=True)
class Discrete:
    """`size` actions, numbered from 0. An action is an int64 tensor `[..., agent]`."""

    size: int


@dataclass(frozen=True)
class Box:
    """`size` numbers in [-1, 1]; environments rescale. An action is a float32 tensor `[..., agent, size]`."""

    size: int


Action = Discrete | Box

SELF = "self"


@dataclass(frozen=True)
class Part:
    """Columns of a flat observation: `count` things of one kind, `size` numbers about each, one thing after the other.

    Parts of one name are about the same things: where each of them is, and what each of them says. What there is once
    is named `self`: what the agent knows of itself, say.
    """

    name: str
    size: int
    count: int = 1


def columns(parts: tuple[Part, ...]) -> int:
    """Of an observation that consists of `parts`."""
    return sum(part.size * part.count for part in parts)


@dataclass(frozen=True)
class GroupSpec:
    """Agents that share an observation shape and an action space, in the order of the agent axis."""

    agents: tuple[str, ...]
    obs_shape: tuple[int, ...]
    action: Action
    masked: bool = False
    """Whether `legal` has `action.size` columns; without, it has width 0 and everything is legal."""
    image: bool = False
    """Observations are pictures, uint8 `[height, width, channel]`; without, they are float32."""
    parts: tuple[Part, ...] = ()
    """What a flat observation consists of, in the order of its columns; (): it is one part, `self`."""

    def __post_init__(self) -> None:
        if not self.parts:
            return
        if self.obs_shape != (columns(self.parts),):
            raise ShoalError(f"parts of {columns(self.parts)} columns do not make an observation {self.obs_shape}")
        counts = {part.name: part.count for part in self.parts} | {SELF: 1}
        for part in self.parts:
            if part.count != counts[part.name]:
                raise ShoalError(
                    f"parts named {part.name!r} have {part.count} and {counts[part.name]} things: one number"
                )

    @property
    def kind(self) -> dict[str, Any]:
        """What stays the same where only the numbers differ, of agents and of the things they see."""
        seen = [(part.name, part.size) for part in self.parts] or self.obs_shape
        return {"observations": seen, "actions": self.action, "masks": self.masked, "pictures": self.image}

    @property
    def num_agents(self) -> int:
        return len(self.agents)

    @property
    def obs_size(self) -> int:
        return int(np.prod(self.obs_shape))


@dataclass(frozen=True)
class EnvSpec:
    """What an algorithm must know of an environment before it is built."""

    groups: dict[str, GroupSpec]
    state_size: int = 0
    """Width of the global state; 0 where the environment has none."""
    hears: tuple[int, int] = (0, 0)
    """Axes of `View.hears`: (0, 0): everybody can hear everybody; (1, agents): some cannot be heard; (agents, agents):
    that depends on who listens."""

    @property
    def num_agents(self) -> int:
        return sum(group.num_agents for group in self.groups.values())


NEVER = torch.zeros(0, dtype=torch.bool)


@dataclass
class View:
    """What is shown at one instant, of all environments."""

    obs: Groups
    """`[env, agent, *obs_shape]` float32 (uint8 for images)."""
    legal: Groups
    """`[env, agent, size]` bool where the group is masked, else `[env, agent, 0]`."""
    state: Tensor
    """`[env, state_size]` float32."""
    hears: Tensor = NEVER
    """`[env, listener or 1, speaker]` bool over the agents of all groups in turn: whose messages an agent can hear, if
    agents talk (`EnvSpec.hears`). Nobody hears one that is not there."""

    def __post_init__(self) -> None:
        if not len(self.hears):  # everybody hears everybody
            self.hears = self.state.new_zeros(*self.state.shape[:-1], 0, 0, dtype=torch.bool)


@dataclass
class Step:
    """The result of one step of all environments. Tensors may be reused by the next `step`: copy what you keep."""

    view: View
    """Act on this next: already reset where an episode ended."""
    successor: View
    """The true result of the action, never a reset observation."""
    reward: Groups
    """`[env, agent]` float32."""
    terminated: Groups
    """`[env, agent]` bool: the agent's return stops here, do not bootstrap. Stays true after an agent has left."""
    alive: Groups
    """`[env, agent]` bool: the agent acted in this step: it had not left, and it was its turn.

    An agent that waits for its turn has one legal action, which does nothing, and is not `terminated`.
    """
    ended: Tensor
    """`[env]` bool: terminated or truncated, the next row is another episode."""
    lost: Tensor = NEVER
    """`[env]` bool: what the action led to is not known, since the process failed that played the environment.

    `[0]` where that cannot happen. A lost environment has `ended`, `successor` shows what was acted on, nobody is
    `alive` or `terminated`, and rewards are 0: the episode was cut off before this step.
    """


@dataclass
class Agents:
    """What happened to one group, `[time, env, agent, ...]` (or any leading axes before `agent`)."""

    obs: Tensor
    legal: Tensor
    memory: Tensor
    """`[time, env, agent, width]` recurrent memory *before* the step; width 0 without memory."""
    action: Tensor
    reward: Tensor
    terminated: Tensor
    alive: Tensor
    present: Tensor
    """`[time, env, agent]` bool: the agent had not left, so it has a value; it acted (`alive`) or waited."""
    next_obs: Tensor
    next_legal: Tensor


@dataclass
class Batch:
    """The only thing that flows from play to learning. It holds what happened, not what an algorithm thinks of it."""

    groups: dict[str, Agents]
    state: Tensor
    next_state: Tensor
    ended: Tensor
    hears: Tensor
    next_hears: Tensor

    @property
    def num_steps(self) -> int:
        """Environment steps in this batch: the product of the leading axes."""
        return self.ended.numel()


@runtime_checkable
class VecEnv(Protocol):
    """Environments that step together. They reset themselves where an episode ends.

    An environment may also have `render(index) -> uint8 [height, width, 3]`, and `state_dict()`/`load_state_dict()`
    with which a resumed run continues in the middle of an episode; without them it starts new episodes.
    """

    num_envs: int
    spec: EnvSpec

    def reset(self, seed: int | None = None) -> View: ...

    def step(self, actions: Groups) -> Step: ...

    def close(self) -> None: ...


@runtime_checkable
class Renderable(Protocol):
    """An environment that can draw itself."""

    def render(self, index: int = 0) -> NDArray[np.uint8]: ...


@runtime_checkable
class Stateful(Protocol):
    """Anything a checkpoint can hold."""

    def state_dict(self) -> Tree: ...

    def load_state_dict(self, state: Tree) -> None: ...


@runtime_checkable
class Compiled(Protocol):
    """Environments that step without Python, where what they read and write always lies at the same places."""

    inputs: Groups
    """`[env, agent, ...]`: the actions of the next step."""
    result: Step
    """Of the last one; its view is what to act on next."""

    def play(self, low: int, high: int, roll: Any) -> None:
        """Steps of environments low..high-1, see `shoal.roll`; threads may play shares of them side by side."""
        ...


class Policy(Protocol):
    """Chooses actions for every group."""

    def initial_memory(self, num_envs: int) -> Groups:
        """`[env, agent, width]` per group, width 0 without memory: what an episode starts with."""
        ...

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        """Actions and the next memory of the groups in `view`: all of the policy's, or some (see `teams.Team`).

        `explore=False` is greedy and changes nothing in the policy.
        """
        ...


@runtime_checkable
class Stochastic(Protocol):
    """A policy that tells how likely it is to do what."""

    def probabilities(self, view: View, memory: Groups) -> Groups | None:
        """Of every discrete action, `[env, agent, size]`: what `act` draws from. None: it draws from no such thing."""
        ...


class Player(Protocol):
    """A policy that explores without Python, in environments that are `Compiled` too."""

    edges: list[int]
    """Where parts of the environments begin that threads may play side by side, and the end."""
    tables: list[int]
    """What the policy's C function needs for each part."""
    address: int
    """Of that function, see `shoal.roll`."""

    def prepare(self) -> None:
        """Draws the random numbers of the next rollout."""
        ...

    def share(self, play: Callable[[int], None]) -> None:
        """`play` of every part."""
        ...


@runtime_checkable
class Playable(Protocol):
    """A policy that may have a `Player`."""

    def compiled_player(self, env: Compiled, memory: Groups, steps: int) -> Player | None:
        """For rollouts of `steps` steps, in which `memory` is changed in place; None: its networks cannot be compiled.

        It takes the same actions as `act` with `explore`.
        """
        ...


class Experience(Protocol):
    """Turns what was just played into the batches to learn from."""

    rollout_steps: int
    """Steps of every environment to play before the next `add`."""

    @property
    def num_bytes(self) -> int:
        """Memory it takes when full."""
        ...

    def add(self, rollout: Batch) -> Iterable[Batch]: ...

    def cut(self, envs: Tensor) -> None:
        """What is added next of `envs` (bool `[env]`) does not follow what was added last."""
        ...

    def state_dict(self) -> Tree: ...

    def load_state_dict(self, state: Tree) -> None: ...


class Algorithm(Policy, Protocol):
    """A policy that learns."""

    spec: EnvSpec
    config: Any
    """Its frozen dataclass of settings."""

    def experience(self, num_envs: int) -> Experience: ...

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step (or a round of them) on `batch`; detached scalars for the log."""
        ...

    def state_dict(self) -> Tree: ...

    def load_state_dict(self, state: Tree) -> None: ...


@runtime_checkable
class Scalable(Protocol):
    """An algorithm whose weights may be such that they fit any number of agents."""

    def tied(self) -> list[str]:
        """Settings to change before they do, `net.shared to True` for example."""
        ...


class Preset(NamedTuple):
    """An algorithm by its paper's name: what a module of `shoal.algorithms` lists in `PRESETS`."""

    build: Callable[..., Algorithm]
    """`build(spec, config, *, seed, device)`."""
    config: Any
    """The settings that make it this algorithm."""
    summary: str
    """One line for `shoal list`."""
