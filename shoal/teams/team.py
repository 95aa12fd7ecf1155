"""Different policies for different agents: a team that plays, and opponents that belong to the environment."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import replace
from typing import TypeVar

import torch

from shoal import actions as action_spaces
from shoal import tree
from shoal.teams.scripted import Scripted
from shoal.types import EnvSpec, Groups, GroupSpec, Policy, ShoalError, Stateful, Step, Tree, VecEnv, View, nearest

T = TypeVar("T")


def part(view: View, chosen: dict[str, list[int]]) -> View:
    """What some agents are shown: columns of some groups. Those who are not among them they do not hear."""
    hears = view.hears
    if hears.shape[-1]:
        first = dict(
            zip(view.obs, itertools.accumulate((x.shape[1] for x in view.obs.values()), initial=0), strict=False)
        )
        places = [first[name] + column for name, columns in chosen.items() for column in columns]
        if len(places) < hears.shape[-1]:
            hears = hears[..., places] if hears.shape[1] == 1 else hears[:, places][..., places]
    return View(columns_of(view.obs, chosen), columns_of(view.legal, chosen), view.state, hears)


def columns_of(groups: Groups, chosen: dict[str, list[int]]) -> Groups:
    """Columns of some groups; a whole group stays as it is."""
    return {n: groups[n] if len(c) == groups[n].shape[1] else groups[n][:, c] for n, c in chosen.items()}


def whole(view: View, groups: list[str]) -> dict[str, list[int]]:
    """All columns of some groups."""
    return {name: list(range(view.obs[name].shape[1])) for name in groups}


def by_agent(spec: EnvSpec, named: dict[str, T]) -> dict[str, T]:
    """From names of groups and agents to agents; an agent's own name counts more than its group's.

    Raises:
        ShoalError: there is neither a group nor an agent of that name.
    """
    agents = [agent for group in spec.groups.values() for agent in group.agents]
    for name in named:
        if name not in spec.groups and name not in agents:
            known = nearest(name, [*spec.groups, *(a for a in agents if a not in spec.groups)])
            raise ShoalError(f"there is no group or agent {name!r}; {known}")
    found = {a: named[name] for name, group in spec.groups.items() if name in named for a in group.agents}
    return found | {agent: named[agent] for agent in agents if agent in named}


def without(spec: EnvSpec, agents: Collection[str]) -> EnvSpec:
    """What is left of an environment for those who are not among `agents`."""
    groups = {}
    for name, group in spec.groups.items():
        if mine := tuple(agent for agent in group.agents if agent not in agents):
            groups[name] = replace(group, agents=mine)
    left = sum(group.num_agents for group in groups.values())
    listeners, speakers = spec.hears
    return EnvSpec(groups, spec.state_size, (min(listeners, left), min(speakers, left)))


class Company:
    """A policy made of policies: its state is theirs."""

    policies: list[Policy]

    def state_dict(self) -> Tree:
        return {"policies": [policy.state_dict() if isinstance(policy, Stateful) else {} for policy in self.policies]}

    def load_state_dict(self, state: Tree) -> None:
        for policy, saved in zip(self.policies, state["policies"], strict=True):
            if isinstance(policy, Stateful):
                policy.load_state_dict(saved)


class Team(Company):
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
        self.policies = [policy for policy, _ in self.shares]

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
            chosen, remembered = policy.act(part(view, whole(view, groups)), mine, explore=explore)
            actions |= chosen
            following |= remembered
        return actions, following


class Seats(Company):
    """A policy for one group whose agents are played by different policies.

    Each policy is shown the agents that it was made for (those of its `spec`, or all), and remembers for them; of what
    it chooses, the agents that it plays count. Agents without a policy do what their action 0 is.

    Args:
        name: of the group.
        group: its agents.
        players: policies of agents, not necessarily of all.

    Raises:
        ShoalError: a policy was made for other agents than it is to play.
    """

    def __init__(self, name: str, group: GroupSpec, players: dict[str, Policy]) -> None:
        self.name, self.group = name, group
        self.seats: list[tuple[Policy, list[int], list[int], list[int]]] = []
        """Policies, each with the columns it is shown, those among them that it plays, and where these lie in all."""
        for policy in {id(p): p for p in players.values()}.values():
            shown, plays = made_for(policy, name, group), [a for a in group.agents if players.get(a) is policy]
            for agent in plays:
                if agent not in shown:
                    raise ShoalError(f"the policy that is to play {agent} knows only {', '.join(shown) or 'others'}")
            sees = [j for j, agent in enumerate(group.agents) if agent in shown]
            self.seats.append((policy, sees, [shown.index(a) for a in plays], [group.agents.index(a) for a in plays]))
        self.policies = [policy for policy, *_ in self.seats]
        memories = [policy.initial_memory(1)[name].shape[-1] for policy in self.policies]
        self.widths = [slice(sum(memories[:k]), sum(memories[: k + 1])) for k in range(len(memories))]

    def initial_memory(self, num_envs: int) -> Groups:
        """`[env, agent, width]`: every policy's memory in columns of its own."""
        memory = torch.zeros(num_envs, self.group.num_agents, self.widths[-1].stop)
        for (policy, sees, *_), width in zip(self.seats, self.widths, strict=True):
            memory[:, sees, width] = policy.initial_memory(num_envs)[self.name]
        return {self.name: memory}

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        obs, before = view.obs[self.name], memory[self.name]
        chosen, after = action_spaces.empty(self.group.action, tuple(obs.shape[:2])), before.clone()
        for (policy, sees, mine, places), width in zip(self.seats, self.widths, strict=True):
            actions, remembered = policy.act(
                part(view, {self.name: sees}), {self.name: before[:, sees, width]}, explore=explore
            )
            chosen[:, places] = actions[self.name][:, mine]
            after[:, sees, width] = remembered[self.name]
        return {self.name: chosen}, {self.name: after}


