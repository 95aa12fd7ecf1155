"""What more agents cost: weights that are learned, and training's speed, in simple_spread with 3 to 24 agents.

    python benchmarks/scaling.py

Every algorithm has its defaults (those of the task aside: they were found with three agents) in 16 environments. One
environment step is one step of all agents; what an agent observes grows with their number (4 + 2 N + 2 (N - 1) numbers
besides what others say). Rates are medians, measured in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import shoal
from shoal.threads import cores

ALGORITHMS = {"iql": 4000, "maddpg": 4000, "qmix": 4000, "mappo": 80_000}
"""And environment steps of a measurement with three agents; fewer with more."""
NUMBERS = (3, 6, 12, 24)


def build(name: str, agents: int) -> tuple[Any, shoal.VecEnv]:
    env = shoal.make("mpe/simple_spread", 16, N=agents)
    settings = {} if name == "mappo" else {"warmup": 200}
    return shoal.build(name, env.spec, **settings), env


def weights(name: str, agents: int) -> int:
    """All that gradients change: of policies, values and mixers; target networks are copies."""
    algorithm, _ = build(name, agents)
    learned = algorithm.modules[:2] if hasattr(algorithm, "modules") else [algorithm.module]
    return sum(p.numel() for module in learned for p in module.parameters())


def rate(name: str, agents: int, steps: int) -> float:
    algorithm, env = build(name, agents)
    begun = start = 0.0
    for progress in shoal.train(algorithm, env, steps):
        if progress.updates and not begun:  # what comes before is compiling, and play that fills the replay
            begun, start = progress.env_steps, time.perf_counter()
    return (progress.env_steps - begun) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    cases = [(name, n) for name in ALGORITHMS for n in NUMBERS]
    rates: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for _ in range(repeats):
        for name, n in cases:
            rates[name, n].append(rate(name, n, max(3 * ALGORITHMS[name] // n, 800)))
    print(f"simple_spread, 16 environments, {cores()} cores, median of {repeats}\n")
    print("| | " + " | ".join(f"{n} agents" for n in NUMBERS) + " |")
    print("|---" * (len(NUMBERS) + 1) + "|")
    for name in ALGORITHMS:
        print(f"| `{name}`, weights | " + " | ".join(f"{weights(name, n):,}" for n in NUMBERS) + " |")
    for name in ALGORITHMS:
        medians = [statistics.median(rates[name, n]) for n in NUMBERS]
        print(f"| `{name}`, environment steps a second | " + " | ".join(f"{m:,.0f}" for m in medians) + " |")


if __name__ == "__main__":
    main()
