"""What one agent computes, a row an agent: the networks' equations for ONNX's operations."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal import actions
from shoal.nets.comm import UNHEARD
from shoal.nets.conv import Conv, real
from shoal.nets.dense import AgentNet
from shoal.nets.perceptron import normalise
from shoal.nets.pool import WIDTH, Pool, Sight
from shoal.types import SELF, Discrete, Groups, GroupSpec


class Layer(nn.Module):
    """A linear layer, of shared weights or of the agent's own: `[batch, in] -> [batch, out]`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.shared = len(weight) == 1
        weight, bias = weight.detach().cpu().clone(), bias.detach().cpu().clone()
        self.register_buffer("weight", weight[0] if self.shared else weight)
        self.register_buffer("bias", bias[0] if self.shared else bias)

    def forward(self, x: Tensor, agent: Tensor) -> Tensor:
        if self.shared:
            return x @ self.weight + self.bias
        return (x.unsqueeze(1) @ self.weight[agent] + self.bias[agent]).squeeze(1)


class Pictures(nn.Module):
    """Convolutions: `[batch, height, width, channel] -> [batch, features]`.

    ONNX's have one set of weights for all rows: of stacked ones all agents' are computed, and the row's own is taken.
    """

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.copies = len(conv.layers[0][0])
        self.strides = conv.strides
        for k, (weight, bias) in enumerate(conv.layers):
            self.register_buffer(f"weight_{k}", weight.detach().cpu().flatten(0, 1).clone())
            self.register_buffer(f"bias_{k}", bias.detach().cpu().flatten().clone())

    def forward(self, x: Tensor, agent: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        for k, stride in enumerate(self.strides):
            weight, bias = getattr(self, f"weight_{k}"), getattr(self, f"bias_{k}")
            x = functional.conv2d(x, weight, bias, stride, groups=self.copies if k else 1).relu()
        x = x.unflatten(1, (self.copies, -1)).flatten(2)
        return x[:, 0] if self.copies == 1 else x.gather(1, agent.view(-1, 1, 1).expand(-1, 1, x.shape[2])).squeeze(1)


class Things(nn.Module):
    """Things of a kind, `Pool`'s equations: `[batch, own]` and `[batch, thing, size] -> [batch, WIDTH]`."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.embed = Layer(*pool.embed.layers[0])
        self.query = Layer(*pool.query[0].layers[0]) if pool.query else None

    def forward(self, own: Tensor, things: Tensor, agent: Tensor) -> Tensor:
        count = things.shape[1]
        x = torch.cat([own.unsqueeze(1).expand(-1, count, -1), things], 2).flatten(0, 1)
        embedded: Tensor = self.embed(x, agent.unsqueeze(1).expand(-1, count).flatten()).relu()
        embedded = embedded.view(-1, count, WIDTH)
        if self.query is None:
            return embedded.mean(1)
        score: Tensor = (embedded @ self.query(own, agent).unsqueeze(2)) / math.sqrt(WIDTH)
        return (score.softmax(1) * embedded).sum(1)


class Pooled(nn.Module):
    """An observation whose things are pooled, `Sight`'s equations: `[batch, columns] -> [batch, features]`."""

    def __init__(self, sight: Sight) -> None:
        super().__init__()
        self.parts, self.widths, self.names = sight.parts, sight.widths, sight.names
        self.pools = nn.ModuleList(Things(pool) for pool in sight.pools if isinstance(pool, Pool))

    def forward(self, x: Tensor, agent: Tensor) -> Tensor:
        seen = list(zip(self.parts, x.split(self.widths, 1), strict=True))
        own = torch.cat([x[:, :0], *[columns for part, columns in seen if part.name == SELF]], 1)
        found = [own]
        for name, pool in zip(self.names, self.pools, strict=True):
            rows = [c.unflatten(1, (part.count, part.size)) for part, c in seen if part.name == name]
            things = torch.cat(rows, 2)
            found.append(pool(own, things, agent) if things.shape[1] else x.new_zeros(x.shape[0], WIDTH))
        return torch.cat(found, 1)


class Agent(nn.Module):
    """Any one agent of a group: the equations of `AgentNet`, `Channel` and `actions.greedy`, a row an agent.

    Args:
        group: the agents, their observations and actions.
        net: of the group.
        first: place of its first agent among all speakers.
        speakers: agents of all groups that talk with each other.
        log_std: of continuous actions of a stochastic policy, `[agent, size]`; of others `[agent, 0]`. What the network
            puts out behind the means is added.
    """

    identity: Tensor
    log_std: Tensor

    def __init__(self, group: GroupSpec, net: AgentNet, first: int, speakers: int, log_std: Tensor) -> None:
        super().__init__()
        self.group, self.first, self.speakers = group, first, speakers
        self.talk, self.rounds, self.message = net.channel.talk, net.channel.rounds, net.channel.size
        self.memory = net.memory
        self.register_buffer("identity", net.identity.detach().cpu().clone())
        self.register_buffer("log_std", log_std.detach().cpu().clone())
        self.eyes: Pictures | Pooled | None = Pictures(net.eyes.convs[0]) if net.eyes.convs else None
        if net.eyes.sights:
            self.eyes = Pooled(net.eyes.sights[0])
        layers = [*net.mlp.layers, *(net.head.layers if net.split else [])]
        self.norm = net.mlp.norm
        self.hidden = nn.ModuleList(Layer(*layer) for layer in layers[:-1])
        self.head = Layer(*layers[-1])
        self.gru = nn.ModuleList(Layer(*layer) for layer in net.gru.layers) if net.memory else None
        channel = net.channel
        self.mouths, self.ears, self.queries = (
            nn.ModuleList(Layer(*each.mlp.layers[0]) for each in part)  # type: ignore[union-attr, index]
            for part in (channel.mouths, channel.ears, channel.queries)
        )
        shown = np.uint8 if group.image else np.float32
        rows: dict[str, tuple[tuple[int, ...], type]] = {"agent": ((), np.int64), "obs": (group.obs_shape, shown)}
        if group.masked:
            rows["legal"] = (group.action.size,), np.bool_
        if self.memory:
            rows["memory"] = (self.memory,), np.float32
        if self.rounds:
            rows["messages"] = (self.rounds, speakers, self.message), np.float32
            rows["heard"] = (self.rounds, speakers), np.bool_
        self.inputs = rows
        """Shape of a row, and type, of every input."""
        size = (group.action.size,)
        self.outputs: dict[str, tuple[tuple[int, ...], type]]
        if isinstance(group.action, Discrete):
            self.outputs = {"action": ((), np.int64), "logits": (size, np.float32)}
        else:
            self.outputs = {"action": (size, np.float32)}
            if log_std.shape[1]:
                self.outputs["std"] = size, np.float32
        if self.memory:
            self.outputs["next_memory"] = (self.memory,), np.float32
        if self.rounds:
            self.outputs["message"] = (self.rounds, self.message), np.float32

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        now = dict(zip(self.inputs, given, strict=True))
        agent, x = now["agent"], real(now["obs"])
        x = self.eyes(x, agent) if self.eyes else x.flatten(1)
        if self.identity.shape[1]:
            x = torch.cat([x, self.identity[agent]], 1)
        for layer in self.hidden:
            x = layer(x, agent)
            x = (normalise(x) if self.norm else x).relu()
        after = []
        if self.gru:
            x = self._remember(x, now["memory"], agent)
            after.append(x)
        said = []
        for k in range(self.rounds):
            said.append(self._speak(k, x, agent))
            x = self._listen(k, x, said[k], now["messages"][:, k], now["heard"][:, k], agent)
        if said:
            after.append(torch.stack(said, 1))
        return (*self._decide(self.head(x, agent), now), *after)

    def _remember(self, x: Tensor, memory: Tensor, agent: Tensor) -> Tensor:
        drive, recall = self.gru  # type: ignore[misc]
        driven, recalled = drive(x, agent).chunk(3, 1), recall(memory, agent).chunk(3, 1)
        r, z = ((driven[j] + recalled[j]).sigmoid() for j in range(2))
        n = (driven[2] + r * recalled[2]).tanh()
        after: Tensor = n + z * (memory - n)
        return after

    def _speak(self, k: int, x: Tensor, agent: Tensor) -> Tensor:
        said: Tensor = self.mouths[k](x, agent)
        if self.talk.kind != "gated":
            return said
        return torch.cat([said[:, :-1], (said[:, -1:].sigmoid() > 0.5).to(said.dtype)], 1)

    def _listen(self, k: int, x: Tensor, own: Tensor, messages: Tensor, heard: Tensor, agent: Tensor) -> Tensor:
        """`messages` `[batch, speaker, message]`, its own among them or not."""
        me = torch.arange(self.speakers) == (agent + self.first).unsqueeze(1)
        messages = torch.where((heard & ~me).unsqueeze(2), messages, 0.0)
        if self.talk.kind == "attention":
            messages = torch.where(me.unsqueeze(2), own.unsqueeze(1), messages)
            context = self._attend(self.queries[k](x, agent), messages, heard | me)
        else:
            weight = (heard & ~me).to(messages.dtype)
            if self.talk.kind == "gated":
                messages, gate = messages[..., :-1], messages[..., -1]
                weight = weight * gate
            context = (weight.unsqueeze(1) @ messages).squeeze(1) / weight.sum(1, keepdim=True).clamp(min=1.0)
        after: Tensor = self.ears[k](torch.cat([x, context], 1), agent).relu()
        return after

    def _attend(self, query: Tensor, messages: Tensor, heard: Tensor) -> Tensor:
        heads = self.talk.heads
        signature, value = (part.unflatten(2, (heads, -1)) for part in messages.chunk(2, 2))
        query = query.unflatten(1, (heads, -1)).unsqueeze(1)
        score = (query * signature).sum(3) / math.sqrt(query.shape[-1])  # [batch, speaker, head]
        attention = score.masked_fill(~heard.unsqueeze(2), UNHEARD).softmax(1)
        context: Tensor = (attention.unsqueeze(3) * value).sum(1)
        return context.flatten(1)

    def _decide(self, out: Tensor, now: Groups) -> tuple[Tensor, ...]:
        if isinstance(self.group.action, Discrete):
            logits = actions.mask_logits(out, now["legal"]) if self.group.masked else out
            return logits.argmax(1), logits
        mean, shift = out.tensor_split((self.group.action.size,), 1)
        if not self.log_std.shape[1]:
            return (mean.tanh(),)
        log_std = self.log_std[now["agent"]]
        return mean.tanh(), (log_std + shift if shift.shape[1] else log_std).clamp(*actions.LOG_STD).exp()
