"""Which agents there are: those of a policy, or of each side of a league."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal import tree
from shoal.algorithms.ddpg import DDPG
from shoal.algorithms.hierarchy import Hierarchy
from shoal.algorithms.ppo import PPO
from shoal.algorithms.q_agents import QAgents
from shoal.export.agent import Agent
from shoal.nets import together
from shoal.nets.conv import flat
from shoal.nets.dense import AgentNet
from shoal.teams.league import League
from shoal.types import Algorithm, Discrete, EnvSpec, Groups, ShoalError, View

Learner = PPO | QAgents | DDPG


@dataclass(frozen=True)
class Player:
    """A policy without opponents in it, and what it plays of an environment.

    Args:
        seats: places that it can take, each by its own groups: the environment's group, and which of its agents.
    """

    policy: Learner
    seats: list[dict[str, tuple[str, Tensor]]]

    @property
    def spec(self) -> EnvSpec:
        return self.policy.spec

    @property
    def nets(self) -> dict[str, AgentNet]:
        return self.policy.actors if isinstance(self.policy, DDPG) else self.policy.nets

    def shown(self, view: View, memory: Groups, seat: dict[str, tuple[str, Tensor]]) -> tuple[View, Groups]:
        """What it sees and remembers in a seat."""
        obs, legal, own = ({g: x[n][:, a] for g, (n, a) in seat.items()} for x in (view.obs, view.legal, memory))
        return View(obs, legal, view.state, view.hears), own

    def outputs(self, view: View, memory: Groups) -> tuple[Groups, Groups]:
        """What `actions` reads, and memory after the step, by group."""
        view, memory = tree.to(view, self.policy.device), tree.to(memory, self.policy.device)
        with torch.no_grad():
            seen = {name: flat(obs, 2) for name, obs in view.obs.items()}
            out, after = together.step(self.nets, seen, memory, view.hears)
            if isinstance(self.policy, PPO):
                out = {name: self.policy.actors[name].spread(x) for name, x in out.items()}
        return {n: x.cpu() for n, x in out.items()}, {n: x.cpu() for n, x in after.items()}

    def agents(self) -> dict[str, Agent]:
        """One module a group."""
        found, first, total = {}, 0, self.spec.num_agents
        for name, group in self.spec.groups.items():
            found[name] = Agent(group, self.nets[name], first, total, self._log_std(name)).eval()
            first += group.num_agents
        return found

    def _log_std(self, name: str) -> Tensor:
        group = self.spec.groups[name]
        if not isinstance(self.policy, PPO) or isinstance(group.action, Discrete):
            return torch.zeros(group.num_agents, 0)
        return self.policy.actors[name].log_std.expand(group.num_agents, -1)


def players(policy: Algorithm) -> list[Player]:
    """The policy itself, or the newest learner of each side of a league.

    Raises:
        ShoalError: a policy that cannot be played an agent at a time, or whose networks are not known.
    """
    if isinstance(policy, League):
        return [Player(_known(side.learner), [seat.groups for seat in side.seats]) for side in policy.sides]
    whole = {name: (name, torch.arange(group.num_agents)) for name, group in policy.spec.groups.items()}
    return [Player(_known(policy), [whole])]


def _known(policy: Algorithm) -> Learner:
    if isinstance(policy, Learner):
        return policy
    if isinstance(policy, Hierarchy):
        raise ShoalError(
            "a hierarchy cannot be exported: its managers see what all agents of their team see, so that no agent "
            "could run alone"
        )
    raise ShoalError(
        f"{type(policy).__name__} cannot be exported: only the networks of shoal's own algorithms are known "
        "(the families of ddpg, value_decomposition, pqn and ppo)"
    )
