"""MADDPG against the tutorial's own program, on the same work, in one interleaved run.

Three agents, networks of 64-64, batches of 64, a buffer of 100,000 (full before the clock starts), one update of every
agent each environment step, one thread. The tutorial's code is not part of shoal: give the page's markdown file, and
its first three code blocks ("Complete MARL Implementation") are run as published.

    python benchmarks/tutorial.py --tutorial part-9-multi-agent-rl.md
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shoal

AGENTS, STATE, ACTION = 3, 4, 2


def theirs(page: Path, fill: int) -> Callable[[int], None]:
    """Plays and learns a number of steps with the published classes."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    scope: dict[str, Any] = {"__name__": "tutorial"}
    for block in blocks[:3]:
        exec(compile(block, str(page), "exec"), scope)  # the file the user named
    env = scope["MultiAgentEnvironment"](AGENTS, STATE, ACTION)
    agent = scope["MADDPGAgent"](AGENTS, STATE, ACTION)
    observations = env.reset()
    for _ in range(fill):
        following, rewards, _ = env.step([])
        agent.store_experience(observations, [np.zeros(ACTION, np.float32)] * AGENTS, rewards, following, False)
        observations = following

    def run(steps: int) -> None:
        nonlocal observations
        for _ in range(steps):
            tensors = [torch.FloatTensor(o) for o in observations]
            with torch.no_grad():
                actions = [a.numpy() for a in agent.network.get_actions(tensors)]
            following, rewards, done = env.step(actions)
            agent.store_experience(observations, actions, rewards, following, done)
            agent.train_step()
            observations = env.reset() if done else following

    return run


def ours(fill: int) -> Callable[[int], None]:
    """The same with shoal's training loop."""
    env = shoal.make("tutorial/drift", n_agents=AGENTS, state_dim=STATE, action_dim=ACTION, max_steps=100)
    algorithm = shoal.build("maddpg", env.spec, warmup=fill)
    loop = iter(shoal.train(algorithm, env, total_steps=10**9))
    for _ in range(fill):
        next(loop)

    def run(steps: int) -> None:
        for _ in range(steps):
            next(loop)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tutorial", type=Path, required=True, help="markdown file of the tutorial")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300, help="environment steps a round")
    parser.add_argument("--fill", type=int, default=100_000, help="transitions in both buffers before the clock starts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    contestants = {"tutorial": theirs(options.tutorial, options.fill), "shoal": ours(options.fill)}
    for run in contestants.values():
        run(200)  # warm
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run(options.steps)
            rates[name].append(options.steps / (time.perf_counter() - start))
    print(f"MADDPG, {AGENTS} agents, 64-64, batch 64, one update a step, 1 thread; environment steps a second")
    for name, values in rates.items():
        print(f"  {name:<10} median {statistics.median(values):7.0f}   min {min(values):7.0f}   max {max(values):7.0f}")
    ratios = [a / b for a, b in zip(rates["shoal"], rates["tutorial"], strict=True)]
    print(f"  ratio      median {statistics.median(ratios):7.1f}   min {min(ratios):7.1f}   max {max(ratios):7.1f}")


if __name__ == "__main__":
    main()
