"""Things of a kind, however many, to one vector: weights do not depend on their number, nor the result on their order.

Where o is what the agent knows of itself and x_j what it knows of the j-th landmark, say,

    e_j = relu(W [o, x_j] + b)
    mean        c = mean_j e_j                                       (Zaheer et al. 2017, arXiv 1703.06114)
    attention   c = sum_j a_j e_j with a_j = softmax_j(q(o) e_j / sqrt(d)), q linear
                                                                     (Vaswani et al. 2017, arXiv 1706.03762, eq. 1)

An e_j is its own key and value: matrices of theirs would be products with the query's and with the next layer's. Of no
things c is 0. Agents are pooled as things are, where values see everybody: there o is empty, and q a constant.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from shoal.nets.mlp import ALL, Mlp
from shoal.types import SELF, Part

Pooling = Literal["none", "mean", "attention"]
WIDTH = 64


class Pool(nn.Module):
    """`copies` of them side by side.

    Args:
        own: width of o.
        size: of x_j.
        kind: mean or attention.
    """

    def __init__(self, own: int, size: int, kind: Pooling, copies: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embed = Mlp((own + size, WIDTH), copies, generator)
        self.query = [Mlp((own, WIDTH), copies, generator)] if kind == "attention" else []
        self.stack = nn.ModuleList(self.query)

    @torch.no_grad()
    def orthogonal(self, generator: torch.Generator) -> None:
        """Draw all weights anew: sqrt(2) for the ReLU, queries with gain 1."""
        for mlp, gain in ((self.embed, math.sqrt(2)), *((query, 1.0) for query in self.query)):
            weight, bias = mlp.layers[0]
            bias.zero_()
            for copy in weight:
                nn.init.orthogonal_(copy, gain, generator=generator)

    def forward(self, own: Tensor, things: Tensor, some: slice = ALL) -> Tensor:
        """`[copies, rows, own]` and `[copies, rows, thing, size] -> [copies, rows, WIDTH]`, of all copies or `some`."""
        count = things.shape[2]
        x = torch.cat([own.unsqueeze(2).expand(-1, -1, count, -1), things], -1)
        embedded: Tensor = self.embed(x.flatten(1, 2), some).relu().view(*things.shape[:3], WIDTH)
        if not self.query:
            return embedded.sum(2) / max(count, 1)
        query = self.query[0](own, some).unsqueeze(2)
        attention = ((query * embedded).sum(-1) / math.sqrt(WIDTH)).softmax(-1)
        found: Tensor = (attention.unsqueeze(-1) * embedded).sum(2)
        return found


class Sight(nn.Module):
    """An observation of `parts` to `self` and a vector for every kind of things.

    Args:
        parts: with things in them.
        kind, copies: see `Pool`.
    """

    def __init__(self, parts: tuple[Part, ...], kind: Pooling, copies: int, generator: torch.Generator) -> None:
        super().__init__()
        self.parts, self.widths = parts, [part.size * part.count for part in parts]
        sizes = {name: sum(part.size for part in parts if part.name == name) for name in (SELF, *things(parts))}
        own = sizes.pop(SELF)
        self.pools = nn.ModuleList(Pool(own, size, kind, copies, generator) for size in sizes.values())
        self.names = list(sizes)
        self.size = own + WIDTH * len(sizes)
        """Columns of the output."""
        self.activations = WIDTH * sum(part.count for part in parts)
        """Numbers that one observation's gradient needs."""

    def forward(self, x: Tensor, some: slice = ALL) -> Tensor:
        """`[copies, rows, columns] -> [copies, rows, size]`, of all copies or of `some`."""
        found: dict[str, list[Tensor]] = {SELF: [x[..., :0]]}
        for part, columns in zip(self.parts, x.split(self.widths, -1), strict=True):
            seen = columns if part.name == SELF else columns.unflatten(-1, (part.count, part.size))
            found.setdefault(part.name, []).append(seen)
        own = torch.cat(found[SELF], -1)
        pooled = [
            pool(own, torch.cat(found[name], -1), some) for name, pool in zip(self.names, self.pools, strict=True)
        ]
        return torch.cat([own, *pooled], -1)


def things(parts: tuple[Part, ...]) -> list[str]:
    """The kinds of which there may be any number."""
    return list(dict.fromkeys(part.name for part in parts if part.name != SELF))
