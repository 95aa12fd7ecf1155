"""Networks for many agents in one call: weights shared, or stacked and multiplied as a batch.

A net can be called, and then gradients come from autograd; or `linearize` returns its output together with a
`Pullback`, the chain rule written out. For networks of 64 units and batches of 64 the pullback takes half of
autograd's time: the products are small, and what costs is the number of operations around them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from shoal.nets import perceptron
from shoal.nets.comm import Channel, Talk
from shoal.nets.conv import Block, Eyes, Kind, real
from shoal.nets.gru import Gru
from shoal.nets.mlp import ALL, Mlp
from shoal.nets.pool import Pool, Pooling
from shoal.pointers import Layers
from shoal.threads import one_thread
from shoal.types import ShoalError

SILENT = Talk()


@torch.no_grad()
@one_thread()  # with more, factors are rounded otherwise, and a seed would be another on other machines
def orthogonal(net: AgentNet, gain: float, generator: torch.Generator) -> None:
    """Draw all weights anew, orthogonal (Saxe et al. 2014, arXiv 1312.6120), with biases 0.

    Hidden layers have the gain sqrt(2), which keeps a ReLU layer's variance; a recurrent unit's matrices 1, each gate's
    for itself; a channel's and a pool's see there; the last layer `gain`.
    """
    for convolution in net.eyes.convs.values():
        for weight, bias in convolution.layers:
            bias.zero_()
            for copy in weight:
                nn.init.orthogonal_(copy, math.sqrt(2), generator=generator)
    perceptrons = [*net.mlp.layers, *(net.head.layers if net.split else [])]
    for k, (weight, bias) in enumerate(perceptrons):
        bias.zero_()
        for copy in weight:
            nn.init.orthogonal_(copy, gain if k == len(perceptrons) - 1 else math.sqrt(2), generator=generator)
    net.channel.orthogonal(generator)
    for part in net.eyes.modules():
        if isinstance(part, Pool):
            part.orthogonal(generator)
    if net.memory:
        for weight, bias in net.gru.layers:
            bias.zero_()
            for copy in weight:
                for gate in copy.chunk(3, -1):
                    nn.init.orthogonal_(gate, generator=generator)


class Pullback:
    """The chain rule through one evaluation of an `AgentNet`: from the gradient of its output to weights or input."""

    def __init__(self, net: AgentNet, inputs: list[Tensor]) -> None:
        self.net, self.inputs = net, inputs

    def weights(self, grad: Tensor) -> None:
        """Sets the weights' `grad`. `grad` is shaped like the net's output."""
        self.net.mlp.pull_weights(self.inputs, self.net._inward(grad))

    def input(self, grad: Tensor) -> Tensor:
        """The gradient of the input `[batch, agent, in]`."""
        pulled = self.net.mlp.pull_input(self.inputs, self.net._inward(grad))
        return self.net._input_outward(pulled, grad.shape[-3])


class AgentNet(nn.Module):
    """One network per agent, or one for all: `[..., batch, agent, in] -> [ensemble, ..., batch, agent, out]`.

    A perceptron; or, with memory, a perceptron, a gated recurrent unit and a linear layer. Pictures among the inputs go
    through convolutions first. Agents that talk do so before the last layer, with those of other groups too: their
    networks are evaluated by `together`.

    Args:
        num_agents: length of the agent axis.
        sizes: input, hidden and output widths of each network.
        shared: one set of weights for all agents; without, every agent has its own, stacked and multiplied as a batch.
        identity: tell agents of shared weights apart by a one-hot number appended to the input.
        ensemble: independent networks for each agent (two critics, say); 1 with memory.
        memory: width of the recurrent unit; 0: none.
        blocks: what the inputs are, in their order, where there may be pictures among them.
        conv: kind of the convolutions.
        pool: how things of which there are several are pooled.
        talk: how agents communicate.
        norm: hidden units are normalised, see `Mlp`.
    """

    def __init__(
        self,
        num_agents: int,
        sizes: tuple[int, ...],
        *,
        shared: bool,
        generator: torch.Generator,
        identity: bool = True,
        ensemble: int = 1,
        memory: int = 0,
        blocks: tuple[Block, ...] = (),
        conv: Kind = "auto",
        pool: Pooling = "none",
        talk: Talk = SILENT,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_agents, self.shared, self.ensemble, self.size = num_agents, shared, ensemble, sizes[0]
        self.memory = memory
        named = shared and identity and num_agents > 1
        self.identity: Tensor
        self.register_buffer("identity", torch.eye(num_agents) if named else torch.zeros(1, 0))
        copies = ensemble * (1 if shared else num_agents)
        blocks = (*(blocks or (Block((sizes[0],)),)), Block((self.identity.shape[1],)))
        self.eyes = Eyes(blocks, conv, copies, generator, pool)
        sizes = (self.eyes.size, *sizes[1:])
        self.split = bool(memory) or talk.kind != "none"  # whether something comes before the last layer
        if self.split and len(sizes) < 3:
            what = "with memory" if memory else "that talks"
            raise ShoalError(f"a network {what} needs a hidden layer before it: set net.hidden to 64, say")
        self.mlp = Mlp(sizes[:-1] if self.split else sizes, copies, generator, norm)
        width = memory or sizes[-2]
        if memory:
            self.gru = Gru(sizes[-2], memory, copies, generator)
        self.channel = Channel(talk, width, num_agents, shared, generator)
        if self.split:
            self.head = Mlp((width, sizes[-1]), copies, generator)

    @property
    def dense_layers(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Weight and bias of each layer in turn, the recurrent unit's two among them."""
        after = [*(self.gru.layers if self.memory else ()), *self.head.layers] if self.split else []
        return [*self.mlp.layers, *after]

    def forward(self, x: Tensor, agents: slice = ALL) -> Tensor:
        """Of all agents, or of those `agents` whose inputs are in `x`."""
        return self._outward(self.mlp(self._seen(x, agents), self._copies(agents)), x.shape[:-1])

    def step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """In play: `[batch, agent, in]` and memory `[batch, agent, width]` -> `[batch, agent, out]` and memory.

        Of agents that do not talk.
        """
        if not self.split:
            return self.forward(x)[0], memory
        going_on = torch.zeros(1, len(x), dtype=torch.bool, device=x.device)
        out, after = self.unroll(x.unsqueeze(0), memory, going_on)
        return out[0], after[0]

    def unroll(self, x: Tensor, memory: Tensor, ended: Tensor, agents: slice = ALL) -> tuple[Tensor, Tensor]:
        """A sequence: `[time, batch, agent, in]` -> outputs and memory after each step, `[time, batch, agent, ...]`.

        Of agents that do not talk.

        Args:
            memory: before the first step, `[batch, agent, width]`.
            ended: `[time, batch]` bool; the next step starts another episode, with memory 0.
            agents: see `forward`.
        """
        assert not self.channel.rounds
        if self.memory:
            return self._remember(x, memory, ended, agents, self.head.layers)
        features, after = self.features(x, memory, ended, agents)
        return self.decide(features, agents), after

    def features(self, x: Tensor, memory: Tensor, ended: Tensor, agents: slice = ALL) -> tuple[Tensor, Tensor]:
        """What comes before talking and the last layer, `[time, batch, agent, width]`, and memory as of `unroll`."""
        if self.memory:
            return self._remember(x, memory, ended, agents, ())
        if self.split:
            x = self._outward(self._open(self._seen(x, agents), self._copies(agents)), x.shape[:-1])[0]
        return x, memory.expand(len(x), *memory.shape)

    def _open(self, rows: Tensor, some: slice) -> Tensor:
        """The last hidden layer's units."""
        rows = self.mlp(rows, some)
        return (perceptron.normalise(rows) if self.mlp.norm else rows).relu()

    def _remember(
        self, x: Tensor, memory: Tensor, ended: Tensor, agents: slice, after: Layers
    ) -> tuple[Tensor, Tensor]:
        """What the layer `after` the unit, or none, makes of memory, and memory after each step; see `unroll`."""
        some, identity = self._copies(agents), None
        layers = perceptron.of(self.mlp.layers, some)
        if self.mlp.norm:
            rows, layers = self._open(self._seen(x, agents), some), []
        elif self.eyes.plain and self.identity.shape[1]:
            rows, identity = self._rows(real(x)), self.identity[agents]
        else:
            rows = self._seen(x, agents)
        keep = torch.cat([torch.ones_like(ended[:1]), ~ended[:-1]]) if len(x) > 1 else None
        sequence = len(x), rows.shape[1] // len(x)
        start = self._inward(memory.unsqueeze(0))
        after = perceptron.of(after, some)
        memories, out = self.gru.through(rows.unflatten(1, sequence), start, keep, some, layers, after, identity)
        memories, out = (self._outward(found, x.shape[:-1])[0] for found in (memories.flatten(1, 2), out))
        return out, memories

    def decide(self, features: Tensor, agents: slice = ALL) -> Tensor:
        """What comes after it: `[..., agent, width] -> [..., agent, out]`."""
        if not self.split:
            return self.forward(features, agents)[0]
        out = self.head(self._rows(features), self._copies(agents))
        return self._outward(out, features.shape[:-1])[0]

    @torch.no_grad()
    def linearize(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """The output for `[batch, agent, in]`, and the chain rule through it; without memory and pictures only."""
        out, inputs = self.mlp.linearize(self._input_inward(x))
        return self._outward(out, x.shape[:-1]), Pullback(self, inputs)

    # Inward: from [..., agent, size] to [copies, rows, size]; outward: back

    def _copies(self, agents: slice) -> slice:
        """Whose weights these are."""
        return ALL if self.shared else agents

    def _seen(self, x: Tensor, agents: slice = ALL) -> Tensor:
        inward: Tensor = self.eyes(self._input_inward(x, agents), self._copies(agents))
        return inward

    def _input_inward(self, x: Tensor, agents: slice = ALL) -> Tensor:
        if self.identity.shape[1]:
            x = torch.cat([real(x), self.identity[agents].expand(*x.shape[:-1], -1)], dim=-1)
        return self._rows(x)

    def _rows(self, x: Tensor) -> Tensor:
        if self.shared:
            x = x.flatten(0, -2).unsqueeze(0)
            return x.expand(self.ensemble, -1, -1) if self.ensemble > 1 else x
        x = x.flatten(0, -3).transpose(0, 1)  # a view: batched products take any row stride
        return x.repeat(self.ensemble, 1, 1) if self.ensemble > 1 else x

    def _outward(self, out: Tensor, lead: torch.Size) -> Tensor:
        if self.shared:
            return out.view(self.ensemble, *lead, out.shape[-1])
        return out.view(self.ensemble, lead[-1], *lead[:-1], out.shape[-1]).movedim(1, -2)

    def _inward(self, grad: Tensor) -> Tensor:
        if self.shared:
            return grad.reshape(self.ensemble, -1, grad.shape[-1])
        return grad.transpose(1, 2).flatten(0, 1)

    def _input_outward(self, grad: Tensor, batch: int) -> Tensor:
        if self.shared:
            return grad.sum(0).view(batch, self.num_agents, -1)[..., : self.size]
        grad = grad.view(self.ensemble, self.num_agents, batch, -1)
        return (grad.sum(0) if self.ensemble > 1 else grad[0]).transpose(0, 1)
