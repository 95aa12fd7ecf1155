"""Networks for many agents in one call: weights shared, or stacked and multiplied as a batch.

A net can be called, and then gradients come from autograd; or `linearize` returns its output together with a
`Pullback`, the chain rule written out. For networks of 64 units and batches of 64 the pullback takes half of
autograd's time: the products are small, and what costs is the number of operations around them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from shoal.nets.conv import Block, Eyes, Kind, real
from shoal.nets.gru import Gru
from shoal.nets.mlp import ALL, Mlp


@torch.no_grad()
def orthogonal(net: AgentNet, gain: float, generator: torch.Generator) -> None:
    """Draw all weights anew, orthogonal (Saxe et al. 2014, arXiv 1312.6120), with biases 0.

    Hidden layers have the gain sqrt(2), which keeps a ReLU layer's variance; a recurrent unit's matrices 1, each gate's
    for itself; the last layer `gain`.
    """
    for convolution in net.eyes.convs.values():
        for weight, bias in convolution.layers:
            bias.zero_()
            for copy in weight:
                nn.init.orthogonal_(copy, math.sqrt(2), generator=generator)
    perceptrons = [*net.mlp.layers, *(net.head.layers if net.memory else [])]
    for k, (weight, bias) in enumerate(perceptrons):
        bias.zero_()
        for copy in weight:
            nn.init.orthogonal_(copy, gain if k == len(perceptrons) - 1 else math.sqrt(2), generator=generator)
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
    through convolutions first.

    Args:
        num_agents: length of the agent axis.
        sizes: input, hidden and output widths of each network.
        shared: one set of weights for all agents; without, every agent has its own, stacked and multiplied as a batch.
        identity: tell agents of shared weights apart by a one-hot number appended to the input.
        ensemble: independent networks for each agent (two critics, say); 1 with memory.
        memory: width of the recurrent unit; 0: none.
        blocks: what the inputs are, in their order, where there may be pictures among them.
        conv: kind of the convolutions.
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
    ) -> None:
        super().__init__()
        self.num_agents, self.shared, self.ensemble, self.size = num_agents, shared, ensemble, sizes[0]
        self.memory = memory
        named = shared and identity and num_agents > 1
        self.identity: Tensor
        self.register_buffer("identity", torch.eye(num_agents) if named else torch.zeros(1, 0))
        copies = ensemble * (1 if shared else num_agents)
        blocks = (*(blocks or (Block((sizes[0],)),)), Block((self.identity.shape[1],)))
        self.eyes = Eyes(blocks, conv, copies, generator)
        sizes = (self.eyes.size, *sizes[1:])
        if not memory:
            self.mlp = Mlp(sizes, copies, generator)
            return
        self.mlp = Mlp(sizes[:-1], copies, generator)
        self.gru = Gru(sizes[-2], memory, copies, generator)
        self.head = Mlp((memory, sizes[-1]), copies, generator)

    def forward(self, x: Tensor, agents: slice = ALL) -> Tensor:
        """Of all agents; or of those `agents` whose inputs are in `x`, where each has weights of its own."""
        return self._outward(self.mlp(self._seen(x, agents), agents), x.shape[:-1])

    def step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """In play: `[batch, agent, in]` and memory `[batch, agent, width]` -> `[batch, agent, out]` and memory."""
        if not self.memory:
            return self(x)[0], memory
        hidden = self.mlp(self._seen(x)).relu_()
        keep = torch.ones(1, hidden.shape[1], dtype=torch.bool, device=x.device)
        after = self.gru(hidden.unsqueeze(1), self._inward(memory.unsqueeze(0)), keep).squeeze(1)
        return self._outward(self.head(after), x.shape[:-1])[0], self._outward(after, x.shape[:-1])[0]

    def unroll(self, x: Tensor, memory: Tensor, ended: Tensor, agents: slice = ALL) -> tuple[Tensor, Tensor]:
        """A sequence: `[time, batch, agent, in]` -> outputs and memory after each step, `[time, batch, agent, ...]`.

        Args:
            memory: before the first step, `[batch, agent, width]`.
            ended: `[time, batch]` bool; the next step starts another episode, with memory 0.
            agents: see `forward`.
        """
        if not self.memory:
            return self(x, agents)[0], memory.expand(len(x), *memory.shape)
        time, rows = len(x), x.shape[1] * (self.num_agents if self.shared else 1)
        hidden = self.mlp(self._seen(x, agents), agents).relu_().unflatten(1, (time, rows))
        keep = torch.cat([torch.ones_like(ended[:1]), ~ended[:-1]])
        if self.shared:
            keep = keep.repeat_interleave(self.num_agents, 1)
        after = self.gru(hidden, self._inward(memory.unsqueeze(0)), keep, agents).flatten(1, 2)
        return self._outward(self.head(after, agents), x.shape[:-1])[0], self._outward(after, x.shape[:-1])[0]

    def foresee(self, next_x: Tensor, out: Tensor, after: Tensor, ended: Tensor) -> Tensor:
        """Outputs for the successors of the steps that `unroll` went through, `[time, batch, agent, out]`.

        Each is the next step's output; except where that is another episode's, or there is none: computed anew there.
        """
        if not self.memory:
            return self.step(next_x, after)[0]
        anew = torch.cat([ended[:-1], torch.ones_like(ended[-1:])])
        following = torch.cat([out[1:], out[-1:]])
        following[anew] = self.step(next_x[anew], after[anew])[0]
        return following

    @torch.no_grad()
    def linearize(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """The output for `[batch, agent, in]`, and the chain rule through it; without memory and pictures only."""
        out, inputs = self.mlp.linearize(self._input_inward(x))
        return self._outward(out, x.shape[:-1]), Pullback(self, inputs)

    # Inward: from [..., agent, size] to [copies, rows, size]; outward: back

    def _seen(self, x: Tensor, agents: slice = ALL) -> Tensor:
        inward: Tensor = self.eyes(self._input_inward(x), agents)
        return inward

    def _input_inward(self, x: Tensor) -> Tensor:
        if self.identity.shape[1]:
            x = torch.cat([real(x), self.identity.expand(*x.shape[:-1], -1)], dim=-1)
        if self.shared:
            x = x.reshape(1, -1, x.shape[-1])
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
