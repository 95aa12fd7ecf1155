"""What the best listener in simple_speaker_listener could earn, and what trained ones do on the same starts.

    python benchmarks/listener.py [RUN ...]

The speaker's word reaches the listener's second observation, so its first action knows the landmarks and not the goal.
The bound gives it the goal from the second action on: for each first action a beam search over the other 24, for every
landmark; the first action is the best by the mean over the landmarks. Returns are per agent (both agents' are the
same), over 1,000 starts; of the runs, greedy episodes of the best checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

import shoal
from shoal import experiment
from shoal.envs.mpe.physics import DAMPING, DT
from shoal.evaluate import evaluate
from shoal.stats.aggregate import describe

ENV, EPISODES, STEPS, SEED, BEAM = "mpe/simple_speaker_listener", 1000, 25, 1_000_000, 300
PUSH = 5.0  # force of a discrete action
MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], np.float64)
FAR = 4.0  # steps ahead that a beam's members are judged by


@njit(cache=True)
def search(start: Any, first: int, beam: int) -> float:
    """Least sum of squared distances to the origin over an episode that begins at `start` with the action `first`."""
    rows, cost = np.zeros((beam, 4)), np.zeros(beam)
    new_rows, new_cost, score = np.zeros((5 * beam, 4)), np.zeros(5 * beam), np.zeros(5 * beam)
    rows[0, 0], rows[0, 1] = start[0], start[1]
    kept = 1
    for t in range(STEPS):
        n = 0
        for i in range(kept):
            for a in range(5):
                if t == 0 and a != first:
                    continue
                near, soon = 0.0, 0.0
                for d in range(2):
                    position = rows[i, d] + rows[i, 2 + d] * DT
                    velocity = rows[i, 2 + d] * (1 - DAMPING) + PUSH * MOVES[a, d] * DT
                    new_rows[n, d], new_rows[n, 2 + d] = position, velocity
                    near += position**2
                    soon += (position + FAR * DT * velocity) ** 2
                new_cost[n] = cost[i] + near
                score[n] = new_cost[n] + min(STEPS - 1 - t, FAR) * 0.5 * (near + soon)
                n += 1
        order = np.argsort(score[:n])
        kept = min(beam, n)
        for k in range(kept):
            rows[k], cost[k] = new_rows[order[k]], new_cost[order[k]]
    return cost[:kept].min()


def bound(landmarks: NDArray[np.float64], goal: int, beam: int = BEAM) -> float:
    """Return with the first action that is best in the mean over the goals; `landmarks` `[3, 2]`, from the listener."""
    costs = np.array([[search(-place, first, beam) for place in landmarks] for first in range(5)])
    return -float(costs[costs.mean(1).argmin(), goal])


def main() -> None:
    env = shoal.make(ENV, EPISODES)
    view = env.reset(SEED)
    goals = view.obs["speaker"][:, 0].argmax(-1).tolist()
    landmarks = view.obs["listener"][:, 0, 2:8].double().numpy().reshape(-1, 3, 2)
    values = np.array([bound(places, goal) for places, goal in zip(landmarks, goals, strict=True)])
    print(f"bound: {_text(values)}")
    for name in sys.argv[1:]:
        policy = experiment.load_policy(Path(name), "best", env.spec)
        print(f"{name}: {_text(evaluate(policy, env, EPISODES, SEED).agent_return)}")


def _text(values: NDArray[np.float64]) -> str:
    found = describe(values)
    low, high = found["ci95"]
    return f"{found['mean']:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
