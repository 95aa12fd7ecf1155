"""The same operation on every tensor of a nested structure of dataclasses, dicts, lists and tuples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def map(function: Callable[..., Any], tree: T, *others: T) -> T:
    """`function` of each tensor of `tree`, with the tensors at the same place in `others`."""
    return _map(function, tree, others)  # type: ignore[no-any-return]


def _map(function: Callable[..., Any], tree: Any, others: Sequence[Any]) -> Any:
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, dict):
        return {key: _map(function, value, [other[key] for other in others]) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map(function, values[0], values[1:]) for values in zip(tree, *others, strict=True))
    if is_dataclass(tree):
        kind: Any = type(tree)
        names = [field.name for field in fields(tree)]
        return kind(**{n: _map(function, getattr(tree, n), [getattr(o, n) for o in others]) for n in names})
    return tree


def leaves(tree: Any) -> list[Tensor]:
    """Every tensor, in the order `map` visits them."""
    found: list[Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        found.append(tree)
    elif isinstance(tree, dict):
        for value in tree.values():
            _gather(value, found)
    elif isinstance(tree, list | tuple):
        for value in tree:
            _gather(value, found)
    elif is_dataclass(tree):
        _gather(vars(tree), found)


def stack(trees: list[T], dim: int = 0) -> T:
    """One tree with a new axis from many of the same structure."""
    return map(lambda *tensors: torch.stack(tensors, dim), trees[0], *trees[1:])


def cat(trees: list[T], dim: int = 0) -> T:
    """One tree, joined along an axis."""
    return map(lambda *tensors: torch.cat(tensors, dim), trees[0], *trees[1:])


def join(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat`, without a copy where there is but one."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def index(tree: T, where: Any) -> T:
    """`tensor[where]` everywhere."""
    return map(lambda tensor: tensor[where], tree)


def copy_(into: Any, source: Any) -> None:
    """Copy every tensor of `source` over the one at the same place of `into`."""
    for target, tensor in zip(leaves(into), leaves(source), strict=True):
        target.copy_(tensor)


def to(tree: T, device: torch.device) -> T:
    """Everything on `device`. What is played lives on the CPU, so there nothing is looked at."""
    return tree if device.type == "cpu" else map(lambda tensor: tensor.to(device), tree)
