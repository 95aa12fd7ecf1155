"""Compiled perceptrons against the same equations in double precision, an operation at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.nets import perceptron
from shoal.nets.mlp import Mlp


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def precise(net: Mlp, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output, and what it depends on: input and parameters, in double precision."""
    leaves = [t.detach().double().requires_grad_() for t in (x, *(p for layer in net.layers for p in layer))]
    out = leaves[0]
    for k in range(len(net.layers)):
        out = (out if k == 0 else out.relu()) @ leaves[1 + 2 * k] + leaves[2 + 2 * k]
    return out, leaves


@pytest.mark.parametrize("sizes", [(5, 3), (5, 20), (7, 16, 1), (18, 64, 64, 5), (6, 40, 24, 33)])
@pytest.mark.parametrize(("copies", "rows"), [(1, 1), (1, 700), (3, 257)])
@pytest.mark.parametrize("agents_inside", [False, True])
def test_outputs_and_gradients_are_those_of_the_equations(
    sizes: tuple[int, ...], copies: int, rows: int, agents_inside: bool
) -> None:
    net = Mlp(sizes, copies, torch.Generator().manual_seed(0))
    x = draw(rows, copies, sizes[0]).transpose(0, 1) if agents_inside else draw(copies, rows, sizes[0])
    x.requires_grad_()
    grad = draw(copies, rows, sizes[-1], seed=2)
    out = perceptron.forward(x, net.layers)
    expected, leaves = precise(net, x)
    assert torch.allclose(out.double(), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(perceptron.forward(x, net.layers), out)
    found = torch.autograd.grad(out, [x, *(p for layer in net.layers for p in layer)], grad)
    for one, other in zip(found, torch.autograd.grad(expected, leaves, grad.double()), strict=True):
        assert torch.allclose(one.double(), other, atol=1e-4, rtol=1e-4)


def test_some_of_the_copies() -> None:
    net = Mlp((4, 8, 2), 3, torch.Generator().manual_seed(0))
    x = draw(3, perceptron.LEAST, 4)
    assert torch.allclose(net(x[1:2], slice(1, 2)), net(x)[1:2], atol=1e-6)


def test_rows_that_are_one_and_the_same_in_memory() -> None:
    net = Mlp((4, 8, 2), 1, torch.Generator().manual_seed(0))
    row = draw(1, 1, 4)
    assert torch.allclose(perceptron.forward(row.expand(1, 300, 4), net.layers), net(row).expand(1, 300, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.zeros(1, perceptron.LEAST, 4), True),
        (torch.zeros(2, perceptron.LEAST // 2, 4), True),
        (torch.zeros(1, perceptron.LEAST - 1, 4), False),
        (torch.zeros(1, perceptron.LEAST, 4, dtype=torch.float64), False),
        (torch.zeros(1, perceptron.LEAST, 0), False),
    ],
)
def test_few_rows_and_other_numbers_go_the_other_way(x: Tensor, expected: bool) -> None:
    net = Mlp((x.shape[-1], 8, 2), len(x), torch.Generator().manual_seed(0))
    assert perceptron.fits(x, net.layers) == expected
