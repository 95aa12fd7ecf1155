"""The multi-agent particle environments (Lowe et al. 2017; Terry et al. 2021), the same games as the package `mpe2`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any, get_type_hints

from shoal.envs.mpe.env import ParticleEnv


def names() -> list[str]:
    """Scenarios: the modules of this package that have `Params`."""
    modules = [module.name for module in pkgutil.iter_modules(__path__)]
    return [name for name in modules if name.startswith("simple")]


def make(name: str, num_envs: int, **arguments: Any) -> ParticleEnv:
    """A batch of environments of scenario `name`; arguments as in `ParticleEnv` and the scenario's `Params`."""
    return ParticleEnv(importlib.import_module(f"{__name__}.{name}"), num_envs, **arguments)


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of `make`, beside name and num_envs."""
    own = inspect.signature(importlib.import_module(f"{__name__}.{name}").Params).parameters
    common = inspect.signature(ParticleEnv).parameters
    return {**own, **{key: common[key] for key in ("max_cycles", "continuous_actions", "dynamic_rescaling", "threads")}}


def hints(name: str) -> dict[str, Any]:
    """Types of those arguments."""
    own = get_type_hints(importlib.import_module(f"{__name__}.{name}").Params)
    return {**get_type_hints(ParticleEnv.__init__), **own}


def sources(name: str) -> tuple[Any, ...]:
    """Whose docstrings say what they mean."""
    return importlib.import_module(f"{__name__}.{name}").Params, ParticleEnv
