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

VALUES = ("iql", "vdn", "qmix", "wqmix")
MATRIX = {"num_envs": 8, "total_steps": 20_000, "update_every": 8, "lr": 1e-3, "tau": 0.01, "target_every": 1}
# Weighted errors pull at actions that nobody prefers any more; with large steps the preference tips over again
WEIGHTED = {**MATRIX, "total_steps": 40_000, "lr": 2e-4, "batch_size": 256}
REPEATED = {**MATRIX, "total_steps": 60_000, "update_every": 16, "gamma": 0.9, "epsilon_steps": 30_000}
COOPERATIVE = {
    "num_envs": 32,
    "total_steps": 2_000_000,
    "update_every": 32,
    "batch_size": 256,
    "buffer_size": 300_000,
    "warmup": 5000,
    "epsilon_steps": 200_000,
    "gamma": 0.95,
}
RECALL = {**MATRIX, "num_envs": 16, "total_steps": 100_000, "update_every": 64, "lr": 2e-3, "batch_size": 32}
for _algorithm in VALUES:
    TASKS[_algorithm, "memory/recall"] = RECALL
    for _scenario in ("simple_spread", "simple_speaker_listener"):
        TASKS[_algorithm, f"mpe/{_scenario}"] = COOPERATIVE
    for _game in ("two_step", "nonmonotonic"):  # only full exploration shows the team what joint actions pay
        TASKS[_algorithm, f"matrix/{_game}"] = {**(WEIGHTED if _algorithm == "wqmix" else MATRIX), "epsilon_end": 1.0}
    for _game in ("climbing", "penalty"):
        TASKS[_algorithm, f"matrix/{_game}"] = REPEATED

POLICIES = ("ippo", "mappo", "happo")
SWARM = {
    "num_envs": 128,
    "total_steps": 5_000_000,
    "anneal_steps": 5_000_000,
    "epochs": 15,
    "minibatches": 2,
    "lr": 1.5e-3,
    "critic_lr": 1.5e-3,
    "entropy": 0.0,
    "gamma": 0.95,
}
REMEMBER = {
    "num_envs": 64,
    "total_steps": 300_000,
    "anneal_steps": 300_000,
    "batch_steps": 640,
    "entropy": 0.03,
}
HUNT = {
    "num_envs": 64,
    "total_steps": 300_000,
    "batch_steps": 2560,
    "epochs": 5,
    "minibatches": 2,
    "lr": 2e-3,
    "critic_lr": 2e-3,
    "entropy": 0.02,
}
TASKS["mappo", "comm/predator_prey-easy"] = HUNT
ROUNDS = {"num_envs": 16, "total_steps": 60_000, "batch_steps": 400}
for _algorithm in POLICIES:
    TASKS[_algorithm, "memory/recall"] = REMEMBER
    TASKS[_algorithm, "tutorial/drift"] = {"num_envs": 16, "total_steps": 200_000}
    TASKS[_algorithm, "mpe/simple_spread"] = SWARM
    for _scenario in ("simple_speaker_listener", "simple_reference"):  # words settle too early without entropy
        TASKS[_algorithm, f"mpe/{_scenario}"] = {**SWARM, "entropy": 0.02}
    for _scenario in ("simple_tag", "simple_adversary"):  # everybody's mean would be nobody's aim
        TASKS[_algorithm, f"mpe/{_scenario}"] = {**SWARM, "reward": "own"}
    for _game in ("two_step", "nonmonotonic", "climbing", "penalty"):
        TASKS[_algorithm, f"matrix/{_game}"] = ROUNDS


def task(algorithm: str, env: str) -> dict[str, Any]:
    """Field names of `Settings` and of the algorithm's `Config` (`net.X`: of its `Net`), with values for this task."""
    return TASKS.get((algorithm, env), {})
