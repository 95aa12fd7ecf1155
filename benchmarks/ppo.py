"""How fast the PPO family trains, beside the matrix products that it consists of, in one run.

Simple_spread with three agents: 512 environments, rollouts of 25 steps, 4 epochs of one minibatch, networks of 64-64.
The ceiling is products of the same shapes and nothing else, on as many threads, each with its own tensors.

    python benchmarks/ppo.py
    python benchmarks/ppo.py --workers 1
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

import shoal
from shoal.algorithms.ppo import PPO
from shoal.nets.product import address, multiply
from shoal.threads import Crew, cores

ENVS, TIME, EPOCHS, ROUNDS = 512, 25, 4, 5
Array = NDArray[np.float32]


def operations(algorithm: PPO) -> int:
    """Additions and multiplications of the products of one epoch, for one environment step: forward and both gradients.

    The gradient of what the first layer sees is not needed, and not counted.
    """
    total = 0
    actors = [(actor.net, actor.net.num_agents) for actor in algorithm.actors.values()]
    for net, rows in [*actors, *((critic, critic.num_agents) for critic in algorithm.critics.values())]:
        sizes = [weight.shape[-2] * weight.shape[-1] for weight, _ in net.mlp.layers]
        total += rows * 2 * (3 * sum(sizes) - sizes[0])
    return total


@njit(nogil=True)
def products(dot: int, x: Array, weight: Array, out: Array, grad: Array, repeats: int) -> None:
    """As forth and back, a block at a time: of its output, and of both gradients."""
    for _ in range(repeats):
        for k in range(len(x)):
            multiply(dot, x[k], weight, out)
            multiply(dot, x[k].T, out, grad)
            multiply(dot, out, weight, x[k])


def ceiling(workers: int) -> float:
    """Floating-point operations a second of the products of a 64-64 network's middle layer, and nothing else."""
    crew, blocks, rows, repeats = Crew(workers), 25, 192, 60
    shapes = (blocks, rows, 64), (64, 64), (rows, 64), (64, 64)
    tensors = [[np.zeros(shape, np.float32) for shape in shapes] for _ in range(workers)]
    crew.map(lambda k: products(address(), *tensors[k], 1), range(workers))
    start = time.perf_counter()
    crew.map(lambda k: products(address(), *tensors[k], repeats), range(workers))
    return workers * repeats * blocks * 3 * rows * 64 * 64 * 2 / (time.perf_counter() - start)


def training(name: str, workers: int) -> Iterator[tuple[float, float, float]]:
    """Per round: environment steps a second in all, those of collecting, and operations a second of learning."""
    env = shoal.make("mpe/simple_spread", num_envs=ENVS)
    algorithm = shoal.build(name, env.spec, batch_steps=ENVS * TIME, epochs=EPOCHS, minibatches=1, workers=workers)
    assert isinstance(algorithm, PPO)
    loop, rollouts = iter(shoal.train(algorithm, env, total_steps=10**9)), 12
    next(loop)
    while True:
        progress = next(loop)
        seconds, learning = progress.seconds, progress.learning_seconds
        for _ in range(rollouts):
            progress = next(loop)
        seconds, learning = progress.seconds - seconds, progress.learning_seconds - learning
        steps = rollouts * ENVS * TIME
        yield steps / seconds, steps / (seconds - learning), steps * EPOCHS * operations(algorithm) / learning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=cores())
    workers = parser.parse_args().workers
    torch.set_num_threads(1)
    runs = {name: training(name, workers) for name in ("ippo", "mappo")}
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    ceilings = []
    for _ in range(ROUNDS):
        ceilings.append(ceiling(workers))
        for name, run in runs.items():
            measured[name].append(next(run))
    top = statistics.median(ceilings)
    print(f"{workers} workers, median of {ROUNDS} rounds; products alone: {top / 1e9:.0f} GFLOP/s\n")
    print("| | environment steps a second | collecting alone | learning, GFLOP/s of products | of the ceiling |")
    print("|---|---|---|---|---|")
    for name, rows in measured.items():
        total, collecting, rate = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| `{name}` | {total:,.0f} | {collecting:,.0f} | {rate / 1e9:.0f} | {rate / top:.0%} |")


if __name__ == "__main__":
    main()
