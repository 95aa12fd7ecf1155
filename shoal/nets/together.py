"""The networks of all groups evaluated together, so that agents can talk on the way (see `comm`).

Where nobody talks, each group's network is evaluated by itself. `Alone` is one agent apart from all others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.nets.comm import listeners
from shoal.nets.conv import flat
from shoal.nets.dense import AgentNet
from shoal.nets.mlp import ALL
from shoal.types import Groups

Nets = dict[str, AgentNet]


def step(nets: Nets, x: Groups, memory: Groups, hears: Tensor) -> tuple[Groups, Groups]:
    """In play: outputs and memory `[batch, agent, ...]` by group, from inputs and memory `[batch, agent, ...]`.

    Args:
        hears: see `View.hears`, of the agents of `nets` in turn.
    """
    if not _talk(nets):
        each = {name: net.step(x[name], memory[name]) for name, net in nets.items()}
        return {name: out for name, (out, _) in each.items()}, {name: after for name, (_, after) in each.items()}
    first = next(iter(x.values()))
    going_on = torch.zeros(1, len(first), dtype=torch.bool, device=first.device)
    now = {name: rows.unsqueeze(0) for name, rows in x.items()}
    out, after = unroll(nets, now, memory, going_on, hears.unsqueeze(0))
    return {name: rows[0] for name, rows in out.items()}, {name: rows[0] for name, rows in after.items()}


def unroll(
    nets: Nets, x: Groups, memory: Groups, ended: Tensor, hears: Tensor, agents: slice = ALL
) -> tuple[Groups, Groups]:
    """Sequences: outputs and memory after each step, `[time, batch, agent, ...]` by group; see `AgentNet.unroll`.

    `agents` may be some only where nobody talks.
    """
    if not _talk(nets):
        each = {name: net.unroll(x[name], memory[name], ended, agents) for name, net in nets.items()}
        return {name: out for name, (out, _) in each.items()}, {name: after for name, (_, after) in each.items()}
    each = {name: net.features(x[name], memory[name], ended) for name, net in nets.items()}
    told = exchange(nets, {name: features for name, (features, _) in each.items()}, hears)
    return {n: net.decide(told[n]) for n, net in nets.items()}, {n: after for n, (_, after) in each.items()}


def exchange(nets: Nets, features: Groups, hears: Tensor) -> Groups:
    """Features after all rounds of messages, `[..., agent, width]` by group."""
    whom = dict(zip(nets, listeners(hears, [net.num_agents for net in nets.values()]), strict=True))
    for k in range(next(iter(nets.values())).channel.rounds):
        messages = torch.cat([net.channel.speak(k, features[name]) for name, net in nets.items()], -2)
        features = {n: net.channel.listen(k, features[n], messages, *whom[n]) for n, net in nets.items()}
    return features


def foresee(nets: Nets, next_x: Groups, out: Groups, after: Groups, ended: Tensor, next_hears: Tensor) -> Groups:
    """Outputs for the successors of the steps that `unroll` went through, `[time, batch, agent, out]` by group.

    Each is the next step's output; except where that is another episode's, or there is none: computed anew there.
    Without memory all are computed anew.
    """
    if not next(iter(nets.values())).memory:
        return unroll(nets, next_x, {name: rows[0] for name, rows in after.items()}, ended, next_hears)[0]
    anew = torch.cat([ended[:-1], torch.ones_like(ended[-1:])]).nonzero(as_tuple=True)
    inputs, memory = ({name: rows[anew] for name, rows in groups.items()} for groups in (next_x, after))
    other = step(nets, inputs, memory, next_hears[anew])[0]
    following = {}
    for name, rows in out.items():
        following[name] = torch.cat([rows[1:], rows[-1:]])
        following[name][anew] = other[name]
    return following


def _talk(nets: Nets) -> bool:
    return any(net.channel.rounds for net in nets.values())


class Alone:
    """One agent of a team on a machine of its own: what it sends and hears is all that passes between them.

    In each step `see`, then in each of `rounds` rounds `speak` and, once everybody has, `listen`; then `decide`.

    Args:
        nets: of all groups, in the order of the environment's: `nets` of an algorithm.
        group: the agent's.
        index: its place there.
        batch: environments that it plays in at once.
    """

    def __init__(self, nets: Nets, group: str, index: int, batch: int = 1) -> None:
        self.net, self.agents, self.rounds = nets[group], slice(index, index + 1), nets[group].channel.rounds
        sizes = {name: net.num_agents for name, net in nets.items()}
        self.speakers = sum(sizes.values())
        self.number = sum(sizes[name] for name in list(sizes)[: list(sizes).index(group)]) + index
        """Among all agents of all groups, as messages are numbered."""
        self.memory = torch.zeros(batch, 1, self.net.memory)
        self.features = torch.zeros(batch, 1, 0)

    @torch.no_grad()
    def see(self, obs: Tensor) -> None:
        """Its observations `[batch, *obs_shape]`."""
        x, going_on = flat(obs, 1).unsqueeze(1).unsqueeze(0), torch.zeros(1, len(obs), dtype=torch.bool)
        features, after = self.net.features(x, self.memory, going_on, self.agents)
        self.features, self.memory = features[0], after[0]

    @torch.no_grad()
    def speak(self, k: int) -> Tensor:
        """Message out, of round k: `[batch, size]`. With a gate, it need not be sent where the last number is 0."""
        return self.net.channel.speak(k, self.features, self.agents).squeeze(1)

    @torch.no_grad()
    def listen(self, k: int, messages: dict[int, Tensor]) -> None:
        """Messages in, of round k: `[batch, size]` by the speaker's number; of those that it cannot hear, none."""
        heard, own = (torch.zeros(1, self.speakers, dtype=torch.bool) for _ in range(2))
        table = self.features.new_zeros(len(self.features), self.speakers, self.net.channel.size)
        own[0, self.number] = True
        for number, message in {**messages, self.number: self.speak(k)}.items():
            heard[0, number] = True
            table[:, number] = message
        self.features = self.net.channel.listen(k, self.features, table, heard, own, self.agents)

    @torch.no_grad()
    def decide(self) -> Tensor:
        """The network's output `[batch, out]`: what `actions.greedy` reads."""
        return self.net.decide(self.features, self.agents).squeeze(1)

    def forget(self, ended: Tensor) -> None:
        """Another episode begins where `ended` `[batch]`."""
        self.memory = self.memory * ~ended.view(-1, 1, 1)
