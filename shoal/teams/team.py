"""Different policies for different groups: a team that plays, and opponents that belong to the environment."""

from __future__ import annotations

import itertools

import torch

from shoal import tree
from shoal.types import Groups, Policy, ShoalError, Stateful, Step, Tree, VecEnv, View


def part(view: View, groups: list[str]) -> View:
    """What some groups are shown. Those of other groups they do not hear."""
    hears = view.hears
    if hears.shape[-1] and len(groups) < len(view.obs):
        ends = itertools.accumulate(obs.shape[1] for obs in view.obs.values())
        places = {g: range(end - view.obs[g].shape[1], end) for g, end in zip(view.obs, ends, strict=True)}
        columns = [k for g in groups for k in places[g]]
        hears = hears[..., columns]
        hears = hears if hears.shape[1] == 1 else hears[:, columns]
    return View({g: view.obs[g] for g in groups}, {g: view.legal[g] for g in groups}, view.state, hears)


class Team:
    """A policy made of policies, one a group. The members may be algorithms, frozen or not, scripts, or other teams.

    Args:
        members: the policy of every group.
    """

    def __init__(self, members: dict[str, Policy]) -> None:
        self.members = members
        self.shares: list[tuple[Policy, list[str]]] = []  # each policy acts once, for all its groups
        for group, policy in members.items():
            for known, groups in self.shares:
                if known is policy:
                    groups.append(group)
                    break
            else:
                self.shares.append((policy, [group]))

    def initial_memory(self, num_envs: int) -> Groups:
        return {g: policy.initial_memory(num_envs)[g] for g, policy in self.members.items()}

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        actions: Groups = {}
        following: Groups = {}
        for policy, shared in self.shares:
            groups = [g for g in shared if g in view.obs]
            if not groups:
                continue
            mine = {g: memory[g] for g in groups}
            chosen, remembered = policy.act(part(view, groups), mine, explore=explore)
            actions |= chosen
            following |= remembered
        return actions, following


class Against:
    """An environment whose other groups are played by fixed policies: a learner sees only its own groups.

    Satisfies `VecEnv`. The opponents act greedily (scripts as they always do) and do not learn.

    Args:
        env: with every group.
        opponents: policies for some of its groups, not for all.
    """

    def __init__(self, env: VecEnv, opponents: dict[str, Policy]) -> None:
        unknown = opponents.keys() - env.spec.groups.keys()
        if unknown:
            raise ShoalError(f"there is no group {', '.join(sorted(unknown))}; groups: {', '.join(env.spec.groups)}")
        self.mine = [g for g in env.spec.groups if g not in opponents]
        if not self.mine:
            raise ShoalError("every group has an opponent's policy: nobody is left to learn")
        self.env, self.team = env, Team(opponents)
        self.num_envs = env.num_envs
        self.spec = env.spec.part(self.mine)
        self.start = self.memory = self.team.initial_memory(self.num_envs)
        self.theirs = View({}, {}, torch.zeros(0))

    def _remember(self, view: View) -> View:
        self.theirs = part(view, list(self.team.members))
        return part(view, self.mine)

    def reset(self, seed: int | None = None) -> View:
        self.start = self.team.initial_memory(self.num_envs)
        self.memory = {g: m.clone() for g, m in self.start.items()}
        return self._remember(self.env.reset(seed))

    def step(self, actions: Groups) -> Step:
        theirs, self.memory = self.team.act(self.theirs, self.memory, explore=False)
        step = self.env.step({**actions, **theirs})
        for group, memory in self.memory.items():
            if memory.shape[-1]:
                memory[step.ended] = self.start[group][step.ended]
        reward, terminated, alive = (
            {g: tensors[g] for g in self.mine} for tensors in (step.reward, step.terminated, step.alive)
        )
        view, successor = self._remember(step.view), part(step.successor, self.mine)
        return Step(view, successor, reward, terminated, alive, step.ended)

    def render(self, index: int = 0) -> object:
        return self.env.render(index)  # type: ignore[attr-defined]

    def state_dict(self) -> Tree:
        env = self.env.state_dict() if isinstance(self.env, Stateful) else None
        theirs = self.theirs
        shown = {"obs": theirs.obs, "legal": theirs.legal, "state": theirs.state, "hears": theirs.hears}
        return {"env": env, "memory": self.memory, "shown": shown}

    def load_state_dict(self, state: Tree) -> None:
        if state["env"] is None or not isinstance(self.env, Stateful):
            self._remember(self.env.reset())
            return
        self.env.load_state_dict(state["env"])
        self.memory = tree.map(torch.clone, state["memory"])
        self.theirs = View(**tree.map(torch.clone, state["shown"]))

    def close(self) -> None:
        self.env.close()
