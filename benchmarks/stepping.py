"""Stepping simple_spread with random actions: shoal, the Python package mpe2, and JaxMARL, in one interleaved run.

One environment step is one step of all three agents of one environment. JaxMARL (jit, vmap over environments, scan over
time, its own automatic reset) lives in a virtual environment of its own:

    python -m venv benchmarks/.venv-jax && benchmarks/.venv-jax/bin/pip install jaxmarl==0.2.0
    python benchmarks/stepping.py --jax benchmarks/.venv-jax/bin/python
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

JAX_WORKER = """
import os, sys, time
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the imports print must not mix with the figures
import jax, jaxmarl
env = jaxmarl.make("MPE_simple_spread_v3")
runs = {}
def build(n, steps):
    reset, step = jax.vmap(env.reset), jax.vmap(env.step)
    def body(state, inputs):
        key, actions = inputs
        obs, state, reward, done, info = step(jax.random.split(key, n), state, actions)
        return state, reward["agent_0"].sum()
    @jax.jit
    def drive(key, keys, actions):
        obs, state = reset(jax.random.split(key, n))
        state, rewards = jax.lax.scan(body, state, (keys, actions))
        return rewards.sum()
    key = jax.random.PRNGKey(0)
    keys = jax.random.split(key, steps)
    actions = {a: jax.random.randint(jax.random.fold_in(key, i), (steps, n), 0, 5) for i, a in enumerate(env.agents)}
    run = lambda: drive(key, keys, actions).block_until_ready()  # actions are drawn beforehand, as for the others
    run()
    return run
for line in sys.stdin:
    n, steps = map(int, line.split())
    if (n, steps) not in runs:
        runs[n, steps] = build(n, steps)
    start = time.perf_counter()
    runs[n, steps]()
    print(n * steps / (time.perf_counter() - start), file=out, flush=True)
"""


def shoal_runner(num_envs: int, threads: int) -> Callable[[], float]:
    """What a user calls: `env.step` with torch actions; drawing them beforehand is not counted."""
    import torch

    import shoal

    env = shoal.make("mpe/simple_spread", num_envs, threads=threads)
    env.reset(0)
    actions = [{"agent": torch.randint(0, 5, (num_envs, 3))} for _ in range(25)]
    steps = max(50, 400_000 // num_envs)

    def run() -> float:
        start = time.perf_counter()
        for i in range(steps):
            env.step(actions[i % 25])
        return num_envs * steps / (time.perf_counter() - start)

    return run


def mpe2_runner() -> Callable[[], float]:
    """One environment of the Python package, reset where its episodes end."""
    import numpy as np
    from mpe2 import simple_spread_v3

    env = simple_spread_v3.parallel_env()
    env.reset(seed=0)
    random = np.random.default_rng(0)
    actions = [dict(zip(env.possible_agents, row, strict=True)) for row in random.integers(0, 5, (1000, 3)).tolist()]

    def run() -> float:
        start = time.perf_counter()
        for action in actions:
            env.step(action)
            if not env.agents:
                env.reset()
        return len(actions) / (time.perf_counter() - start)

    return run


def jax_runner(worker: subprocess.Popen[str], num_envs: int) -> Callable[[], float]:
    steps = max(100, 200_000 // num_envs)

    def run() -> float:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(f"{num_envs} {steps}\n")
        worker.stdin.flush()
        return float(worker.stdout.readline())

    return run


def memory(num_envs: int) -> None:
    """Resident memory of a process that does nothing but step environments."""
    run = shoal_runner(num_envs, 0)
    run()
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jax", help="python of the environment with jaxmarl; without, JaxMARL is left out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory(options.memory_of)
        return
    runners: dict[tuple[str, int], Callable[[], float]] = {("mpe2", 1): mpe2_runner()}
    for n in (1, 32, 512, 4096):
        runners["shoal", n] = shoal_runner(n, 0)
        if n >= 512:
            runners["shoal, 1 thread", n] = shoal_runner(n, 1)
    if options.jax:
        worker = subprocess.Popen(
            [options.jax, "-c", JAX_WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in (1, 512, 4096):
            runners["JaxMARL", n] = jax_runner(worker, n)
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in runners}
    for run in runners.values():
        run()  # compile
    for _ in range(options.rounds):
        for key, run in runners.items():
            rates[key].append(run())
    print("simple_spread, 3 agents, random actions; environment steps a second")
    for (name, n), values in sorted(rates.items(), key=lambda item: (item[0][1], item[0][0])):
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"  {n:>5} envs  {name:<16} median {middle:>12,.0f}   min {low:>12,.0f}   max {high:>12,.0f}")
    pairs = [(("shoal", n), ("mpe2", 1)) for n in (1, 4096)]
    pairs += [(("shoal", n), ("JaxMARL", n)) for n in (1, 512, 4096)] if options.jax else []
    for one, other in pairs:
        ratios = [a / b for a, b in zip(rates[one], rates[other], strict=True)]
        print(f"  {one[0]} at {one[1]} / {other[0]} at {other[1]}: median {statistics.median(ratios):,.1f}")
    command = [sys.executable, __file__, "--memory-of", "4096"]
    used = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    print(f"  resident memory of a process stepping 4096 environments: {used} MB")


if __name__ == "__main__":
    main()