def made_for(policy: Policy, name: str, group: GroupSpec) -> tuple[str, ...]:
    """The agents of a group that a policy can play: those of its `spec` where it has one, else all."""
    spec = getattr(policy, "spec", None)
    if not isinstance(spec, EnvSpec):
        return group.agents
    return spec.groups[name].agents if name in spec.groups else ()


def seat(spec: EnvSpec, players: dict[str, Policy]) -> Team:
    """A team from agents' policies; groups of which nobody is named are left out.

    Raises:
        ShoalError: a policy was made for other agents than it is to play.
    """
    members: dict[str, Policy] = {}
    for name, group in spec.groups.items():
        mine = {agent: players[agent] for agent in group.agents if agent in players}
        if not mine:
            continue
        one = next(iter(mine.values()))
        alone = len(mine) == group.num_agents and all(policy is one for policy in mine.values())
        members[name] = one if alone and made_for(one, name, group) == group.agents else Seats(name, group, mine)
    return Team(members)


class Against:
    """An environment whose other agents are played by fixed policies: a learner sees only its own agents.

    Satisfies `VecEnv`. The opponents act greedily (scripts as they always do) and do not learn.

    Args:
        env: with every group.
        opponents: policies by the names of groups or agents, not for all agents.
    """

    def __init__(self, env: VecEnv, opponents: dict[str, Policy]) -> None:
        players = by_agent(env.spec, opponents)
        self.spec = without(env.spec, players.keys())
        if not self.spec.groups:
            raise ShoalError("every agent has an opponent's policy: nobody is left to learn")
        self.env, self.team = env, seat(env.spec, players)
        self.scripts = [p for p in {id(p): p for p in players.values()}.values() if isinstance(p, Scripted)]
        self.num_envs = env.num_envs
        self.columns = {
            name: [env.spec.groups[name].agents.index(agent) for agent in group.agents]
            for name, group in self.spec.groups.items()
        }
        self.start = self.memory = self.team.initial_memory(self.num_envs)
        self.theirs = View({}, {}, torch.zeros(0))

    def _remember(self, view: View) -> View:
        self.theirs = part(view, whole(view, list(self.team.members)))
        return part(view, self.columns)

    def reset(self, seed: int | None = None) -> View:
        self.start = self.team.initial_memory(self.num_envs)
        self.memory = {g: m.clone() for g, m in self.start.items()}
        if seed is not None:
            for script in self.scripts:
                script.generator.manual_seed(seed)
        return self._remember(self.env.reset(seed))

    def step(self, actions: Groups) -> Step:
        joint, self.memory = self.team.act(self.theirs, self.memory, explore=False)
        for name, columns in self.columns.items():
            if name in joint:
                joint[name][:, columns] = actions[name]
            else:
                joint[name] = actions[name]
        step = self.env.step(joint)
        for group, memory in self.memory.items():
            if memory.shape[-1]:
                memory[step.ended] = self.start[group][step.ended]
        reward, terminated, alive = (columns_of(x, self.columns) for x in (step.reward, step.terminated, step.alive))
        view, successor = self._remember(step.view), part(step.successor, self.columns)
        return Step(view, successor, reward, terminated, alive, step.ended, step.lost)

    def render(self, index: int = 0) -> object:
        return self.env.render(index)  # type: ignore[attr-defined]

    def state_dict(self) -> Tree:
        """Nothing where the environment cannot say where it is."""
        if not isinstance(self.env, Stateful):
            return {}
        theirs = self.theirs
        shown = {"obs": theirs.obs, "legal": theirs.legal, "state": theirs.state, "hears": theirs.hears}
        draws = [script.generator.get_state() for script in self.scripts]
        return {"env": self.env.state_dict(), "memory": self.memory, "shown": shown, "draws": draws}

    def load_state_dict(self, state: Tree) -> None:
        if not state or not isinstance(self.env, Stateful):
            return
        self.env.load_state_dict(state["env"])
        self.memory = tree.map(torch.clone, state["memory"])
        for script, drawn in zip(self.scripts, state["draws"], strict=True):
            script.generator.set_state(drawn)
        self.theirs = View(**tree.map(torch.clone, state["shown"]))

    def close(self) -> None:
        self.env.close()
