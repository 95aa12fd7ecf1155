"""Level-based foraging as the Python package plays it (`lbforaging` 2.0); `lbf` plays the same games compiled.

Food that is left at the time limit makes the end a truncation, which the package calls a termination.
"""

from __future__ import annotations

import re
from typing import Any

from shoal.envs.common.extras import require
from shoal.envs.common.serial import SerialEnvs
from shoal.envs.common.tuples import TupleEnv, create, registered

SERIAL = OPEN = True
GAME = re.compile(r"Foraging(-2s)?-(\d+)x\2-(\d+)p-(\d+)f(-coop)?(-v\d+)?")


def names() -> list[str]:
    """The games of published comparisons; the package registers many more."""
    games = ["8x8-2p-2f-coop", "10x10-3p-3f", "15x15-3p-5f", "15x15-4p-3f", "15x15-4p-5f"]
    return [f"Foraging-{game}" for game in [*games, "2s-8x8-2p-2f-coop", "2s-10x10-3p-3f"]]


def _cut_off(env: Any) -> bool:
    return bool(env.field.sum() > 0)


def _forget(env: Any) -> None:
    for player in env.players:  # nobody could start where somebody stood last: not an episode of its seed alone
        player.position = None


def make(name: str, num_envs: int, first: int = 0, **arguments: Any) -> SerialEnvs:
    """`Foraging-8x8-2p-2f-coop`, with the package's own arguments (`sight=2`, `max_episode_steps=25`).

    Names are read, so that there may be more food than in what the package registers (`15x15-4p-5f`).
    """
    package = require("lbforaging", "lbf")
    game = GAME.fullmatch(name)
    if game:
        near, size, players, food, together, _ = game.groups()
        side, read = int(size), {"players": int(players), "max_num_food": int(food), "force_coop": bool(together)}
        arguments = {"field_size": (side, side), "sight": 2 if near else side, **read, **arguments}
    spec = registered(package, "Foraging-8x8-2p-2f" if game else name)
    return SerialEnvs(lambda: TupleEnv(create(spec, **arguments), _cut_off, _forget), num_envs, f"lbf_py/{name}", first)
