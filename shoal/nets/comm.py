"""Communication: what agents tell each other between seeing and acting, and what they make of it.

Before its last layer an agent's network has features h_i: the hidden layers' output or, with memory, the recurrent
unit's. In each of `rounds` rounds every agent sends one message to all, hears those of the agents that it can hear,
makes one vector c_i of them, and goes on with

    h_i <- relu(W [h_i, c_i] + b)

    mean        c_i = mean of the others' M h_j (CommNet: Sukhbaatar et al. 2016, arXiv 1605.07736)
    gated       the same over those that speak, for which w h_j + b > 0 (after IC3Net: Singh et al. 2019, 1812.09755)
    attention   c_i = sum_j a_ij v_j with a_i = softmax_j(q_i k_j / sqrt(d)), in each of `heads` heads; signature k_j
                and value v_j are j's message, the query q_i is i's own, and i is among those it attends to
                (TarMAC: Das et al. 2019, arXiv 1810.11187, eq. 1 to 3)

Agents of all groups talk with each other: a `Channel` is one group's mouth and ear, with weights of the group's, and
all channels speak alike, so that messages pass from group to group (see `together`). Nothing passes from one
environment to another, nor from one step to another: what was heard is used for this step's action, and memory holds
only what the agent saw itself. So messages can be computed anew from what a replay holds, and an agent's memory does
not depend on the weights of others.

IC3Net's gate is an action, drawn and learned by policy gradient. Here it is a threshold whose gradient is the
sigmoid's (straight through, Bengio et al. 2013, arXiv 1308.3432): Q-learning has no policy gradient, the action spaces
stay the environment's, and a rollout holds all that is needed to compute the same gates again. Two more differences
from the papers' recurrent networks: they pass messages on to the next step's memory; and IC3Net divides by all that
are alive where this divides by those that speak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from shoal.nets.mlp import ALL, Each
from shoal.types import ShoalError

Way = Literal["none", "mean", "attention", "gated"]
UNHEARD = -1e9  # finite, as an agent that hears nobody


@dataclass(frozen=True)
class Talk:
    """How agents talk; `kind` none: they do not."""

    kind: Way = "none"
    message: int = 32
    """Numbers in a message; of attention, that many in its value and in its signature."""
    rounds: int = 1
    """Messages of each agent in each step."""
    heads: int = 1
    """Of attention, which divide a message's numbers among them."""

    def __post_init__(self) -> None:
        for name in ("message", "rounds", "heads"):
            if getattr(self, name) < 1:
                raise ShoalError(f"net.{name} must be at least 1, not {getattr(self, name)}")
        if self.kind == "attention" and self.message % self.heads:
            raise ShoalError(f"net.message {self.message} does not divide into {self.heads} heads (net.heads)")


class Channel(nn.Module):
    """One group's mouth and ear.

    Args:
        talk: how.
        width: of the agents' features.
        num_agents: in the group.
        shared: one set of weights for all of them, or one each.
    """

    def __init__(self, talk: Talk, width: int, num_agents: int, shared: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.talk = talk
        self.rounds = 0 if talk.kind == "none" else talk.rounds

        def each(inputs: int, outputs: int, rounds: int) -> nn.ModuleList:
            return nn.ModuleList(Each((inputs, outputs), num_agents, shared, generator) for _ in range(rounds))

        self.size = {"gated": talk.message + 1, "attention": 2 * talk.message}.get(talk.kind, talk.message)
        """Numbers that an agent sends in a round: with a gate, the last one says whether it speaks."""
        self.mouths = each(width, self.size, self.rounds)
        self.ears = each(width + talk.message, width, self.rounds)
        self.queries = each(width, talk.message, self.rounds * (talk.kind == "attention"))
        self._open()

    @torch.no_grad()
    def orthogonal(self, generator: torch.Generator) -> None:
        """Draw all weights anew: messages and queries with gain 1, ears with sqrt(2) for their ReLU."""
        for parts, gain in ((self.mouths, 1.0), (self.queries, 1.0), (self.ears, math.sqrt(2))):
            for part in parts:
                weight, bias = part.mlp.layers[0]  # type: ignore[union-attr, index]
                bias.zero_()
                for copy in weight:
                    nn.init.orthogonal_(copy, gain, generator=generator)
        self._open()

    @torch.no_grad()
    def _open(self) -> None:
        """At first most agents speak: what nobody says, nobody learns to understand."""
        if self.talk.kind == "gated":
            for mouth in self.mouths:
                mouth.mlp.layers[0][1][..., -1] = 1.0  # type: ignore[union-attr, index]

    def speak(self, k: int, features: Tensor, agents: slice = ALL) -> Tensor:
        """Messages of round k, `[..., agent, width] -> [..., agent, size]`."""
        said: Tensor = self.mouths[k](features, agents)
        if self.talk.kind != "gated":
            return said
        soft = said[..., -1:].sigmoid()
        gate = (soft > 0.5).to(soft.dtype) + (soft - soft.detach())
        return torch.cat([said[..., :-1], gate], -1)

    def listen(
        self, k: int, features: Tensor, messages: Tensor, heard: Tensor, own: Tensor, agents: slice = ALL
    ) -> Tensor:
        """Features after round k, `[..., agent, width]`.

        Args:
            messages: of all agents of all groups, `[..., speaker, size]`.
            heard: `[..., agent or 1, speaker]` bool: whom an agent can hear, if it is not itself.
            own: `[agent, speaker]` bool: which speaker it is itself.
        """
        if self.talk.kind == "attention":
            context = self._attend(self.queries[k](features, agents), messages, heard | own)
        else:
            weight = (heard & ~own).to(messages.dtype)
            if self.talk.kind == "gated":
                messages, gate = messages[..., :-1], messages[..., -1]
                weight = weight * gate.unsqueeze(-2)
            context = weight @ messages / weight.sum(-1, keepdim=True).clamp(min=1.0)
        after: Tensor = self.ears[k](torch.cat([features, context], -1), agents)
        return after.relu()

    def _attend(self, query: Tensor, messages: Tensor, heard: Tensor) -> Tensor:
        signature, value, query = (
            x.unflatten(-1, (self.talk.heads, -1)).transpose(-2, -3) for x in (*messages.chunk(2, -1), query)
        )
        score = query @ signature.transpose(-1, -2) / math.sqrt(query.shape[-1])
        attention = score.masked_fill(~heard.unsqueeze(-3), UNHEARD).softmax(-1)
        context: Tensor = attention @ value
        return context.transpose(-2, -3).flatten(-2)


def listeners(hears: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    """For each of groups with `sizes` agents: `heard` and `own` of `Channel.listen`.

    Args:
        hears: `[..., listener or 1, speaker]` bool over the agents of all groups in turn; width 0: all hear all.
    """
    total, found, start = sum(sizes), [], 0
    own = torch.eye(total, dtype=torch.bool, device=hears.device)
    hears = hears if hears.shape[-1] else own.new_ones(1, total)
    for size in sizes:
        rows = slice(start, start + size)
        found.append((hears if hears.shape[-2] == 1 else hears[..., rows, :], own[rows]))
        start += size
    return found
