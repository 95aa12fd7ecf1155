"""shoal's recurrent unit against `torch.nn.GRU`, on the same sequences, interleaved, one thread.

Sequences of 26 steps of 64 numbers into a memory of 64, for as many rows as 32 trajectories of 3 agents have.

    python benchmarks/gru.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from shoal.nets.gru import Gru

TIME, ROWS, SIZE, ROUNDS, REPEATS = 26, 96, 64, 15, 10


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(REPEATS):
        work()
    return (time.perf_counter() - start) / REPEATS * 1e3


def main() -> None:
    torch.set_num_threads(1)
    ours = Gru(SIZE, SIZE, 1, torch.Generator().manual_seed(0))
    theirs = torch.nn.GRU(SIZE, SIZE)
    x = torch.randn(TIME, ROWS, SIZE)
    memory, keep = torch.zeros(1, ROWS, SIZE), torch.ones(TIME, ROWS, dtype=torch.bool)

    def backward(out: torch.Tensor) -> None:
        out.sum().backward()

    works = {
        ("shoal", "forward"): lambda: ours(x.unsqueeze(0), memory, keep),
        ("torch.nn.GRU", "forward"): lambda: theirs(x, memory),
        ("shoal", "forward and backward"): lambda: backward(ours(x.unsqueeze(0), memory, keep)),
        ("torch.nn.GRU", "forward and backward"): lambda: backward(theirs(x, memory)[0]),
    }
    times: dict[tuple[str, str], list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            times[name].append(milliseconds(work))
    print(f"{TIME} steps, {ROWS} rows, {SIZE} wide; milliseconds, median of {ROUNDS} rounds\n")
    print("| | shoal | torch.nn.GRU | ratio |\n|---|---|---|---|")
    for what in ("forward", "forward and backward"):
        a, b = (statistics.median(times[who, what]) for who in ("shoal", "torch.nn.GRU"))
        print(f"| {what} | {a:.2f} | {b:.2f} | {b / a:.2f} |")


if __name__ == "__main__":
    main()
