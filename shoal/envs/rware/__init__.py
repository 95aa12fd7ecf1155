"""The multi-robot warehouse (Christianos et al. 2020; Papoudakis et al. 2021): the same game as the package `rware`.

A task is named as there, with or without `rware-` and `-v2`:

    [rware-][img-|imgdict-][Nd-][2s-] SIZE [-8h] -4ag [-easy|-hard] [-3req] [-indiv|-global|-twostage] [-v2]

SIZE is tiny, small, medium, large, or ROWSxCOLUMNS of shelves.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from shoal.envs.common.extras import unversioned
from shoal.envs.common.kernel_env import KernelEnv
from shoal.envs.rware import kernel
from shoal.envs.rware.draw import draw
from shoal.types import Discrete, GroupSpec, ShoalError

OPEN = True
SIZES = {"tiny": (1, 3), "small": (2, 3), "medium": (2, 5), "large": (3, 5)}
"""Rows and columns of blocks of shelves."""
LAYERS = ("SHELVES", "REQUESTS", "AGENTS", "AGENT_DIRECTION", "AGENT_LOAD", "GOALS", "ACCESSIBLE")
REWARDS = {"global": "GLOBAL", "indiv": "INDIVIDUAL", "twostage": "TWO_STAGE"}
NAME = re.compile(
    r"(rware-)?((?P<image>img|imgdict)-)?((?P<north>Nd)-)?((?P<sight>\d+)s-)?"
    r"((?P<size>tiny|small|medium|large)|(?P<rows>\d+)x(?P<columns>\d+))(-(?P<height>\d+)h)?-(?P<agents>\d+)ag"
    r"(-(?P<level>easy|hard))?(-(?P<requests>\d+)req)?(-(?P<reward>indiv|global|twostage))?(-v2)?"
)
SCHEME = (
    "rware-SIZE-Nag, SIZE being tiny, small, medium, large or ROWSxCOLUMNS, N the number of agents; then perhaps -easy "
    "or -hard, for example rware-tiny-2ag, rware-small-4ag-hard, rware-img-2s-2x5-8h-6ag-3req-global"
)
MOST_BITS = 8
THREAD_AGENTS = 2048
"""Agents that make a thread worth waking."""


def warehouse(
    num_envs: int,
    *,
    shelf_columns: int = 3,
    column_height: int = 8,
    shelf_rows: int = 1,
    n_agents: int = 2,
    msg_bits: int = 0,
    sensor_range: int = 1,
    request_queue_size: int = 2,
    max_inactivity_steps: int = 0,
    max_steps: int = 500,
    reward_type: Literal["GLOBAL", "INDIVIDUAL", "TWO_STAGE"] = "INDIVIDUAL",
    layout: str = "",
    observation_type: Literal["FLATTENED", "IMAGE", "IMAGE_DICT"] = "FLATTENED",
    image_observation_layers: tuple[str, ...] = ("SHELVES", "REQUESTS", "AGENTS", "GOALS", "ACCESSIBLE"),
    image_observation_directional: bool = True,
    normalised_coordinates: bool = False,
    threads: int = 0,
) -> KernelEnv:
    """A batch of warehouses; arguments as in the package, where no limit (None there) is 0 here.

    Args:
        num_envs: environments that step together.
        shelf_columns: groups of shelves side by side, an odd number.
        column_height: rows of shelves in each.
        shelf_rows: groups of shelves one above the other.
        n_agents: robots.
        msg_bits: bits that a robot can say to those around it.
        sensor_range: cells that a robot sees to every side.
        request_queue_size: shelves that are asked for at a time.
        max_inactivity_steps: steps without a delivery after which an episode ends; 0: it does not.
        max_steps: length of an episode; 0: none.
        reward_type: who is paid for a delivery: all, who made it, or that one half, and half for the shelf's return.
        layout: a map instead of the sizes: x a shelf, g a goal, . a corridor.
        observation_type: numbers, pictures, or both.
        image_observation_layers: of pictures.
        image_observation_directional: pictures are turned as the robot looks.
        normalised_coordinates: a robot's place as shares of the warehouse.
        threads: 0 chooses by the number of environments.

    Raises:
        ShoalError: an argument is no warehouse's.
    """
    max_inactivity_steps, max_steps = max_inactivity_steps or 0, max_steps or 0  # the package's None
    for argument, value, least in (
        ("num_envs", num_envs, 1),
        ("n_agents", n_agents, 1),
        ("msg_bits", msg_bits, 0),
        ("sensor_range", sensor_range, 0),
        ("request_queue_size", request_queue_size, 0),
        ("max_inactivity_steps", max_inactivity_steps, 0),
        ("max_steps", max_steps, 0),
    ):
        if value < least:
            raise ShoalError(f"{argument} must be at least {least}, not {value}")
    if msg_bits > MOST_BITS:
        raise ShoalError(f"msg_bits must be at most {MOST_BITS}: an agent has 5 * 2**msg_bits actions")
    reward = _one_of("reward_type", reward_type, ("GLOBAL", "INDIVIDUAL", "TWO_STAGE"))
    observation = _one_of("observation_type", observation_type, ("FLATTENED", "IMAGE", "IMAGE_DICT"))
    layers = [_one_of("image_observation_layers", layer, LAYERS) for layer in image_observation_layers]
    if observation and not layers:
        raise ShoalError(f"image_observation_layers must name at least one of {', '.join(LAYERS)}")
    plan = _from_text(layout) if layout else _blocks(shelf_rows, shelf_columns, column_height)
    params = _params(
        plan, sensor_range, n_agents, num_envs, normalised_coordinates,
        kernel.features(tuple(LAYERS[k] for k in layers) if observation else ()),
        requests=request_queue_size, msg_bits=msg_bits, max_steps=max_steps, max_idle=max_inactivity_steps,
        reward=reward, observation=observation, directional=image_observation_directional,
    )  # fmt: skip
    side = 2 * sensor_range + 1
    picture = (len(layers), side, side)
    shape = {
        kernel.FLATTENED: (kernel.SELF + side * side * (kernel.AROUND + msg_bits),),
        kernel.IMAGE: picture,
        kernel.IMAGE_DICT: (kernel.FEATURES + int(np.prod(picture)),),
    }[observation]
    agents = tuple(f"agent_{i}" for i in range(n_agents))
    group = GroupSpec(agents, shape, Discrete(kernel.MOVES * 2**msg_bits))
    world = kernel.world(params, num_envs, n_agents)
    least = max(THREAD_AGENTS // n_agents, 1)
    return KernelEnv(kernel.advance, params, world, "agent", group, num_envs, draw=draw, threads=threads, least=least)


def _one_of(argument: str, value: Any, known: tuple[str, ...]) -> int:
    """The number of a word; members of the package's enums are understood too."""
    word = str(getattr(value, "name", value)).upper()
    if word == "DICT" and argument == "observation_type":
        raise ShoalError("observation_type DICT is FLATTENED with names beside the numbers: use FLATTENED")
    if word not in known:
        raise ShoalError(f"{argument} must be of {', '.join(known)}, not {value}")
    return known.index(word)


