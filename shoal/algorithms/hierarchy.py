"""Managers and workers: a manager for each team gives its agents goals, workers reach them (feudal learning).

Every `k` steps of an episode a team's manager, who sees what all its agents see, chooses a goal for each of them:
where some columns f(o) of what the agent observes shall be (Dayan & Hinton 1993; Vezhnevets et al. 2017, arXiv
1703.01161; for several agents Ahilan & Dayan 2019, arXiv 1901.08492). A worker sees its observation and how far the
goal g is, and is paid for coming closer,

    r_worker = |g - f(o)| - |g - f(o')| + alpha r

and for nothing that happens after its goal was replaced: to a worker, a goal's k steps are an episode with a time
limit. A manager is paid the mean reward of its team. Between its choices it waits: it is present but not alive, as a
player is whose turn it is not, so its values are learned at every step and its policy where it chose.

Managers and workers are any of the other algorithms.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from shoal import tree
from shoal.algorithms import ddpg, ppo, pqn, value_decomposition
from shoal.nets.conv import flat
from shoal.replay import Fresh, Replay
from shoal.types import (
    SELF,
    Action,
    Agents,
    Algorithm,
    Batch,
    Box,
    Discrete,
    EnvSpec,
    Experience,
    Groups,
    GroupSpec,
    Part,
    Preset,
    ShoalError,
    Tree,
    View,
    nearest,
)

FAMILIES = {**ddpg.PRESETS, **value_decomposition.PRESETS, **pqn.PRESETS, **ppo.PRESETS}
MANAGER = " manager"  # behind a group's name: its agents' goals


@dataclass(frozen=True)
class Config:
    manager: str = "ippo"
    """Algorithm of the managers."""
    worker: str = "ippo"
    """Algorithm of the workers."""
    manager_options: tuple[str, ...] = ()
    """KEY=VALUE: settings of the managers' algorithm."""
    worker_options: tuple[str, ...] = ()
    """KEY=VALUE: settings of the workers' algorithm."""
    teams: int = 1
    """Teams of equally many agents, in the order of each group; each has a manager."""
    k: int = 10
    """Steps of an episode for which a goal holds."""
    goal: Literal["place", "change"] = "place"
    """What a goal says of the columns: where they shall be, or by how much they shall change."""
    goal_columns: tuple[int, ...] = (0, 1)
    """Columns of an agent's observation that goals are about."""
    goal_scale: float = 1.0
    """Goals lie in [-scale, scale] in each column."""
    goal_bins: int = 0
    """Goals for each column that a manager can choose among, evenly spaced; 0: any (the algorithm must be able to)."""
    alpha: float = 0.0
    """Weight of the environment's own reward in what workers learn from."""


@dataclass
class Memory:
    """What an agent carries from step to step, `[..., agent, width]` each."""

    worker: Tensor
    manager: Tensor
    choice: Tensor
    """Of the manager, in force: an index `[..., 1]`, or numbers in [-1, 1]."""
    goal: Tensor
    """Where the columns shall be."""
    left: Tensor
    """Steps for which the goal holds, `[..., 1]`; 0: the manager chooses now."""


