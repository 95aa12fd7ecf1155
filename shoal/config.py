"""The settings of a run, and dataclasses to JSON and back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from shoal.teams import curriculum
from shoal.types import ShoalError, nearest

T = TypeVar("T")
FORMAT = 1
FILE = "config.json"


@dataclass(frozen=True)
class Settings:
    """Of a run, whatever the algorithm."""

    total_steps: int = 1_000_000
    """Environment steps (one step of all agents of one environment), counted over all environments."""
    num_envs: int = 1
    """Environments that step together."""
    processes: int = 0
    """Worker processes that play the environments; 0: none, in this process."""
    on_worker_failure: Literal["raise", "restart"] = "raise"
    """When a worker raises, hangs or dies: stop, or start it anew and drop the episodes it played."""
    worker_timeout: float = 60.0
    """Seconds that a step may take in a worker."""
    seed: int = 0
    """Fixes weights, exploration, replay draws and the environments' random numbers."""
    out: str = ""
    """Directory of the run; empty: runs/ENV/ALGORITHM_sSEED."""
    opponents: tuple[str, ...] = ()
    """WHO=POLICY: who does not learn, a group or an agent; a run's directory or random, still, greedy, pursue, flee."""
    self_play: Literal["none", "latest", "uniform", "pfsp"] = "none"
    """Every group (or, of one group, every agent) plays against earlier versions of the others: none of them (latest),
    each as often (uniform), or those that win more often (pfsp)."""
    sides: tuple[str, ...] = ()
    """Self-play: what has a learner of its own, groups or agents (A+B: several); empty: every group, or one for all."""
    snapshot_every: int = 0
    """Self-play: environment steps between versions that are kept; 0: a twentieth of the total."""
    pool: int = 21
    """Self-play: versions kept of each side, the first, the newest, and between them evenly."""
    latest_share: float = 0.2
    """Self-play: share of the environments in which learners meet as they are."""
    curriculum: curriculum.Settings = field(default_factory=curriculum.Settings)
    eval_every: int = 0
    """Environment steps between evaluations (and checkpoints); 0: a twentieth of the total."""
    eval_episodes: int = 100
    """Episodes in an evaluation."""
    eval_sampled: bool = False
    """Evaluations draw actions as in training, as published ones of policy gradients often do; else greedy ones."""
    absolute_episodes: int = 0
    """Episodes of the best policy at the end, on starts of their own (the absolute metric); 0: none."""
    log_every: int = 0
    """Environment steps between rows of metrics.csv; 0: a two-hundredth of the total."""
    threads: int = 1
    """CPU threads for matrix products. Small networks are faster with 1."""
    device: str = "cpu"
    """Where the networks live: cpu, cuda, ..."""
    tensorboard: bool = True
    """Write TensorBoard files too, if the package is installed (extra: tensorboard)."""
    wandb: str = ""
    """Weights & Biases project to log to (extra: wandb); empty: none."""

    def __post_init__(self) -> None:
        for name in ("total_steps", "num_envs", "eval_episodes", "threads"):
            if getattr(self, name) < 1:
                raise ShoalError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("eval_every", "absolute_episodes", "log_every", "seed", "processes"):
            if getattr(self, name) < 0:
                raise ShoalError(f"{name} must not be negative, but is {getattr(self, name)}")
        if self.eval_sampled and self.self_play != "none":
            raise ShoalError(
                "with self_play, evaluations are greedy (shoal league DIR --sampled samples): unset eval_sampled"
            )
        if self.worker_timeout <= 0:
            raise ShoalError(f"worker_timeout must be positive, not {self.worker_timeout}")


@dataclass(frozen=True)
class Run:
    """All that a run directory's config.json holds: enough to start it again."""

    algorithm: str
    env: str
    env_args: dict[str, Any]
    settings: Settings
    config: Any
    """The algorithm's own settings."""
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        data = {"format": FORMAT, **dataclasses.asdict(self), "versions": versions()}
        partial = directory / (FILE + ".partial")
        partial.write_text(json.dumps(data, indent=2) + "\n")
        os.replace(partial, directory / FILE)


def read(directory: Path, name: str = FILE) -> dict[str, Any]:
    """A run directory's config.json, or another file of that kind.

    Raises:
        ShoalError: it is no run directory, or one of a newer shoal.
    """
    path = directory / name
    if not path.is_file():
        raise ShoalError(f"{directory} is not the directory of a run: it has no {name}")
    try:
        data = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ShoalError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise ShoalError(f"{path} was not written by shoal")
    if data["format"] > FORMAT:
        raise ShoalError(f"{path} has format {data['format']}; this version reads up to {FORMAT}: update shoal")
    needed = [f.name for f in dataclasses.fields(Run)]
    if missing := [name for name in needed if name not in data]:
        raise ShoalError(f"{path} is not whole: it has no {', '.join(missing)}")
    return data


def from_dict(kind: type[T], data: dict[str, Any]) -> T:
    """A dataclass from what `dataclasses.asdict` and JSON made of it; unknown keys are errors."""
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise ShoalError(f"{kind.__module__}.{kind.__name__} has no setting {key!r}; {nearest(key, known)}")
    hints = typing.get_type_hints(kind)
    restored = {key: _restore(hints[key], value) for key, value in data.items()}
    for key, value in restored.items():
        if not _is(hints[key], value):
            hint = hints[key]
            wanted = hint.__name__ if isinstance(hint, type) else hint
            raise ShoalError(f"{key} must be {wanted}, not {value!r}")
    return kind(**restored)


def _is(hint: Any, value: Any) -> bool:
    """Whether a value can be what a setting's annotation says."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(one, value) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is tuple and isinstance(value, tuple):
        pairs = [(inner[0], v) for v in value] if inner[1:] == (...,) else list(zip(inner, value, strict=False))
        return (inner[1:] == (...,) or len(inner) == len(value)) and all(_is(one, v) for one, v in pairs)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    if hint is not Any and isinstance(origin or hint, type):
        with contextlib.suppress(TypeError):  # a protocol, say
            return isinstance(value, origin or hint)
    return True


def merge(settings: T, data: dict[str, Any]) -> T:
    """`settings` with the values of a (partial) dict as JSON has them; those of a nested dataclass as a dict."""
    current = dataclasses.asdict(settings)  # type: ignore[call-overload]
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(current.get(key), dict):
            value = {**current[key], **value}
        current[key] = value
    return from_dict(type(settings), current)


def _restore(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return from_dict(hint, value)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return value
    return tuple(value) if typing.get_origin(hint) is tuple and isinstance(value, list) else value


def slug(text: str) -> str:
    """A file's or directory's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")


def versions() -> dict[str, str]:
    """What a result depends on."""
    import numpy as np
    import torch

    import shoal

    return {
        "shoal": shoal.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def replace(settings: T, changes: dict[str, Any]) -> T:
    """`settings` with some fields changed; those of a nested dataclass as a dict, or as `outer.inner`.

    Raises:
        ShoalError: no such field (with the nearest name).
    """
    known = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, change in changes.items():
        key, _, inner = name.partition(".")
        value = {inner: change} if inner else change
        if key not in known:
            raise ShoalError(f"{type(settings).__module__} has no setting {key!r}; {nearest(key, known)}")
        nested = dataclasses.is_dataclass(known[key]) and isinstance(value, dict)
        values[key] = replace(values.get(key, known[key]), value) if nested else value
    return dataclasses.replace(settings, **values)  # type: ignore[type-var]