class _Plan(NamedTuple):
    highway: NDArray[np.bool_]
    """`[y, x]`: no shelf's place."""
    goals: list[tuple[int, int]]
    """(x, y), in the package's order."""


def _blocks(rows: int, columns: int, height: int) -> _Plan:
    if rows < 1 or columns < 1 or height < 1:
        raise ShoalError(f"shelf_rows, shelf_columns, column_height must be positive, not {rows}, {columns}, {height}")
    if columns % 2 == 0:
        raise ShoalError(f"shelf_columns must be odd (the goals' way takes the middle), not {columns}")
    h, w = (height + 1) * rows + 2, 3 * columns + 1
    y, x = np.indices((h, w))
    middle = (x == w // 2 - 1) | (x == w // 2)
    queue = (y > h - (height + 3)) & middle
    highway = (x % 3 == 0) | (y % (height + 1) == 0) | (y == h - 1) | queue
    return _Plan(highway, [(w // 2 - 1, h - 1), (w // 2, h - 1)])


def _from_text(layout: str) -> _Plan:
    lines = layout.strip().replace(" ", "").lower().split("\n")
    if len({len(line) for line in lines}) > 1 or set("".join(lines)) - set("gx."):
        raise ShoalError("layout must be lines of equal length: x a shelf, g a goal, . a free cell")
    cells = np.array([list(line) for line in lines])
    goals = [(int(x), int(y)) for y, x in np.argwhere(cells == "g")]
    if not goals:
        raise ShoalError("layout must have a goal: g")
    return _Plan(cells != "x", goals)


def _params(
    plan: _Plan,
    reach: int,
    num_agents: int,
    num_envs: int,
    normalised: bool,
    table: NDArray[np.float32],
    **constants: Any,
) -> kernel.Params:
    """The plan with a margin, as the kernel reads it."""
    height, width = plan.highway.shape
    margin = max(reach, 1)
    stride = width + 2 * margin
    if (height + 2 * margin) * stride > np.iinfo(np.int16).max:
        raise ShoalError(
            f"a warehouse of {height} x {width} cells is too large: at most 32767 with a margin of {margin}"
        )
    if num_agents > height * width:
        raise ShoalError(f"{num_agents} agents do not fit into {height} x {width} cells")
    y, x = np.indices((height, width))
    inside = (y + margin) * stride + x + margin
    empty = np.zeros((height + 2 * margin) * stride, np.uint8)
    highway = np.zeros(len(empty), np.bool_)
    hashes = np.zeros(len(empty), np.uint64)
    observed = np.zeros((2, len(empty)), np.float32)
    shelves = inside[~plan.highway]
    goals = np.array([inside[b, a] for a, b in plan.goals])
    if constants["requests"] >= len(shelves):
        raise ShoalError(
            f"request_queue_size must be less than the {len(shelves)} shelves, not {constants['requests']}: "
            "when one is delivered, another is requested"
        )
    empty[inside] = kernel.INSIDE
    empty[shelves] |= kernel.SHELF
    empty[goals] |= kernel.GOAL
    highway[inside] = plan.highway
    hashes[inside.ravel()] = [hash((a, b)) % 2**64 for a, b in zip(x.flat, y.flat, strict=True)]
    scale = (max(width - 1, 1), max(height - 1, 1)) if normalised else (1, 1)
    observed[0, inside], observed[1, inside] = x / scale[0], y / scale[1]
    scratch = kernel.scratch(num_envs, num_agents, max(len(shelves), inside.size))
    return kernel.Params(
        stride=stride, reach=reach, empty=empty, highway=highway, x=observed[0].copy(), y=observed[1].copy(),
        cells=inside.ravel(), shelves=shelves, goals=goals, table=table, hashes=hashes, scratch=scratch, **constants,
    )  # fmt: skip


def names() -> list[str]:
    """Tasks that are often used; many more are made (see the module's text)."""
    tasks = [("tiny", (2, 4, 6, 8)), ("small", (2, 4, 6, 8)), ("medium", (4, 6, 8)), ("large", (4, 8))]
    return [f"rware-{size}-{n}ag{level}" for size, agents in tasks for n in agents for level in ("", "-easy", "-hard")]


def defaults(name: str) -> dict[str, Any]:
    """What a name says: arguments of `warehouse`.

    Raises:
        ShoalError: it is no name.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ShoalError(f"there is no warehouse {name!r}; its name must be {SCHEME}")
    said = match.groupdict()
    agents = int(said["agents"])
    rows, columns = SIZES[said["size"]] if said["size"] else (int(said["rows"]), int(said["columns"]))
    requests = {None: agents, "easy": agents * 2, "hard": agents // 2}[said["level"]]
    return {
        "shelf_rows": rows,
        "shelf_columns": columns,
        "column_height": int(said["height"] or 8),
        "n_agents": agents,
        "sensor_range": int(said["sight"] or 1),
        "request_queue_size": int(said["requests"] or requests),
        "reward_type": REWARDS[said["reward"] or "indiv"],
        "observation_type": {None: "FLATTENED", "img": "IMAGE", "imgdict": "IMAGE_DICT"}[said["image"]],
        "image_observation_directional": not said["north"],
    }


def canonical(name: str) -> str:
    """The name as settings know it: with `rware-` and without a version. What is no name stays as it is."""
    if NAME.fullmatch(name) is None:
        return name
    return "rware-" + unversioned(name).removeprefix("rware-")


def make(name: str, num_envs: int, **arguments: Any) -> KernelEnv:
    """A batch of the warehouse `name`; arguments as in `warehouse`."""
    return warehouse(num_envs, **{**defaults(name), **arguments})


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of `make`, beside name and num_envs, with what the name says as defaults."""
    found = dict(inspect.signature(warehouse).parameters)
    del found["num_envs"]
    return found | {key: found[key].replace(default=value) for key, value in defaults(name).items()}


def hints(name: str) -> dict[str, Any]:
    """Types of those arguments."""
    return get_type_hints(warehouse)


def sources(name: str) -> tuple[Any, ...]:
    """Whose docstrings say what they mean."""
    return (warehouse,)
