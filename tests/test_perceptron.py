"""Compiled perceptrons against the same equations in double precision, an operation at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.nets import perceptron
from shoal.nets.mlp import Mlp
from shoal.nets.perceptron import Between
from shoal.threads import Crew, lend


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def precise(net: Mlp, x: Tensor, between: Between) -> tuple[Tensor, list[Tensor]]:
    """The output, and what it depends on: input and parameters, in double precision."""
    leaves = [t.detach().double().requires_grad_() for t in (x, *(p for layer in net.layers for p in layer))]
    out = leaves[0]
    for k in range(len(net.layers)):
        if k and between == "norm":
            out = (out - out.mean(-1, keepdim=True)) / (out.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        if k:
            out = out.tanh() if between == "tanh" else out.relu()
        out = out @ leaves[1 + 2 * k] + leaves[2 + 2 * k]
    return out, leaves


@pytest.mark.parametrize("sizes", [(5, 3), (5, 20), (7, 16, 1), (18, 64, 64, 5), (6, 40, 24, 33)])
@pytest.mark.parametrize(("copies", "rows"), [(1, 1), (1, 700), (3, 257)])
@pytest.mark.parametrize("agents_inside", [False, True])
@pytest.mark.parametrize("between", ["relu", "tanh", "norm"])
@pytest.mark.parametrize("threads", [0, 2])
def test_outputs_and_gradients_are_those_of_the_equations(
    sizes: tuple[int, ...],
    copies: int,
    rows: int,
    agents_inside: bool,
    between: Between,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With threads, in as many parts as there can be."""
    crew = Crew(threads) if threads else None
    if threads:
        monkeypatch.setattr(perceptron, "PART", 1)
    net = Mlp(sizes, copies, torch.Generator().manual_seed(0))
    x = draw(rows, copies, sizes[0]).transpose(0, 1) if agents_inside else draw(copies, rows, sizes[0])
    x.requires_grad_()
    grad = draw(copies, rows, sizes[-1], seed=2)
    out = perceptron.forward(x, net.layers, between, crew)
    expected, leaves = precise(net, x, between)
    assert torch.allclose(out.double(), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(perceptron.forward(x, net.layers, between, crew), out)
        assert torch.allclose(perceptron.plain(x, net.layers, between)[0], out, atol=1e-5)
    found = torch.autograd.grad(out, [x, *(p for layer in net.layers for p in layer)], grad)
    for one, other in zip(found, torch.autograd.grad(expected, leaves, grad.double()), strict=True):
        assert torch.allclose(one.double(), other, atol=1e-4, rtol=1e-4)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptron, "PART", 1)
    net = Mlp((18, 64, 5), 2, torch.Generator().manual_seed(0))
    x, found = draw(2, 900, 18), []
    for count in (1, 2, 3):
        lend(Crew(count), net)
        out = net(x)
        found.append((out, *torch.autograd.grad(out.square().sum(), net.parameters())))
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_some_of_the_copies() -> None:
    net = Mlp((4, 8, 2), 3, torch.Generator().manual_seed(0))
    x = draw(3, 700, 4)
    assert torch.allclose(net(x[1:2], slice(1, 2)), net(x)[1:2], atol=1e-6)


def test_rows_that_are_one_and_the_same_in_memory() -> None:
    net = Mlp((4, 8, 2), 1, torch.Generator().manual_seed(0))
    row = draw(1, 1, 4)
    assert torch.allclose(perceptron.forward(row.expand(1, 300, 4), net.layers), net(row).expand(1, 300, 2), atol=1e-6)


def test_pullbacks_are_autograds() -> None:
    net = Mlp((6, 40, 24, 3), 2, torch.Generator().manual_seed(0))
    x, grad = draw(2, 300, 6).requires_grad_(), draw(2, 300, 3, seed=2)
    expected = torch.autograd.grad(net(x), [x, *net.parameters()], grad)
    with torch.no_grad():
        out, kept = net.linearize(x)
        assert torch.equal(out, net(x))
        assert torch.equal(net.pull_input(kept, grad), expected[0])
        assert all(parameter.grad is None for parameter in net.parameters())
        net.pull_weights(kept, grad)
    for parameter, other in zip(net.parameters(), expected[1:], strict=True):
        assert torch.equal(parameter.grad, other)


def test_other_numbers_go_an_operation_at_a_time() -> None:
    net = Mlp((4, 8, 2), 1, torch.Generator().manual_seed(0))
    x = draw(1, 9, 4)
    assert perceptron.fits(x, net.layers)
    assert not perceptron.fits(x.double(), net.layers)
    assert torch.allclose(net.double()(x.double()), net.float()(x).double(), atol=1e-6)
    empty = Mlp((0, 8, 2), 1, torch.Generator().manual_seed(0))
    assert empty(draw(1, 9, 0)).shape == (1, 9, 2)


@pytest.mark.parametrize("shape", [(1, 9, 5), (2, 9, 4), (9, 4)])
def test_what_does_not_fit_together_is_an_error(shape: tuple[int, ...]) -> None:
    net = Mlp((4, 8, 2), 1, torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="batch"):
        net(draw(*shape))
