"""Pictures to features: convolutions for many agents in one call, weights shared or stacked as a perceptron's are.

An observation of three axes, at least 5 high and 5 wide, is a picture `[height, width, channel]`; smaller boards are
read as plain numbers. The layers follow from the shorter side:

    5 .. 11     two of 3x3 (16 and 32 channels), without stride: boards
    12 .. 35    the same with stride 2
    36 ..       8x8 stride 4, 4x4 stride 2, 3x3 (32, 64, 64 channels; Mnih et al. 2015, "Nature")

None pads. ReLU follows each, and the last one's channels go to the hidden layers as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.nets.mlp import ALL
from shoal.nets.pool import WIDTH, Pool, Pooling, Sight, things
from shoal.types import Part, ShoalError

LEAST, STRIDED, LARGE_FROM = 5, 12, 36  # of a picture's shorter side
BOARD = ((16, 3, 1), (32, 3, 1))  # channels, kernel, stride
SMALL = ((16, 3, 2), (32, 3, 2))
LARGE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))

Kind = Literal["auto", "small", "large", "none"]


@dataclass(frozen=True)
class Block:
    """Columns of a network's input: `count` observations of one shape, beside each other."""

    shape: tuple[int, ...]
    count: int = 1
    parts: tuple[Part, ...] = ()
    """What each of them consists of, see `GroupSpec.parts`."""
    team: bool = False
    """They are those of all agents, whose number may change."""

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.count

    @property
    def picture(self) -> bool:
        return len(self.shape) == 3 and min(self.shape[:2]) >= LEAST


def flat(obs: Tensor, lead: int) -> Tensor:
    """`[*lead axes, *obs_shape] -> [*lead axes, columns]`; pictures stay uint8, a network makes numbers of them."""
    return obs.flatten(lead) if obs.dtype == torch.uint8 else obs.flatten(lead).to(torch.float32)


def real(x: Tensor) -> Tensor:
    """float32; of uint8, in [0, 1]."""
    return x.to(torch.float32).div_(255.0) if x.dtype == torch.uint8 else x


class Conv(nn.Module):
    """`copies` stacks of convolutions side by side: `[copies, rows, count, height, width, channel]` to features.

    Weights are drawn as `torch.nn.Conv2d` draws them (uniform, bound 1/sqrt(fan_in)), from `generator`.
    """

    def __init__(self, shape: tuple[int, ...], kind: Kind, copies: int, generator: torch.Generator) -> None:
        super().__init__()
        self.shape, height, width, depth, layers = shape, *shape, []
        self.strides = []
        self.activations = 0
        """Numbers that one picture's gradient needs."""
        for channels, kernel, stride in _layers(shape, kind):
            bound = 1.0 / math.sqrt(depth * kernel * kernel)
            for size in ((copies, channels, depth, kernel, kernel), (copies, channels)):
                layers.append(nn.Parameter(torch.rand(size, generator=generator).mul_(2 * bound).sub_(bound)))
            self.activations += height * width * depth
            height, width, depth = (height - kernel) // stride + 1, (width - kernel) // stride + 1, channels
            self.strides.append(stride)
        self.size = height * width * depth
        """Features of one picture."""
        self.activations += self.size
        self.stack = nn.ParameterList(layers)
        self.layers = list(zip(layers[::2], layers[1::2], strict=True))

    def forward(self, x: Tensor, some: slice = ALL) -> Tensor:
        """`[copies, rows, count, *shape] -> [copies, rows, count * size]`, of all copies or of `some`."""
        copies, rows, count = x.shape[:3]
        x = x.permute(1, 2, 0, 5, 3, 4).reshape(rows * count, copies * self.shape[2], *self.shape[:2])
        for (weight, bias), stride in zip(self.layers, self.strides, strict=True):
            kernel = weight[some].flatten(0, 1)
            x = functional.conv2d(x, kernel, bias[some].flatten(), stride, groups=copies).relu_()
        return x.reshape(rows, count, copies, -1).movedim(2, 0).flatten(2)


class Eyes(nn.Module):
    """What a network's perceptron sees of its input: of pictures their features, everything else as it is.

    With `pool`, things of a kind are one vector, and so are the observations of all agents.

    Args:
        blocks: what the input's columns are, in their order.
        kind: of the convolutions, see `Net.conv` of the algorithms.
        copies: of networks side by side.
        pool: how things are pooled, see `Net.pool`.

    Raises:
        ShoalError: a picture too small for `kind`.
    """

    def __init__(
        self,
        blocks: tuple[Block, ...],
        kind: Kind,
        copies: int,
        generator: torch.Generator,
        pool: Pooling = "none",
    ) -> None:
        super().__init__()
        self.blocks = blocks = tuple(block for block in blocks if block.size)
        self.convs = {
            k: Conv(block.shape, kind, copies, generator)
            for k, block in enumerate(blocks)
            if block.picture and kind != "none"
        }
        self.stack = nn.ModuleList(self.convs.values())
        pooled = list(enumerate(blocks)) if pool != "none" else []
        self.sights = {k: Sight(b.parts, pool, copies, generator) for k, b in pooled if things(b.parts)}
        self.sizes = [block.size for block in blocks]
        """Columns of the input, by block."""
        seen = {k: math.prod(block.shape) for k, block in enumerate(blocks)}
        seen |= {k: eye.size for k, eye in (self.convs | self.sights).items()}
        self.teams = {k: Pool(0, seen[k], pool, copies, generator) for k, block in pooled if block.team}
        self.pools = nn.ModuleList([*self.sights.values(), *self.teams.values()])
        self.plain = not (self.convs or self.sights or self.teams)
        self.size = sum(WIDTH if k in self.teams else seen[k] * block.count for k, block in enumerate(blocks))
        """Columns of the output."""

    @property
    def activations(self) -> int:
        """Numbers that the gradient of one row needs, beside the perceptron's."""
        eyes = sum(eye.activations * self.blocks[k].count for k, eye in (self.convs | self.sights).items())
        return eyes + sum(WIDTH * self.blocks[k].count for k in self.teams)

    def forward(self, x: Tensor, some: slice = ALL) -> Tensor:
        """`[copies, rows, columns]`, uint8 if it is all pictures, `-> [copies, rows, size]` float32."""
        if self.plain:
            return real(x)
        parts = [real(part) for part in x.split(self.sizes, -1)]
        for k, conv in self.convs.items():
            block = self.blocks[k]
            parts[k] = conv(parts[k].unflatten(-1, (block.count, *block.shape)), some)
        for k, sight in self.sights.items():
            rows = parts[k].unflatten(-1, (self.blocks[k].count, -1))
            parts[k] = sight(rows.flatten(1, 2), some).unflatten(1, rows.shape[1:3]).flatten(2)
        for k, team in self.teams.items():
            rows = parts[k].unflatten(-1, (self.blocks[k].count, -1))
            parts[k] = team(rows[:, :, 0, :0], rows, some)
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _layers(shape: tuple[int, ...], kind: Kind) -> tuple[tuple[int, int, int], ...]:
    side = min(shape[:2])
    if kind == "large" and side < LARGE_FROM:
        raise ShoalError(f"a picture {shape} is too small for large convolutions: set net.conv to auto or small")
    if kind == "large" or (kind == "auto" and side >= LARGE_FROM):
        return LARGE
    return SMALL if side >= STRIDED else BOARD
