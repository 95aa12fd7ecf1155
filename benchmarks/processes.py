"""Stepping PettingZoo environments in this process and in worker processes, in one interleaved run.

One environment step is one step of all agents of one environment, with random actions drawn beforehand.

    python benchmarks/processes.py
    python benchmarks/processes.py --envs pettingzoo/sisl/pursuit --num-envs 16
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import shoal
from shoal import actions

ENVIRONMENTS = (
    "pettingzoo/mpe2.simple_spread_v3",
    "pettingzoo/sisl/pursuit",
    "pettingzoo/butterfly/pistonball",
)


def runner(env: shoal.VecEnv, seconds: float) -> Callable[[], float]:
    """Environment steps a second, over about so many seconds."""
    generator = torch.Generator().manual_seed(0)
    view = env.reset(0)
    drawn = [
        {n: actions.random(g.action, view.legal[n], generator) for n, g in env.spec.groups.items()} for _ in range(25)
    ]

    def run() -> float:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for action in drawn:
                env.step(action)
            steps += len(drawn) * env.num_envs
        return steps / (time.perf_counter() - start)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=ENVIRONMENTS)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = [0, *options.processes]
    print(f"{options.num_envs} environments; environment steps a second, medians of {options.rounds} rounds")
    for name in options.envs:
        envs = [shoal.make(name, options.num_envs, processes=count) for count in counts]
        runs = [runner(env, options.seconds) for env in envs]
        rates: list[list[float]] = [[] for _ in runs]
        for _ in range(options.rounds):
            for rate, run in zip(rates, runs, strict=True):
                rate.append(run())
        for count, rate in zip(counts, rates, strict=True):
            ratios = [a / b for a, b in zip(rate, rates[0], strict=True)]
            where = f"{count} processes" if count else "in this process"
            print(f"  {name:<36}{where:<16}{statistics.median(rate):>10,.0f}   x {statistics.median(ratios):.2f}"
                  f"   [{min(ratios):.2f}, {max(ratios):.2f}]", flush=True)  # fmt: skip
        for env in envs:
            env.close()


if __name__ == "__main__":
    main()
