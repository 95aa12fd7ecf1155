"""Stepping compiled grid worlds against one process of the Python package they copy, in one interleaved run.

Random actions, drawn beforehand. One environment step is one step of all agents of one environment. Timed is what a
user calls: `env.step` with torch actions; the package's `step`, and its `reset` where episodes end.

    python benchmarks/grid.py [--envs lbf/Foraging-8x8-2p-2f-coop ...]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import shoal
from shoal.registry import Environment
from shoal.threads import cores

BATCHES = (1, 64, 1024, 8192)


def lbf(name: str) -> Any:
    """The package's environment: a gymnasium one of many agents."""
    from lbforaging.foraging.environment import ForagingEnv

    arguments = {key: p.default for key, p in (Environment(f"lbf/{name}").parameters() or {}).items()}
    return ForagingEnv(**{key: value for key, value in arguments.items() if key not in ("masks", "threads")})


def rware(name: str) -> Any:
    """The package's environment, without gymnasium's wrappers."""
    import gymnasium

    return gymnasium.make(f"rware:{name}-v2", disable_env_checker=True).unwrapped


PACKAGES: dict[str, Callable[[str], Any]] = {"lbf": lbf, "rware": rware}
EXAMPLES = (
    *("lbf/Foraging-8x8-2p-2f-coop", "lbf/Foraging-10x10-3p-3f", "lbf/Foraging-15x15-4p-5f"),
    *("rware/rware-tiny-2ag", "rware/rware-tiny-4ag", "rware/rware-small-4ag", "rware/rware-tiny-8ag"),
)


def compiled(name: str, num_envs: int) -> Callable[[], float]:
    """Plays for a while; returns environment steps a second."""
    env = shoal.make(name, num_envs)
    env.reset(0)
    ((group, spec),) = env.spec.groups.items()
    actions = [{group: torch.randint(spec.action.size, (num_envs, spec.num_agents))} for _ in range(25)]
    steps = max(25, 200_000 // max(num_envs, 20))

    def run() -> float:
        start = time.perf_counter()
        for i in range(steps):
            env.step(actions[i % 25])
        return num_envs * steps / (time.perf_counter() - start)

    run()
    return run


def package(name: str) -> Callable[[], float]:
    suite, _, rest = name.partition("/")
    env = PACKAGES[suite](rest)
    env.reset(seed=0)
    choices = env.action_space[0].n
    actions = np.random.default_rng(0).integers(choices, size=(1000, len(env.action_space))).tolist()

    def run() -> float:
        start = time.perf_counter()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return len(actions) / (time.perf_counter() - start)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=EXAMPLES)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(
        f"environment steps a second, {cores()} cores, median of {options.rounds} rounds; in brackets: of the package\n"
    )
    print("| environment | package, one process |", *[f"compiled, {n} at once |" for n in BATCHES])
    print("|---|---|" + "---|" * len(BATCHES))
    for name in options.envs:
        runs = [package(name), *[compiled(name, n) for n in BATCHES]]
        rounds = [[run() for run in runs] for _ in range(options.rounds)]
        theirs, *ours = (statistics.median(rates) for rates in zip(*rounds, strict=True))
        ratios = [statistics.median(row[i] / row[0] for row in rounds) for i in range(1, len(runs))]
        cells = [f"{rate:,.0f} ({ratio:,.0f}) |" for rate, ratio in zip(ours, ratios, strict=True)]
        print(f"| `{name}` | {theirs:,.0f} |", *cells, flush=True)


if __name__ == "__main__":
    main()
