"""Share of the episodes of traffic junction in which no car ever met another: the published figure.

    python benchmarks/traffic_junction.py RUN [RUN ...]

Greedy episodes of the best checkpoint, 1,000 on starts that training did not see.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from shoal import experiment
from shoal.envs.comm.traffic_junction import CRASH

EPISODES, SEED = 1000, 1_000_000


@torch.no_grad()
def success(directory: Path) -> float:
    """Of the run there."""
    env = experiment.environment_of(experiment.open_run(directory)).make(EPISODES)
    policy = experiment.load_policy(directory, "best", env.spec)
    view, memory = env.reset(SEED), policy.initial_memory(EPISODES)
    free, over = torch.ones(EPISODES, dtype=torch.bool), torch.zeros(EPISODES, dtype=torch.bool)
    while not over.all():
        actions, memory = policy.act(view, memory, explore=False)
        step = env.step(actions)
        free &= over | ~(step.reward["car"] <= CRASH / 2).any(-1)
        over |= step.ended
        view = step.view
    return float(free.float().mean())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {success(Path(name)):.1%} of {EPISODES:,} episodes without a collision")
