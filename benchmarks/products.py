"""Matrix products as shoal compiles them (`shoal.nets.product`) and as PyTorch's library has them; a network of 64-64
units compiled (`shoal.nets.perceptron`) and an operation at a time. Interleaved, one thread.

    python benchmarks/products.py

GFLOP/s of [rows, terms] x [terms, columns], and of [terms, rows]' x [terms, columns] where it says so, as the gradient
of a weight is. Microseconds of a network of 18 inputs and 5 outputs, alone and with its gradients (not of the input).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from shoal.nets import perceptron, product
from shoal.nets.mlp import Mlp

ROUNDS, SECONDS = 9, 0.02
SHAPES = [  # rows, terms, columns, and whether the first is transposed
    *((192, 18, 64, False), (192, 64, 64, False), (192, 64, 5, False), (64, 192, 64, True), (5, 192, 64, True)),
    *((192, 128, 128, False), (96, 64, 192, False), (192, 256, 256, False), (1024, 1024, 1024, False)),
]
Array = NDArray[np.float32]


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        work()
        calls += 1
    return (time.perf_counter() - start) / calls


def compare(*ways: Callable[[], object]) -> list[float]:
    """The fastest of the rounds, of each."""
    for way in ways:
        way()
    return [min(times) for times in zip(*([seconds(way) for way in ways] for _ in range(ROUNDS)), strict=True)]


@njit
def repeated(dot: int, a: Array, b: Array, out: Array, times: int) -> None:
    for _ in range(times):
        product.multiply(dot, a, b, out)


def library(a: Tensor, b: Tensor, out: Tensor, times: int) -> None:
    for _ in range(times):
        torch.mm(a, b, out=out)


def rates(rows: int, terms: int, columns: int, turned: bool) -> list[float]:
    a = torch.randn(terms, rows).t() if turned else torch.randn(rows, terms)
    b, out, times = torch.randn(terms, columns), torch.empty(rows, columns), 20
    ours = partial(repeated, product.address(), a.numpy(), b.numpy(), out.numpy(), times)
    return [2 * rows * terms * columns * times / s / 1e9 for s in compare(partial(library, a, b, out, times), ours)]


def networks(rows: int, width: int) -> list[float]:
    net = Mlp((18, width, width, 5), 1, torch.Generator().manual_seed(0))
    x, parameters = torch.randn(1, rows, 18), list(net.parameters())
    grad = torch.randn(1, 5, rows).transpose(1, 2)  # as losses over actions leave it, by columns
    ways = [lambda: perceptron.plain(x, net.layers)[0], lambda: perceptron.forward(x, net.layers)]
    with torch.no_grad():
        found = compare(*ways)
    return [s * 1e6 for s in found + compare(*(partial(gradients, way, parameters, grad) for way in ways))]


def gradients(way: Callable[[], Tensor], parameters: list[Tensor], grad: Tensor) -> object:
    return torch.autograd.grad(way(), parameters, grad)


def main() -> None:
    torch.set_num_threads(1)
    print(f"vectors of {product.LANES} numbers; the fastest of {ROUNDS} rounds\n")
    print("| rows | terms | columns | library, GFLOP/s | compiled | ratio |\n|---|---|---|---|---|---|")
    for shape in SHAPES:
        theirs, ours = rates(*shape)
        rows, terms, columns, turned = shape
        print(f"| {rows}{chr(39) * turned} | {terms} | {columns} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |")
    print("\n| rows | units | operations, us | compiled | ratio | with gradients | compiled | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for width in (64, 256):
        for rows in (1, 32, 96, 512, 2400, 9600):
            one, two, three, four = networks(rows, width)
            times = f"{one:.0f} | {two:.0f} | {one / two:.2f} | {three:.0f} | {four:.0f} | {three / four:.2f}"
            print(f"| {rows} | {width}-{width} | {times} |")


if __name__ == "__main__":
    main()
