"""A policy's network, as settings say: for algorithms whose agents may have memory, talk, and pool what they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from shoal.nets.comm import Talk, Way
from shoal.nets.conv import Block, Kind
from shoal.nets.dense import AgentNet
from shoal.nets.pool import Pooling
from shoal.types import GroupSpec


@dataclass(frozen=True)
class Net:
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    memory: int = 0
    """Width of the recurrent unit (GRU) between the hidden layers and the output; 0: no memory."""
    shared: bool = True
    """One set of weights for all agents of a group instead of one each."""
    identity: bool = False
    """Tell agents that share weights apart by a number in their input: where what they see does not."""
    norm: Literal["none", "layer"] = "none"
    """Hidden units before ReLU: as they are, or shifted and scaled to mean 0 and standard deviation 1 in every row."""
    conv: Kind = "auto"
    """Convolutions in front of the hidden layers: auto: by a picture's size; small, large; none: its plain numbers."""
    pool: Pooling = "none"
    """How things of a kind are seen, of which there may be any number (landmarks, others): beside each other (none), or
    as one vector: their mean, or what the agent attends to."""
    comm: Way = "none"
    """How agents talk before they act: none, mean (CommNet), attention (TarMAC), gated (after IC3Net)."""
    message: int = 32
    """Numbers in a message."""
    rounds: int = 1
    """Messages of each agent in each step."""
    heads: int = 1
    """Of attention."""

    def build(self, group: GroupSpec, outputs: int, generator: torch.Generator) -> AgentNet:
        """The network of a group's agents."""
        return AgentNet(
            group.num_agents, (group.obs_size, *self.hidden, outputs), shared=self.shared, generator=generator,
            identity=self.identity, memory=self.memory, blocks=(Block(group.obs_shape, parts=group.parts),),
            conv=self.conv, pool=self.pool, talk=Talk(self.comm, self.message, self.rounds, self.heads),
            norm=self.norm == "layer",
        )  # fmt: skip

    def tied(self) -> list[str]:
        """Settings to change before the weights fit any number of agents."""
        found = {
            "net.pool to mean or attention": self.pool == "none",
            "net.shared to True": not self.shared,
            "net.identity to False": self.shared and self.identity,
        }
        return [change for change, needed in found.items() if needed]
