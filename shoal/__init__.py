"""Multi-agent reinforcement learning on PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from shoal.config import replace
from shoal.envs.check import check_env
from shoal.evaluate import Evaluation, evaluate
from shoal.registry import Environment, algorithm, check_device
from shoal.train import Progress, train
from shoal.types import (
    Agents,
    Algorithm,
    Batch,
    Box,
    Discrete,
    EnvSpec,
    GroupSpec,
    Part,
    Policy,
    ShoalError,
    Step,
    VecEnv,
    View,
)

__version__ = "0.1.0"
__all__ = [
    "Agents",
    "Algorithm",
    "Batch",
    "Box",
    "Discrete",
    "EnvSpec",
    "Evaluation",
    "GroupSpec",
    "Part",
    "Policy",
    "Progress",
    "ShoalError",
    "Step",
    "VecEnv",
    "View",
    "build",
    "check_env",
    "evaluate",
    "load",
    "make",
    "train",
]


def make(
    name: str,
    num_envs: int = 1,
    *,
    processes: int = 0,
    on_worker_failure: Literal["raise", "restart"] = "raise",
    worker_timeout: float = 60.0,
    **arguments: Any,
) -> VecEnv:
    """A batch of environments: `suite/name`, `file.py:factory` or `package.module:factory`.

    Args:
        name: of the environment.
        num_envs: environments that step together.
        processes: worker processes that play them; 0: none, in this process.
        on_worker_failure: stop, or start a worker anew that raises, hangs or dies.
        worker_timeout: seconds that a step may take in a worker.
        arguments: for the environment.

    Raises:
        ShoalError: no such environment (with the nearest name), or an argument it does not take.
    """
    return Environment(name, **arguments).make(
        num_envs, processes=processes, on_worker_failure=on_worker_failure, worker_timeout=worker_timeout
    )


def build(name: str, spec: EnvSpec, *, seed: int = 0, device: str = "cpu", **settings: Any) -> Algorithm:
    """An untrained algorithm for environments with `spec`; `settings` are fields of its `Config` (`net` may be a dict).

    Raises:
        ShoalError: no such algorithm, setting (with the nearest name) or device, or a task it cannot do.
    """
    preset = algorithm(name)
    return preset.build(spec, replace(preset.config, settings), seed=seed, device=check_device(device))


def load(directory: str | Path, spec: EnvSpec, checkpoint: Literal["best", "last"] = "best") -> Algorithm:
    """The trained policy of a run's directory, for environments like the one it was trained in.

    Raises:
        ShoalError: there is no run, it has no checkpoint yet, or it was trained for other agents than those of `spec`.
    """
    from shoal.experiment import load_policy

    return load_policy(Path(directory), checkpoint, spec)
