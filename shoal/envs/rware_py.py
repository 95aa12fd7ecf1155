"""The multi-robot warehouse as the Python package plays it (`rware` 2.0); `rware` plays the same one compiled.

The time limit is a truncation, which the package calls a termination.
"""

from __future__ import annotations

from typing import Any

from shoal.envs.common.extras import require
from shoal.envs.common.serial import SerialEnvs
from shoal.envs.common.tuples import TupleEnv, create, registered
from shoal.types import ShoalError, nearest

SERIAL = OPEN = True


def names() -> list[str]:
    """The warehouses of published comparisons; the package registers many more."""
    return ["rware-tiny-2ag", "rware-tiny-4ag", "rware-small-4ag"]


def _cut_off(env: Any) -> bool:
    return bool(env.max_steps and env._cur_steps >= env.max_steps)


def make(name: str, num_envs: int, first: int = 0, **arguments: Any) -> SerialEnvs:
    """`rware-tiny-2ag`, with the package's own arguments.

    Its enumerations are named: `reward_type="global"`, `observation_type="image"`.
    """
    package = require("rware", "rware")
    for key, kind in (("reward_type", package.RewardType), ("observation_type", package.ObservationType)):
        if isinstance(value := arguments.get(key), str):
            if value.upper() not in kind.__members__:
                raise ShoalError(f"rware has no {key} {value!r}; {nearest(value, map(str.lower, kind.__members__))}")
            arguments[key] = kind[value.upper()]
    spec = registered(package, name)
    return SerialEnvs(lambda: TupleEnv(create(spec, **arguments), _cut_off), num_envs, f"rware_py/{name}", first)
