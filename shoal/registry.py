"""Finding things by name: algorithms and environments by scanning modules, and anybody's own by where it is."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from docstring_parser import parse_from_object

from shoal import algorithms as algorithms_package
from shoal import envs as envs_package
from shoal.envs.common.processes import Processes
from shoal.types import Preset, ShoalError, VecEnv, nearest


def algorithms() -> dict[str, Preset]:
    """Every algorithm by its paper's name."""
    found: dict[str, Preset] = {}
    for info in pkgutil.iter_modules(algorithms_package.__path__):
        found |= getattr(importlib.import_module(f"{algorithms_package.__name__}.{info.name}"), "PRESETS", {})
    return found


def algorithm(name: str) -> Preset:
    """The algorithm `name`; or `package.module:name`, `file.py:name`, where the module has `PRESETS` too."""
    if name.endswith(".py"):
        known = getattr(_module(name), "PRESETS", {})
        raise ShoalError(f"name the algorithm, {name}:NAME; its PRESETS are {', '.join(known) or 'none'}")
    place, _, preset = name.rpartition(":")
    known = getattr(_module(place), "PRESETS", {}) if place else algorithms()
    if preset not in known:
        raise ShoalError(f"there is no algorithm {name!r}; {nearest(preset, known)}")
    return known[preset]


def full_name(name: str) -> str:
    """`file.py:name` with the file's full path, by which it is found from anywhere; other names as they are."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).resolve()}:{attribute}" if place.endswith(".py") else name


def check_device(name: str) -> str:
    """`name`, if networks can live there.

    Raises:
        ShoalError: this PyTorch, or this machine, has no such device.
    """
    try:
        torch.zeros(1, device=name)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ShoalError(f"the device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return name


def has_device(name: str) -> bool:
    """Whether networks can live there."""
    try:
        check_device(name)
    except ShoalError:
        return False
    return True


NO_SUITES = {"check", "common"}


def suites() -> dict[str, str]:
    """Every suite of environments: its name and its module's.

    A suite is a module of `shoal.envs` with `names()` and `make(name, num_envs, **arguments)`; where there are
    `parameters(name)` and `hints(name)`, arguments are checked and typed by them, and described by the docstrings of
    `sources(name)`; `note(name)` is shown beside a name;
    `canonical(name)` gives the one name of an environment that goes by several. `SERIAL = True` says that environments
    are stepped one after the other (`make` then takes `first` and `render_mode` too), `OPEN = True` that `names()` are
    not all.
    """
    modules = [info.name for info in pkgutil.iter_modules(envs_package.__path__)]
    return {name: f"{envs_package.__name__}.{name}" for name in modules if name not in NO_SUITES}


def environments(suite: str) -> list[str]:
    """Full names of a suite's environments."""
    return [f"{suite}/{name}" for name in importlib.import_module(suites()[suite]).names()]


def canonical(name: str) -> str:
    """The one name of `suite/name` for which settings are known, where the suite lets an environment have several."""
    suite, _, rest = name.partition("/")
    module: Any = importlib.import_module(suites()[suite]) if suite in suites() else None
    return f"{suite}/{module.canonical(rest)}" if hasattr(module, "canonical") else name


def note(name: str) -> str:
    """What a suite says beside the full name of one of its environments, if anything."""
    suite, _, rest = name.partition("/")
    module = importlib.import_module(suites()[suite])
    return str(module.note(rest)) if hasattr(module, "note") else ""