class Hierarchy:
    """See the module's docstring. Satisfies `Algorithm`."""

    def __init__(self, spec: EnvSpec, config: Config, *, seed: int = 0, device: str = "cpu") -> None:
        _check(spec, config)
        self.spec, self.config = spec, config
        size, self.bins = len(config.goal_columns), config.goal_bins
        self.space: Action = Discrete(self.bins**size) if self.bins else Box(size)
        members = [g.num_agents // config.teams for g in spec.groups.values()]
        seen = sum(m * g.obs_size for m, g in zip(members, spec.groups.values(), strict=True))
        groups, managers = {}, {}
        for (name, g), m in zip(spec.groups.items(), members, strict=True):
            parts = (*g.parts, Part(SELF, size)) if g.parts else ()
            groups[name] = dataclasses.replace(g, obs_shape=(g.obs_size + size,), parts=parts)
            managers[name + MANAGER] = GroupSpec(g.agents, (seen + m + size + 1,), self.space, masked=bool(self.bins))
        goals = size * spec.num_agents
        seen_by_workers, by_managers = ((spec.state_size + n if spec.state_size else 0) for n in (goals, goals + 1))
        self.worker = _build("worker", EnvSpec(groups, seen_by_workers, spec.hears), seed, device, config)
        self.manager = _build("manager", EnvSpec(managers, by_managers, spec.hears), seed + 1, device, config)
        self.widths = {}
        for name in spec.groups:
            own = (
                self.worker.initial_memory(1)[name].shape[-1],
                self.manager.initial_memory(1)[name + MANAGER].shape[-1],
            )
            self.widths[name] = [*own, 1 if self.bins else size, size, 1]
        self.played: list[dict[str, Memory]] = []  # as the steps of the rollout in progress were decided

    # Playing

    def initial_memory(self, num_envs: int) -> Groups:
        return {n: torch.zeros(num_envs, g.num_agents, sum(self.widths[n])) for n, g in self.spec.groups.items()}

    @torch.no_grad()
    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        before = {name: Memory(*x.split(self.widths[name], -1)) for name, x in memory.items()}
        obs = {name: flat(x, 2) for name, x in view.obs.items()}
        state = self._manager_state(view.state, before)
        asked = View(self._manager_obs(obs, before), self._manager_legal(before), state, view.hears)
        own = {name + MANAGER: m.manager for name, m in before.items()}
        choices, managers = self.manager.act(asked, own, explore=explore)
        now = {n: self._decide(obs[n], m, choices[n + MANAGER], managers[n + MANAGER]) for n, m in before.items()}
        shown = View(self._worker_obs(obs, now), view.legal, self._worker_state(view.state, now), view.hears)
        actions, workers = self.worker.act(shown, {n: m.worker for n, m in now.items()}, explore=explore)
        if explore:
            self.played.append({name: dataclasses.replace(m, manager=before[name].manager) for name, m in now.items()})
        after = {n: torch.cat([workers[n], m.manager, m.choice, m.goal, m.left - 1], -1) for n, m in now.items()}
        return actions, after

    def _decide(self, obs: Tensor, before: Memory, choice: Tensor, manager: Tensor) -> Memory:
        """The memory a step is played with: where the old goal has ended a new one, and a worker who starts anew."""
        chosen = choice.unsqueeze(-1).float() if self.bins else choice
        new = before.left == 0
        place = self._place(chosen) + (obs[..., self.config.goal_columns] if self.config.goal == "change" else 0.0)
        return Memory(
            worker=before.worker * ~new,
            manager=manager,
            choice=torch.where(new, chosen, before.choice),
            goal=torch.where(new, place, before.goal),
            left=torch.where(new, float(self.config.k), before.left),
        )

    def _place(self, choice: Tensor) -> Tensor:
        """What a manager's choice says of the columns."""
        if not self.bins:
            return choice * self.config.goal_scale
        digits = [choice // self.bins**j % self.bins for j in range(len(self.config.goal_columns))]
        return (torch.cat(digits, -1) / max(self.bins - 1, 1) * 2 - 1) * self.config.goal_scale

    def _manager_obs(self, obs: Groups, memory: dict[str, Memory]) -> Groups:
        """For each agent's goal: what its team sees, which of them it is, the goal in force and how long it holds."""
        teams = self.config.teams
        team = torch.cat([x.unflatten(-2, (teams, -1)).flatten(-2) for x in obs.values()], -1)
        found = {}
        for name, x in obs.items():
            size, m = x.shape[-2] // teams, memory[name]
            which = torch.eye(size).repeat(teams, 1).expand(*x.shape[:-1], -1)
            parts = [
                team.repeat_interleave(size, -2),
                which,
                self._place(m.choice) * (m.left > 0),
                m.left / self.config.k,
            ]
            found[name + MANAGER] = torch.cat(parts, -1)
        return found

    def _manager_legal(self, memory: dict[str, Memory]) -> Groups:
        """With a choice among goals: all, or while it waits the one in force."""
        legal = {}
        for name, m in memory.items():
            current = torch.arange(self.space.size if self.bins else 0) == m.choice[..., :1]
            legal[name + MANAGER] = current | (m.left == 0)
        return legal

    def _worker_obs(self, obs: Groups, memory: dict[str, Memory]) -> Groups:
        columns = self.config.goal_columns
        return {name: torch.cat([x, memory[name].goal - x[..., columns]], -1) for name, x in obs.items()}

    def _manager_state(self, state: Tensor, memory: dict[str, Memory]) -> Tensor:
        """The global state, where there is one, with all goals in force and how long they hold.

        Central values and mixers would otherwise not see what their agents are about.
        """
        goals = [(m.goal * (m.left > 0)).flatten(-2) for m in memory.values()]
        left = next(iter(memory.values())).left[..., 0, :]
        return torch.cat([state, *goals, left / self.config.k], -1) if state.shape[-1] else state

    def _worker_state(self, state: Tensor, memory: dict[str, Memory]) -> Tensor:
        """The same without how long goals hold, of which workers know nothing."""
        goals = [m.goal.flatten(-2) for m in memory.values()]
        return torch.cat([state, *goals], -1) if state.shape[-1] else state

    # Learning

    def experience(self, num_envs: int) -> _Experience:
        return _Experience(self, num_envs)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Of managers or of workers: the groups' names tell."""
        managing = next(iter(batch.groups)).endswith(MANAGER)
        learner, role = (self.manager, "manager") if managing else (self.worker, "worker")
        return {f"{role}_{name}": value for name, value in learner.update(batch).items()}

    def divide(self, rollout: Batch) -> tuple[Batch, Batch]:
        """What a rollout `[time, env, ...]` was for the managers, and for the workers."""
        # `now` is what steps were played with: `left` is k where a goal was new. To managers a new goal is a choice,
        # so `before` it no steps are left; `after` a step one less is
        now: dict[str, Memory] = tree.stack(self.played[-len(rollout.ended) :])  # others may have looked on before
        self.played = []
        before = {
            n: dataclasses.replace(m, left=torch.where(m.left == self.config.k, 0.0, m.left)) for n, m in now.items()
        }
        after = {n: dataclasses.replace(m, left=m.left - 1) for n, m in now.items()}
        obs = {n: flat(a.obs, 3) for n, a in rollout.groups.items()}
        next_obs = {n: flat(a.next_obs, 3) for n, a in rollout.groups.items()}
        seen, legal = self._manager_obs(obs, before), self._manager_legal(before)
        next_seen, next_legal = self._manager_obs(next_obs, after), self._manager_legal(after)
        shown, next_shown = self._worker_obs(obs, now), self._worker_obs(next_obs, now)
        paid = self._team_reward(rollout)
        managers, workers = {}, {}
        for name, a in rollout.groups.items():
            m, key = now[name], name + MANAGER
            distance, closer = (self._distance(x[name], m) for x in (obs, next_obs))
            managers[key] = Agents(
                obs=seen[key],
                legal=legal[key],
                memory=m.manager,
                action=m.choice.squeeze(-1).long() if self.bins else m.choice,
                reward=paid[name],
                terminated=a.terminated,
                alive=a.alive & (before[name].left == 0).squeeze(-1),
                present=a.present,
                next_obs=next_seen[key],
                next_legal=next_legal[key],
            )
            reward = (distance - closer) * (a.alive & ~a.terminated) + self.config.alpha * a.reward
            workers[name] = dataclasses.replace(
                a, obs=shown[name], memory=m.worker, reward=reward, next_obs=next_shown[name]
            )
        over = (next(iter(now.values())).left[..., 0, 0] == 1) | rollout.ended
        state, next_state = rollout.state, rollout.next_state
        for_managers = dataclasses.replace(
            rollout,
            groups=managers,
            state=self._manager_state(state, before),
            next_state=self._manager_state(next_state, after),
        )
        for_workers = dataclasses.replace(
            rollout,
            groups=workers,
            state=self._worker_state(state, now),
            next_state=self._worker_state(next_state, now),
            ended=over,
        )
        return for_managers, for_workers

    def _distance(self, obs: Tensor, memory: Memory) -> Tensor:
        distance: Tensor = torch.linalg.vector_norm(memory.goal - obs[..., self.config.goal_columns], dim=-1)
        return distance

    def _team_reward(self, rollout: Batch) -> Groups:
        """The mean reward of everybody's team, `[time, env, agent]`."""
        teams = self.config.teams
        parts = {n: a.reward.unflatten(-1, (teams, -1)) for n, a in rollout.groups.items()}
        mean = torch.cat(list(parts.values()), -1).mean(-1)
        return {n: mean.repeat_interleave(part.shape[-1], -1) for n, part in parts.items()}

    # Saving

    def state_dict(self) -> Tree:
        return {"manager": self.manager.state_dict(), "worker": self.worker.state_dict()}

    def load_state_dict(self, state: Tree) -> None:
        self.manager.load_state_dict(state["manager"])
        self.worker.load_state_dict(state["worker"])
        self.played = []


class _Experience:
    """Of managers and workers; satisfies `Experience`."""

    def __init__(self, owner: Hierarchy, num_envs: int) -> None:
        self.owner = owner
        self.parts: list[Experience] = [x.experience(num_envs) for x in (owner.manager, owner.worker)]
        self.rollout_steps = max(part.rollout_steps for part in self.parts)
        for role, part in zip(("manager", "worker"), self.parts, strict=True):
            if isinstance(part, Fresh) and part.rollout_steps < self.rollout_steps:
                raise ShoalError(
                    f"managers and workers learn from the same rollouts: set {role}_options so that batch_steps are "
                    f"{self.rollout_steps * num_envs}, not {part.rollout_steps * num_envs}"
                )
            if isinstance(part, Replay) and part.rows < self.rollout_steps:
                raise ShoalError(
                    f"the {role} must keep a rollout of {self.rollout_steps * num_envs} steps: set {role}_options so "
                    "that buffer_size is as large or larger"
                )

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    def add(self, rollout: Batch) -> Iterator[Batch]:
        for part, share in zip(self.parts, self.owner.divide(rollout), strict=True):
            yield from part.add(share)

    def cut(self, envs: Tensor) -> None:
        for part in self.parts:
            part.cut(envs)

    def state_dict(self) -> Tree:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Tree) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def _build(role: Literal["manager", "worker"], spec: EnvSpec, seed: int, device: str, config: Config) -> Algorithm:
    name, options = getattr(config, role), getattr(config, f"{role}_options")
    if name not in FAMILIES:
        raise ShoalError(f"the {role} has no algorithm {name!r}; {nearest(name, FAMILIES)}")
    preset = FAMILIES[name]
    return preset.build(spec, _changed(preset.config, role, options), seed=seed, device=device)


def _changed(settings: Any, role: str, options: tuple[str, ...]) -> Any:
    """`settings` with KEY=VALUE options, `net.KEY` for the network's."""
    for option in options:
        key, equals, text = option.partition("=")
        outer, _, inner = key.replace("-", "_").partition(".")
        owner = getattr(settings, outer, None) if inner else settings
        known = [f.name for f in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        if not equals or (inner or outer) not in known:
            raise ShoalError(
                f"{role}_options are KEY=VALUE, and {option!r} is not one; {nearest(inner or outer, known)}"
            )
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        change = dataclasses.replace(owner, **{inner: value}) if inner else value  # type: ignore[type-var]
        settings = dataclasses.replace(settings, **{outer: change})
    return settings


def _check(spec: EnvSpec, config: Config) -> None:
    # Targets of continuous goals would be of those that a manager would choose, not of those in force while it waits
    if config.manager in ddpg.PRESETS and not config.goal_bins:
        raise ShoalError(f"managers that learn with {config.manager} choose among finitely many goals: set goal_bins")
    if config.k < 1 or config.teams < 1 or not config.goal_columns or config.goal_bins in (1,) or config.goal_bins < 0:
        raise ShoalError("k and teams must be at least 1, goal_columns name a column, and goal_bins be 0 or at least 2")
    for name, group in spec.groups.items():
        if group.image:
            raise ShoalError(f"goals are about columns of what agents observe, and {name} observes pictures")
        if group.num_agents % config.teams:
            raise ShoalError(f"{group.num_agents} agents of {name} do not divide into {config.teams} teams")
        if not all(0 <= column < group.obs_size for column in config.goal_columns):
            raise ShoalError(f"goal_columns {config.goal_columns} are not all columns of {name}'s {group.obs_size}")


PRESETS = {
    "feudal": Preset(Hierarchy, Config(), "managers that give their teams' agents goals, and workers that reach them")
}
