"""MaMuJoCo: MuJoCo's robots, their joints divided among agents, from the package gymnasium-robotics.

A name is `<robot>-<division>`: `HalfCheetah-2x3` is two agents with three joints each, `HalfCheetah` alone one agent
that moves them all. All agents earn the robot's reward. Written for `gymnasium-robotics` 1.4 and `mujoco` 4.0.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from shoal.envs.common.extras import require
from shoal.envs.common.serial import SerialEnvs
from shoal.types import ShoalError

SERIAL = OPEN = True
ROBOTS = {
    "Ant": ("2x4", "2x4d", "4x2"),
    "HalfCheetah": ("2x3", "6x1"),
    "Hopper": ("3x1",),
    "Humanoid": ("9|8",),
    "HumanoidStandup": ("9|8",),
    "ManySegmentAnt": ("2x3",),
    "ManySegmentSwimmer": ("10x2",),
    "Pusher": ("3p",),
    "Reacher": ("2x1",),
    "Swimmer": ("2x1",),
    "Walker2d": ("2x3",),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notices that the package prints when it is imported, and MuJoCo when it reads a robot.

    MuJoCo would also leave a file of them where the user stands.
    """
    mujoco = require("mujoco", "mamujoco")
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        mujoco.set_mju_user_warning(None)


def names() -> list[str]:
    """The divisions that the package knows; segments of the ManySegment robots may be divided otherwise (`4x5`)."""
    return [f"{robot}-{division}" for robot, divisions in ROBOTS.items() for division in divisions]


def make(name: str, num_envs: int, first: int = 0, **arguments: Any) -> SerialEnvs:
    """`HalfCheetah-2x3`, with the package's own arguments (`agent_obsk=0`, and those of the robot).

    Raises:
        ShoalError: no such robot or division, or an argument that it does not take.
    """
    robot, _, division = name.partition("-")
    with _quiet():
        suite = require("gymnasium_robotics", "mamujoco").mamujoco_v1

    def one() -> Any:
        try:
            with _quiet():
                return suite.parallel_env(scenario=robot, agent_conf=division or None, **arguments)
        except Exception as error:  # the package raises Exception itself for a division it does not know
            raise ShoalError(
                f"gymnasium-robotics does not make mamujoco/{name}: {type(error).__name__}: {error}; "
                f"robots and their divisions: {', '.join(names())}"
            ) from error

    if not division:
        arguments = {"agent_obsk": None, **arguments}
    return SerialEnvs(one, num_envs, f"mamujoco/{name}", first)
