"""A network's last layer, as it is written and the other way round (`shoal.nets.mlp`); a network of 64-64 units, an
operation at a time and compiled (`shoal.nets.perceptron`). Interleaved, one thread.

    python benchmarks/products.py

Microseconds of x W + b and of its gradients (of x, W and b) through autograd, for rows of 64 numbers; of a network of
18 inputs and as many outputs as there are columns, and of its gradients (not of x). And the rows from which shoal turns
the product round, and uses what is compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from shoal.nets import mlp, perceptron

WIDTH, ROUNDS, REPEATS = 64, 15, 20


def microseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(REPEATS):
        work()
    return (time.perf_counter() - start) / REPEATS * 1e6


def written(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.baddbmm(bias, x, weight)


def turned(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return mlp._Columns.apply(x, weight, bias).transpose(1, 2)  # type: ignore[no-any-return]


Way = Callable[[], torch.Tensor]


def layers(rows: int, columns: int) -> list[float]:
    """Microseconds as written and turned round."""
    shapes = (1, rows, WIDTH), (1, WIDTH, columns), (1, 1, columns)
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    return compare([partial(way, *tensors) for way in (written, turned)], tensors, torch.randn(1, rows, columns))


def networks(rows: int, columns: int) -> list[float]:
    """Microseconds an operation at a time and compiled."""
    net = mlp.Mlp((18, WIDTH, WIDTH, columns), 1, torch.Generator().manual_seed(0))
    x = torch.randn(1, rows, 18)
    ways: list[Way] = [lambda: net.linearize(x)[0], lambda: perceptron.forward(x, net.layers)]
    # as losses over actions leave it, by columns
    return compare(ways, list(net.parameters()), torch.randn(1, columns, rows).transpose(1, 2))


def compare(ways: list[Way], tensors: list[torch.Tensor], grad: torch.Tensor) -> list[float]:
    """The fastest of the rounds."""

    def spent(way: Way) -> float:
        return microseconds(lambda: torch.autograd.grad(way(), tensors, grad))

    rounds = [[spent(way) for way in ways] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def main() -> None:
    torch.set_num_threads(1)
    print(f"turned round from {mlp.FEW} rows, below {mlp.NARROW} columns; the fastest of {ROUNDS} rounds\n")
    print("| rows | columns | as written | turned round | ratio |\n|---|---|---|---|---|")
    for rows in (32, 96, 128, 256, 512, 1536, 9600):
        for columns in (2, 5, 12, 16):
            first, second = layers(rows, columns)
            print(f"| {rows} | {columns} | {first:.0f} | {second:.0f} | {first / second:.2f} |")
    print(f"\ncompiled from {perceptron.LEAST} rows\n")
    print("| rows | columns | operations | compiled | ratio |\n|---|---|---|---|---|")
    for rows in (256, 1024, 2048, 4096, 9600):
        for columns in (1, 5, 16):
            first, second = networks(rows, columns)
            print(f"| {rows} | {columns} | {first:.0f} | {second:.0f} | {first / second:.2f} |")


if __name__ == "__main__":
    main()
