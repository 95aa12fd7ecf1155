"""Tasks for agents that talk: IC3Net's predator-prey and traffic junction, easy, medium and hard."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from shoal.envs.comm import predator_prey, traffic_junction
from shoal.envs.common.kernel_env import KernelEnv

GAMES = {"predator_prey": predator_prey, "traffic_junction": traffic_junction}


def names() -> list[str]:
    """The suite's tasks."""
    return [f"{game}-{task}" for game, module in GAMES.items() for task in module.TASKS]


def make(name: str, num_envs: int, **arguments: Any) -> KernelEnv:
    """A batch of one task."""
    game, task = name.split("-")
    env: KernelEnv = GAMES[game].build(task, num_envs, **arguments)
    return env


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of `make`, beside name and num_envs."""
    found = dict(inspect.signature(GAMES[name.split("-")[0]].build).parameters)
    return {key: value for key, value in found.items() if key not in ("task", "num_envs")}


def hints(name: str) -> dict[str, Any]:
    """Types of those arguments."""
    return get_type_hints(GAMES[name.split("-")[0]].build)


def sources(name: str) -> tuple[Any, ...]:
    """Whose docstrings say what they mean."""
    return (GAMES[name.split("-")[0]].build,)
