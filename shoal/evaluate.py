"""Greedy episodes, and what they returned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from shoal import tree
from shoal.collect import Episodes
from shoal.stats.aggregate import Array, describe
from shoal.types import Policy, ShoalError, Stateful, VecEnv

UNITS = {
    "team_return": "sum over all agents of the undiscounted episode reward",
    "agent_return": "mean over all agents of the undiscounted episode reward",
    "group_return": "mean over the group's agents of the undiscounted episode reward",
    "agent_returns": "undiscounted episode reward of each agent, and the shares of episodes above, at and below 0",
    "length": "environment steps in an episode",
}
WORDS = {"team_return": "team return", "agent_return": "return per agent"}
"""For people, instead of these names."""


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns of whole episodes: `[episode, agent]` per group, lengths `[episode]`."""

    returns: dict[str, Array]
    lengths: Array
    agents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of each group's agents."""
    sampled: bool = False
    """Whether actions were drawn as in training instead of the greedy ones."""

    @property
    def episodes(self) -> int:
        return len(self.lengths)

    @property
    def team_return(self) -> Array:
        """Sum over all agents, `[episode]`."""
        total: Array = self._everyone().sum(1)
        return total

    @property
    def agent_return(self) -> Array:
        """Mean over all agents, `[episode]`."""
        mean: Array = self._everyone().mean(1)
        return mean

    def group_return(self, group: str) -> Array:
        """Mean over a group's agents, `[episode]`."""
        mean: Array = self.returns[group].mean(1)
        return mean

    def return_of(self, agent: str) -> Array:
        """Of one agent, `[episode]`."""
        group = next(group for group, names in self.agents.items() if agent in names)
        return self.returns[group][:, self.agents[group].index(agent)]

    def agent_returns(self) -> dict[str, dict[str, Any]]:
        """Of every agent as `describe` does, and the shares of episodes that returned more, exactly and less than 0.

        In a game that is won or lost these are the games won, drawn and lost.
        """
        found = {}
        for name in (name for names in self.agents.values() for name in names):
            values = self.return_of(name)
            signs = {"positive": values > 0, "zero": values == 0, "negative": values < 0}
            found[name] = describe(values) | {sign: float(where.mean()) for sign, where in signs.items()}
        return found

    def _everyone(self) -> Array:
        return np.concatenate(list(self.returns.values()), axis=1)

    def summary(self) -> dict[str, Any]:
        """Everything as plain numbers, ready for JSON."""
        return {
            "episodes": self.episodes,
            "team_return": describe(self.team_return),
            "agent_return": describe(self.agent_return),
            "group_return": {group: describe(self.group_return(group)) for group in self.returns},
            "length": describe(self.lengths),
        }

    def samples(self) -> dict[str, Any]:
        """Every episode's returns, six digits each: what statistics over episodes need, ready for JSON."""
        units = {"team_return": self.team_return, "agent_return": self.agent_return}
        groups = {group: _plain(self.group_return(group)) for group in self.returns}
        return {**{unit: _plain(values) for unit, values in units.items()}, "group_return": groups}

    def __str__(self) -> str:
        team, agent = describe(self.team_return), describe(self.agent_return)
        low, high = agent["ci95"]
        return (
            f"{agent['mean']:.2f} per agent [{low:.2f}, {high:.2f}], {team['mean']:.2f} team, "
            f"{self.episodes} {how(self.sampled)} episodes of {self.lengths.mean():.0f} steps"
        )


def how(sampled: bool) -> str:
    """In a word, how the episodes of an evaluation were played."""
    return "sampled" if sampled else "greedy"


def _plain(values: Array) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def evaluate(
    policy: Policy,
    env: VecEnv,
    episodes: int = 100,
    seed: int = 0,
    max_steps: int = 100_000,
    sampled: bool = False,
) -> Evaluation:
    """Play `episodes` whole episodes from fresh starts with `seed`: greedily, or with actions `sampled` as in training.

    Either way the policy is afterwards what it was before.

    An environment in which somebody is training goes on afterwards where it was, if it can say where that is
    (`state_dict`; all of shoal's can). Evaluate in an environment of its own otherwise.

    Every environment contributes the same number of episodes (one more or less), chosen before play: taking those that
    end first would count short episodes too often.

    Raises:
        ShoalError: an episode does not end within `max_steps`.
    """
    if episodes < 1:
        raise ShoalError(f"episodes must be at least 1, not {episodes}")
    before = tree.map(torch.clone, env.state_dict()) if isinstance(env, Stateful) else None
    own = policy.state_dict() if sampled and isinstance(policy, Stateful) else None  # sampling counts steps, and draws
    try:
        quota = [episodes // env.num_envs + (i < episodes % env.num_envs) for i in range(env.num_envs)]
        view, start = env.reset(seed), policy.initial_memory(env.num_envs)
        memory = {name: tensor.clone() for name, tensor in start.items()}
        running = Episodes(env)
        returns: dict[str, list[Array]] = {name: [] for name in env.spec.groups}
        lengths: list[int] = []
        while any(quota):
            actions, memory = policy.act(view, memory, explore=sampled)
            step = env.step(actions)
            view = step.view
            if finished := running.add(step):
                where, sums, steps = finished
                for name in memory:
                    memory[name][step.ended] = start[name][step.ended]
                for row, i in enumerate(where.tolist()):
                    if not quota[i]:
                        continue
                    quota[i] -= 1
                    lengths.append(int(steps[row]))
                    for name in returns:
                        returns[name].append(sums[name][row].numpy().astype(np.float64))
            if int(running.lengths.max()) > max_steps:
                raise ShoalError(f"an episode has not ended after {max_steps} steps; give the environment a time limit")
    finally:
        if before is not None and isinstance(env, Stateful):
            env.load_state_dict(before)
        if own is not None and isinstance(policy, Stateful):
            policy.load_state_dict(own)
    if not all(np.isfinite(rows).all() for rows in returns.values()):
        raise ShoalError("an episode's return is NaN or infinite: look at the environment's rewards")
    agents = {name: group.agents for name, group in env.spec.groups.items()}
    stacked = {name: np.stack(rows) for name, rows in returns.items()}
    return Evaluation(stacked, np.array(lengths, np.float64), agents, sampled)
