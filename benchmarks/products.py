"""A network's last layer, as it is written and the other way round (`shoal.nets.mlp`), interleaved, one thread.

    python benchmarks/products.py

Microseconds of x W + b and of its gradients (of x, W and b) through autograd, for rows of 64 numbers; and the rows from
which shoal turns the product round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from shoal.nets import mlp

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


def compare(rows: int, columns: int) -> list[float]:
    """Microseconds as written and turned round: the fastest of the rounds."""
    shapes = (1, rows, WIDTH), (1, WIDTH, columns), (1, 1, columns)
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    grad = torch.randn(1, rows, columns)
    ways = [partial(way, *tensors) for way in (written, turned)]

    def spent(way: Callable[[], torch.Tensor]) -> float:
        return microseconds(lambda: torch.autograd.grad(way(), tensors, grad))

    rounds = [[spent(way) for way in ways] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def main() -> None:
    torch.set_num_threads(1)
    print(f"turned round from {mlp.FEW} rows, below {mlp.NARROW} columns; the fastest of {ROUNDS} rounds\n")
    print("| rows | columns | as written | turned round | ratio |\n|---|---|---|---|---|")
    for rows in (32, 96, 128, 256, 512, 1536, 9600):
        for columns in (2, 5, 12, 16):
            first, second = compare(rows, columns)
            print(f"| {rows} | {columns} | {first:.0f} | {second:.0f} | {first / second:.2f} |")


if __name__ == "__main__":
    main()
