"""The team values that VDN, QMIX and weighted QMIX learn in the two-step game, beside those of the QMIX paper.

    python benchmarks/two_step.py [--seeds 10]

Q_tot of every joint action in game 2A, in game 2B, and of the first player's choice between them (the second player's
first action changes nothing: shown is the mean over it). The game pays both players alike; the team's reward is their
mean. Trains with the settings that `shoal train NAME matrix/two_step` uses; prints the mean over the seeds and the
largest distance of a seed from it.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray

import shoal
from shoal import presets
from shoal.algorithms.value_decomposition import ValueDecomposition

PAPER = {  # Rashid et al. 2018, table 2, as remembered in the collection of published results: unconfirmed
    "vdn": "2A 6.99 and 7.02; 2B -1.87 2.31 2.33 6.51; choice 6.94 6.35",
    "qmix": "2A 7.00; 2B 0.00 1.00 1.00 8.00; choice 6.93 7.92",
}


def trained(name: str, seed: int) -> tuple[ValueDecomposition, float]:
    """An agent that has learned, and its greedy return per agent."""
    task = dict(presets.task(name, "matrix/two_step"))
    steps, num_envs = task.pop("total_steps"), task.pop("num_envs")
    env = shoal.make("matrix/two_step", num_envs=num_envs)
    algorithm = shoal.build(name, env.spec, seed=seed, **task)
    assert isinstance(algorithm, ValueDecomposition)
    for _ in shoal.train(algorithm, env, steps, seed=seed):
        pass
    return algorithm, float(shoal.evaluate(algorithm, env, 8).agent_return.mean())


@torch.no_grad()
def values(algorithm: ValueDecomposition) -> NDArray[np.float64]:
    """Q_tot `[stage, first action, second action]`; stages: the choice, 2A, 2B."""
    state = torch.eye(3)
    q = algorithm.nets["player"](state.unsqueeze(1).expand(-1, 2, -1))[0]  # [stage, player, action]
    pairs = torch.stack([q[:, 0, :, None].expand(-1, -1, 2), q[:, 1, None, :].expand(-1, 2, -1)], -1)
    total = algorithm.mixer(pairs, state.view(3, 1, 1, 3).expand(-1, 2, 2, -1))
    return algorithm.norm.restore(total).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    print("| | 2A | 2B | choice of 2A, of 2B | return per agent of each seed | largest deviation of a seed |")
    print("|---|---|---|---|---|---|")
    for name in ("vdn", "qmix", "wqmix"):
        runs = [trained(name, seed) for seed in range(seeds)]
        tables = np.stack([values(algorithm) for algorithm, _ in runs])
        mean = tables.mean(0)
        choice = mean[0].mean(1)
        cells = [" ".join(f"{x:.2f}" for x in part) for part in (mean[1].flat, mean[2].flat, choice)]
        returns = " ".join(f"{result:g}" for _, result in runs)
        print(
            f"| `{name}` | {' | '.join(cells)} | {returns} | {np.abs(tables[:, 1:] - mean[1:]).max():.2f} |", flush=True
        )
    for name, text in PAPER.items():
        print(f"paper, {name}: {text}")


if __name__ == "__main__":
    main()
