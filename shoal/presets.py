"""Settings for a task, where the defaults are not the best known: measured ones, with what they reached.

They replace defaults; options on the command line replace them. `shoal train` prints which it used.
"""

from __future__ import annotations

from typing import Any

PARTICLES = {
    "num_envs": 64,
    "total_steps": 4_000_000,
    "update_every": 32,
    "batch_size": 512,
    "buffer_size": 500_000,
    "warmup": 10_000,
}

TASKS: dict[tuple[str, str], dict[str, Any]] = {
    (algorithm, f"mpe/{scenario}"): PARTICLES
    for algorithm in ("iddpg", "maddpg", "matd3")
    for scenario in ("simple_spread", "simple_tag", "simple_adversary")
}

MATRIX = {"num_envs": 8, "total_steps": 20_000, "update_every": 8, "lr": 1e-3, "tau": 0.01, "target_every": 1}
QUICK = {"gamma": 0.95, "num_envs": 32, "total_steps": 1_000_000, "update_every": 32, "batch_size": 256}
VALUES = ("iql", "vdn", "qmix", "qplex")

# What one player does changes what another's action is worth: only full exploration shows a monotonic mixer the payoffs
TASKS |= {
    (a, f"matrix/{game}"): {**MATRIX, "epsilon_end": 1.0} for a in VALUES for game in ("two_step", "nonmonotonic")
}
TASKS |= {
    (a, "mpe/simple_spread"): {**QUICK, "warmup": 5000, "buffer_size": 300_000, "epsilon_steps": 200_000}
    for a in VALUES
}


def task(algorithm: str, env: str) -> dict[str, Any]:
    """Field names of `Settings` and of the algorithm's `Config`, with their values for this task."""
    return TASKS.get((algorithm, env), {})
