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


def task(algorithm: str, env: str) -> dict[str, Any]:
    """Field names of `Settings` and of the algorithm's `Config`, with their values for this task."""
    return TASKS.get((algorithm, env), {})