class Environment:
    """How to make an environment: what `shoal.make` and the command line have in common.

    Args:
        name: `suite/name`, `file.py:factory` or `package.module:factory`. A factory returns a PettingZoo `ParallelEnv`
            or `AECEnv`, or (if it takes `num_envs`) a `VecEnv`.
        complete: whether these are all arguments (the command line asks for an environment's before it reads them).
        arguments: for the environment.

    Raises:
        ShoalError: no such environment, or an argument it does not take.
    """

    def __init__(self, name: str, *, complete: bool = True, **arguments: Any) -> None:
        self.name, self.full_name, self.arguments, self.complete = name, full_name(name), arguments, complete
        self.factory: Callable[..., Any] | None = None
        if ":" in name:
            place, _, attribute = name.partition(":")
            module = _module(place)
            if not hasattr(module, attribute):
                raise ShoalError(f"{place} has no {attribute!r}; {nearest(attribute, _callables(module))}")
            self.factory = getattr(module, attribute)
        else:
            if name.endswith(".py"):
                raise ShoalError(f"name the function that makes the environment, {name}:FUNCTION; {_listed(name)}")
            suite, _, rest = name.partition("/")
            if suite not in suites():
                raise ShoalError(
                    f"there is no suite of environments {suite!r} (in {name!r}); {nearest(name, _everything())}"
                )
            self.suite: ModuleType = importlib.import_module(suites()[suite])
            self.rest = rest
            if not getattr(self.suite, "OPEN", False) and rest not in self.suite.names():
                raise ShoalError(f"there is no environment {name!r}; {nearest(name, environments(suite))}")
        self._check_arguments()

    @property
    def native(self) -> bool:
        """Whether many environments cost little more than one."""
        return self.factory is None and not getattr(self.suite, "SERIAL", False)

    def parameters(self) -> dict[str, inspect.Parameter] | None:
        """The arguments it takes, by name; None where it takes any (**arguments)."""
        if self.factory is not None:
            found = dict(inspect.signature(self.factory).parameters)
        elif hasattr(self.suite, "parameters"):
            return self.suite.parameters(self.rest)  # type: ignore[no-any-return]
        else:
            return None
        if any(p.kind is p.VAR_KEYWORD for p in found.values()):
            return None
        return {
            n: p for n, p in found.items() if n not in ("num_envs", "render_mode") and p.kind is not p.VAR_POSITIONAL
        }

    def hints(self) -> dict[str, Any]:
        """Types of the arguments, as far as they are annotated."""
        if self.factory is None and hasattr(self.suite, "hints"):
            return self.suite.hints(self.rest)  # type: ignore[no-any-return]
        try:
            return typing.get_type_hints(self.factory)
        except (NameError, TypeError):
            return {}

    def meanings(self) -> dict[str, str]:
        """What the arguments mean, as far as docstrings say."""
        if self.factory is not None:
            sources: tuple[Any, ...] = (self.factory,)
        else:
            sources = self.suite.sources(self.rest) if hasattr(self.suite, "sources") else ()
        found: dict[str, str] = {}
        for described in (parameter for source in sources for parameter in parse_from_object(source).params):
            text = " ".join((described.description or "").split())
            found |= dict.fromkeys(described.arg_name.split(", "), text[:1].upper() + text[1:])
        return found

    def _check_arguments(self) -> None:
        known = self.parameters()
        for key, parameter in (known or {}).items():
            if self.complete and parameter.default is parameter.empty and key not in self.arguments:
                raise ShoalError(f"{self.name} needs the argument {key!r}: --env.{key.replace('_', '-')} VALUE")
        for key in self.arguments:
            if known is not None and key not in known:
                raise ShoalError(f"{self.name} takes no argument {key!r}; {nearest(key, known)}")

    def make(
        self,
        num_envs: int = 1,
        *,
        render: bool = False,
        first: int = 0,
        processes: int = 0,
        on_worker_failure: Literal["raise", "restart"] = "raise",
        worker_timeout: float = 60.0,
    ) -> VecEnv:
        """A batch of environments.

        Args:
            num_envs: how many.
            render: ask them to draw, where they must be asked beforehand.
            first: number of the first, where others of the same batch are elsewhere.
            processes: worker processes that play them; 0: none, in this process.
            on_worker_failure: see `Processes`, as `worker_timeout`.

        Raises:
            ShoalError: `processes` for environments that do not need them, or what making the environment raises.
        """
        from shoal.envs.common.serial import SerialEnvs

        if processes:
            if self.native:
                raise ShoalError(
                    f"{self.name} steps all its environments at once, in threads of this process where that is faster: "
                    "leave processes at 0"
                )
            make = functools.partial(_singles, self.full_name, self.arguments, render)
            return Processes(
                make, num_envs, processes, self.name,
                numbered=not self._batched, on_failure=on_worker_failure, timeout=worker_timeout,
            )  # fmt: skip
        if self.factory is None:
            extra: dict[str, Any] = {} if self.native else {"first": first}
            if render and not self.native:
                extra["render_mode"] = "rgb_array"
            return self.suite.make(self.rest, num_envs, **self.arguments, **extra)  # type: ignore[no-any-return]
        parameters = inspect.signature(self.factory).parameters
        if self._batched:
            env = self.factory(num_envs=num_envs, **self.arguments)
            if not isinstance(env, VecEnv):
                raise ShoalError(f"{self.name} takes num_envs, so it must return a VecEnv, not {type(env).__name__}")
            return env
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        extra = {"render_mode": "rgb_array"} if render and ("render_mode" in parameters or open_ended) else {}
        factory = self.factory
        return SerialEnvs(lambda: self._parallel(factory(**self.arguments, **extra)), num_envs, self.name, first)

    @property
    def _batched(self) -> bool:
        """Whether it is a factory that makes many environments at once."""
        return self.factory is not None and "num_envs" in inspect.signature(self.factory).parameters

    def _parallel(self, env: Any) -> Any:
        if not hasattr(env, "possible_agents"):
            raise ShoalError(
                f"{self.name} must return a PettingZoo ParallelEnv or AECEnv, or have the members of "
                f"shoal.VecEnv, and a {type(env).__name__} is neither: see docs/environments/own.md"
            )
        return env


def _singles(name: str, arguments: dict[str, Any], render: bool, first: int, count: int) -> list[VecEnv]:
    """The environments first..first+count-1, one by one: what a worker process makes."""
    environment = Environment(name, **arguments)
    return [environment.make(render=render, first=number) for number in range(first, first + count)]


def _module(place: str) -> ModuleType:
    """A module by dotted name, or a file by path (under a name that other processes find again)."""
    if not place.endswith(".py"):
        sys.path.insert(0, "")  # where the user stands, as `python -m` does
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ShoalError(f"cannot import {place!r}: {error}") from error
        finally:
            sys.path.remove("")
    path = Path(place).resolve()
    if not path.is_file():
        raise ShoalError(f"there is no file {place!r} (looked for {path})")
    name = "shoal_file_" + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _listed(place: str) -> str:
    """What a file defines that could make an environment, in words."""
    return "it has " + (", ".join(_callables(_module(place))) or "none")


def _callables(module: ModuleType) -> list[str]:
    own = {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}
    return [name for name, value in own.items() if getattr(value, "__module__", None) == module.__name__]


def _everything() -> list[str]:
    return [name for suite in suites() for name in environments(suite)]
