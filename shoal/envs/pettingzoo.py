"""PettingZoo's environments by name: the parallel form where there is one, and the turn-based form where there is none.

What is made of them stands in `common/serial.py` (steps and turns) and `common/spaces.py` (observations and actions).
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable
from typing import Any

from gymnasium.error import DependencyNotInstalled

from shoal import actions as action_spaces
from shoal.envs.common.extras import headless
from shoal.envs.common.serial import SerialEnvs
from shoal.types import Groups, ShoalError, nearest

SERIAL = OPEN = True


def random_actions(env: SerialEnvs, generator: Any) -> Groups:
    """Uniformly random legal actions for what the environments show now."""
    return {
        name: action_spaces.random(group.action, env.view.legal[name], generator)
        for name, group in env.spec.groups.items()
    }


def _registered() -> dict[str, str]:
    """Every registered name (not all are installed) and how it is played: `parallel` where that exists, else `aec`."""
    headless()
    import pettingzoo

    found = {str(key): "aec" for key in getattr(pettingzoo, "aec_registry", {})}
    return found | {str(key): "parallel" for key in getattr(pettingzoo, "parallel_registry", {})}


def names() -> list[str]:
    """PettingZoo's registered environments, parallel and turn-based (not all of them are installed)."""
    return sorted(_registered())


def note(name: str) -> str:
    """What `shoal list` says beside a name."""
    return "turn-based" if _registered().get(name) == "aec" else ""


def make(name: str, num_envs: int, first: int = 0, **arguments: Any) -> SerialEnvs:
    """`butterfly/pistonball` or `classic/chess-v6` by PettingZoo's own `make`; `some.module` by its constructor.

    Raises:
        ShoalError: no such environment, its packages are missing, or it does not take these arguments.
    """
    create = _of_module(name) if "." in name.split("/")[-1] else _of_registry(name)

    def factory() -> Any:
        with warnings.catch_warnings():  # of what will move in later versions of the packages
            warnings.simplefilter("ignore", DeprecationWarning)
            return create(**arguments)

    try:
        return SerialEnvs(factory, num_envs, name, first)
    except TypeError as error:  # an argument that it does not know
        raise ShoalError(f"{name}: {error}") from error


def _of_registry(name: str) -> Callable[..., Any]:
    import pettingzoo

    known = _registered()
    plain = re.sub(r"_v(\d+)$", r"-v\1", name)
    versions = [key for key in known if plain in (key, key.rsplit("-v", 1)[0])]
    if not versions:
        raise ShoalError(f"PettingZoo has no environment {name!r}; {nearest(name, known)}")
    full = max(versions, key=lambda key: int(key.rsplit("-v", 1)[1]))

    def create(**arguments: Any) -> Any:
        try:
            return pettingzoo.make(known[full], full, **arguments)
        except Exception as error:
            if isinstance(error, ImportError | DependencyNotInstalled) or type(error).__name__ == "FailedToImport":
                family = full.split("/")[0]
                raise ShoalError(f"{name} is not installed: pip install 'pettingzoo[{family}]' ({error})") from error
            raise

    return create


def _of_module(name: str) -> Callable[..., Any]:
    headless()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = importlib.import_module(name)
            found = getattr(module, "parallel_env", None) or getattr(module, "env", None)
    except ImportError as error:
        raise ShoalError(f"cannot import {name!r}: {error}") from error
    if found is None:
        raise ShoalError(f"{name} has neither parallel_env() nor env()")
    return found  # type: ignore[no-any-return]
