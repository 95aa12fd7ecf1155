"""Rollouts cut up for learning: into sequences, minibatches, and pieces that threads share.

All of them work on any tree of tensors `[time, batch, ...]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from shoal import tree
from shoal.nets.dense import AgentNet
from shoal.replay import Fresh
from shoal.types import EnvSpec, ShoalError

T = TypeVar("T")

PIECE = 3200
"""Environment steps whose gradient one thread computes at a time: more would leave cores idle, fewer cost overhead."""
WORTH = 30_000_000
"""Weights that a batch meets on its way through the networks, from which it is worth a second thread's wake-up."""
PAIR = 1000
"""Environment steps of each of two pieces, at least, where threads share the rows of networks anyway."""
PIECE_BYTES = 2**28
"""That the convolutions of one piece may take: with pictures, pieces are smaller."""


def fresh(spec: EnvSpec, num_envs: int, batch_steps: int, sequence: int, memory: int) -> Fresh:
    """Rollouts of `batch_steps` steps of all environments together; with memory, of sequences (0: each is one).

    Raises:
        ShoalError: rollouts do not divide into sequences, or are more than this machine's memory.
    """
    steps = max(batch_steps // num_envs, 1)
    if memory and sequence and steps % sequence:
        raise ShoalError(
            f"rollouts of {steps} steps ({batch_steps} of {num_envs} environments) do not divide into "
            f"sequences of {sequence}"
        )
    return Fresh(spec, num_envs, steps, memory)


def sequences(rollout: T, length: int) -> T:
    """From `[time, env, ...]` to sequences of `length` steps, `[length, env times as many, ...]`."""
    return tree.map(lambda x: x.unflatten(0, (-1, length)).transpose(0, 1).flatten(1, 2), rollout)


def minibatches(batch: T, size: int, count: int, generator: torch.Generator, device: torch.device) -> Iterator[T]:
    """The `size` sequences of a batch, shuffled, in `count` parts; as they are, where that is 1."""
    if count == 1:
        yield batch
        return
    for rows in torch.randperm(size, generator=generator).to(device).tensor_split(min(count, size)):
        yield tree.map(lambda x, rows=rows: x.index_select(1, rows), batch)  # a third of the time of x[:, rows]


@dataclass(frozen=True)
class Cut:
    """How a batch is divided among threads: by what its networks cost, so that results do not depend on the threads."""

    most: int
    """Environment steps in a piece."""
    least: int
    """Steps of a batch from which there are two pieces: fewer where networks do not share their rows themselves."""

    @classmethod
    def of(cls, nets: Iterable[AgentNet]) -> Cut:
        """For gradients through `nets`."""
        nets = list(nets)
        size = 4 * sum(net.num_agents * net.eyes.activations for net in nets)
        met = sum(sum(w.numel() for w in net.parameters()) * (net.num_agents if net.shared else 1) for net in nets)
        least = max(WORTH // max(met, 1), 1)
        if all(net.eyes.plain and not net.channel.rounds for net in nets):
            least = PIECE if any(net.memory for net in nets) else max(least, PAIR)
        return cls(min(PIECE, max(PIECE_BYTES // size, 1)) if size else PIECE, least)

    def __call__(self, batch: T, ended: Tensor) -> list[T]:
        """The batch axis in even parts, on a CPU. `ended` is that of the batch, `[time, batch]`."""
        if ended.device.type != "cpu":
            return [batch]
        time, size = ended.shape
        count = min(max(math.ceil(time * size / self.most), min(2, time * size // self.least)), size)
        if count == 1:
            return [batch]
        edges = [size * k // count for k in range(count + 1)]
        return [tree.index(batch, (slice(None), slice(*edges[k : k + 2]))) for k in range(count)]
