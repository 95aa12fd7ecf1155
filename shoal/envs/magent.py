"""MAgent2: dozens to hundreds of agents on a grid, who die one by one. From the package magent2, written for 0.3.

Teams are groups (`red`, `blue`), the global state is a map of the whole grid.
"""

from __future__ import annotations

from typing import Any

from shoal.envs.common.extras import require
from shoal.envs.common.serial import SerialEnvs

SERIAL = True


def names() -> list[str]:
    """The suite's environments."""
    return ["adversarial_pursuit", "battle", "battlefield", "combined_arms", "gather", "tiger_deer"]


def make(name: str, num_envs: int, first: int = 0, **arguments: Any) -> SerialEnvs:
    """`battle`, with the package's own arguments (`map_size=16`, `max_cycles=200`, rewards)."""
    module = require(f"magent2.environments.{name}", "magent")
    return SerialEnvs(lambda: module.parallel_env(**arguments), num_envs, f"magent/{name}", first)
