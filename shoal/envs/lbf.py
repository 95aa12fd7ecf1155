"""Level-based foraging (Christianos et al. 2020; Papoudakis et al. 2021), the same game as the package `lbforaging`.

Players with levels walk on a grid on which food with levels lies. Who stands beside food may load it, together with
whoever else does; it is eaten if their levels add up to its own.

    Foraging[-grid][-Ks]-SxS-Pp-Ff[-coop][-ind][-pen][-v3]

    SxS     the field's side, and what players see to every side of them; with Ks only K
    Pp Ff   players and food
    coop    all food is as heavy as allowed: without max_food_level it takes the three weakest players (or all of two)
    ind     all food has level 1
    pen     who loads in vain loses 0.1
    grid    observations are layers of the cells around a player

K may also stand behind the food, as in published tables: 8x8-2p-2f-2s-coop. Drawn from numpy's generator as in the
package (2.0.0): environment i, reset with a seed, plays the episodes that the package plays from seed + i on.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from shoal.envs.common.kernel_env import KernelEnv, Pixels, compiled_kernel
from shoal.envs.common.pcg64 import integer, shuffle
from shoal.jit import compiled
from shoal.roll import begin, finish
from shoal.types import SELF, Discrete, GroupSpec, Part, ShoalError, columns

OPEN = True  # any id of the scheme
SCHEME = "Foraging[-grid][-Ks]-SxS-Pp-Ff[-coop][-ind][-pen][-v3]"
ID = re.compile(
    r"(?:Foraging-)?(?P<grid>grid-)?(?:(?P<before>\d+)s-)?(?P<rows>\d+)x(?P<cols>\d+)-(?P<players>\d+)p-(?P<food>\d+)f"
    r"(?:-(?P<after>\d+)s)?(?P<coop>-coop)?(?P<ind>-ind)?(?P<pen>-pen)?(?:-v3)?"
)
NONE, NORTH, SOUTH, WEST, EAST, LOAD = ACTIONS = range(6)
ROW, COL, LEVEL = range(3)
ATTEMPTS = 1000  # to find a place, as in the package
LARGEST = 127  # int8
THREAD_ENVS = 1024  # environments a thread must have to be worth waking

Levels = int | tuple[int, ...]


@dataclass(frozen=True)
class Rules:
    """A game; the names are those of the package's constructor, whose defaults come from the id."""

    players: int = 2
    field_size: tuple[int, int] = (8, 8)
    """Rows and columns, at least 3 each: food does not lie at the edge."""
    max_num_food: int = 2
    """Food at the start, less where it finds no place: not next to other food, nor diagonally, nor two cells away."""
    sight: int = 8
    """Cells that a player sees to every side."""
    max_episode_steps: int = 50
    force_coop: bool = False
    """All food has its highest level."""
    min_player_level: Levels = 1
    """One for all, or one each, which are dealt to the players anew in every episode."""
    max_player_level: Levels = 2
    min_food_level: Levels = 1
    max_food_level: Levels | None = None
    """None: the sum of the three lowest levels of players in the episode."""
    normalize_reward: bool = True
    """Divide rewards so that all food of an episode together pays the team 1."""
    grid_observation: bool = False
    """See layers (levels of players, levels of food, whether a cell is free) of the cells in sight."""
    observe_agent_levels: bool = True
    penalty: float = 0.0
    """What loading in vain costs each who tried."""
    masks: bool = False
    """Tell which actions are not the same as staying: the package's `_valid_actions`, which it does not show."""

    def __post_init__(self) -> None:
        for key, least in (("players", 1), ("max_num_food", 1), ("sight", 1), ("max_episode_steps", 1)):
            if getattr(self, key) < least:
                raise ShoalError(f"{key} must be at least {least}, not {getattr(self, key)}")
        if self.max_num_food > LARGEST:
            raise ShoalError(f"max_num_food must be at most {LARGEST}, not {self.max_num_food}")
        size = self.field_size
        if len(size) != 2 or min(size) < 3 or max(size) > LARGEST:
            raise ShoalError(f"field_size is rows and columns, 3 to {LARGEST} each, not {tuple(size)}")
        if self.players > size[0] * size[1]:
            raise ShoalError(f"{self.players} players do not fit on a field of {size[0]} x {size[1]}")
        low, high = levels(self, "min_player_level"), levels(self, "max_player_level")
        least_food, weakest = levels(self, "min_food_level"), int(np.sort(low)[:3].sum())
        if (low > high).any():
            raise ShoalError(f"min_player_level {low.tolist()} is above max_player_level {high.tolist()}")
        if self.max_food_level is not None:
            if (least_food > (most := levels(self, "max_food_level"))).any():
                raise ShoalError(f"min_food_level {least_food.tolist()} is above max_food_level {most.tolist()}")
        elif np.sort(high)[:3].sum() > LARGEST:
            raise ShoalError(f"levels of food, the sum of three players', must not exceed {LARGEST}")
        elif least_food.max() > weakest and not self.force_coop:
            raise ShoalError(
                f"min_food_level {least_food.tolist()} is above {weakest}, all that the three weakest players may be"
            )

    @property
    def obs_shape(self) -> tuple[int, ...]:
        if self.grid_observation:
            side = 2 * self.sight + 1
            return (3, side, side)
        return (columns(self.parts),)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of a list of what is in sight; of a grid, nothing."""
        width = 2 + self.observe_agent_levels
        listed = Part("food", 3, self.max_num_food), Part(SELF, width), Part("player", width, self.players - 1)
        return () if self.grid_observation else listed


def levels(rules: Rules, key: str) -> NDArray[np.int64]:
    """The levels of argument `key`, one for each player or food.

    Raises:
        ShoalError: another number of them, or one outside 1..127.
    """
    count = rules.players if "player" in key else rules.max_num_food
    given: int | Sequence[int] = getattr(rules, key)
    found = np.full(count, given) if np.ndim(given) == 0 else np.asarray(given)
    if found.shape != (count,) or found.dtype != np.int64 or found.min() < 1 or found.max() > LARGEST:
        raise ShoalError(f"{key} must be a level from 1 to {LARGEST}, or {count} of them, not {given}")
    return found


class Params(NamedTuple):
    """The rules, for the kernel."""

    rows: int
    cols: int
    sight: int
    max_steps: int
    coop: bool
    normalize: bool
    grid: bool
    show_levels: bool
    penalty: float
    team_food: bool  # the highest level of food is what the three weakest players can lift
    player_low: NDArray[np.int64]  # [player]
    player_high: NDArray[np.int64]
    food_low: NDArray[np.int64]  # [food]
    food_high: NDArray[np.int64]


class World(NamedTuple):
    """All that changes. Food lies in the order of rows, then columns; eaten food has level 0."""

    player: NDArray[np.int8]  # [env, player, (row, column, level)]
    food: NDArray[np.int8]  # [env, food, (row, column, level)]
    spawned: NDArray[np.int64]  # [env], sum of the food's levels at the start
    plan: NDArray[np.int8]  # [env, player, (row, column, food to load or -1)]: scratch
    order: NDArray[np.int64]  # [env, max(player, food)]: scratch
    rng: NDArray[np.uint64]  # [env, 6]


# The step


@compiled
def _beside(food, row, col):  # type: ignore[no-untyped-def]
    """The food beside a cell (there is one at most, see `_place_food`), or -1."""
    for f in range(len(food)):
        if food[f, LEVEL] > 0 and abs(food[f, ROW] - row) + abs(food[f, COL] - col) == 1:
            return f
    return -1


@compiled
def _free(p, food, row, col):  # type: ignore[no-untyped-def]
    """Whether a cell is on the field and without food."""
    if row < 0 or row >= p.rows or col < 0 or col >= p.cols:
        return False
    for f in range(len(food)):  # noqa: SIM110
        if food[f, LEVEL] > 0 and food[f, ROW] == row and food[f, COL] == col:
            return False
    return True


@compiled
def _move(p, player, food, plan, actions):  # type: ignore[no-untyped-def]
    """Nobody enters a cell that another one also wants, stays in or loads from; what does nothing is staying."""
    for i in range(len(player)):
        row, col, action = np.int64(player[i, ROW]), np.int64(player[i, COL]), actions[i]
        plan[i, 2] = _beside(food, row, col) if action == LOAD else -1
        if action != NONE and action != LOAD:
            to_row = row + (action == SOUTH) - (action == NORTH)
            to_col = col + (action == EAST) - (action == WEST)
            if _free(p, food, to_row, to_col):
                row, col = to_row, to_col
        plan[i, ROW], plan[i, COL] = row, col
    for i in range(len(player)):
        alone = True
        for j in range(len(player)):
            if j != i and plan[i, ROW] == plan[j, ROW] and plan[i, COL] == plan[j, COL]:
                alone = False
        if alone:
            player[i, ROW], player[i, COL] = plan[i, ROW], plan[i, COL]


@compiled
def _load(p, player, food, plan, spawned, reward):  # type: ignore[no-untyped-def]
    for i in range(len(player)):
        reward[i] = 0.0
    for f in range(len(food)):
        strength = 0
        for i in range(len(player)):
            if plan[i, 2] == f:
                strength += player[i, LEVEL]
        if strength == 0:
            continue
        level = np.int64(food[f, LEVEL])
        for i in range(len(player)):
            if plan[i, 2] != f:
                continue
            if strength < level:
                reward[i] -= p.penalty
            elif p.normalize:
                reward[i] = np.float64(player[i, LEVEL] * level) / np.float64(strength * spawned)
            else:
                reward[i] = player[i, LEVEL] * level
        if strength >= level:
            food[f, LEVEL] = 0


@compiled
def _levels_left(food):  # type: ignore[no-untyped-def]
    total = 0
    for f in range(len(food)):
        total += food[f, LEVEL]
    return total


# What is seen


@compiled
def _see_list(p, player, food, i, out):  # type: ignore[no-untyped-def]
    """Food in sight, oneself, others in sight; rows and columns count from the corner of what is in sight.

    Near the first rows and columns others are seen further than food, as in the package.
    """
    row, col = np.int64(player[i, ROW]), np.int64(player[i, COL])
    top, left = max(row - p.sight, 0), max(col - p.sight, 0)
    k = 0
    for f in range(len(food)):
        y, x = food[f, ROW] - top, food[f, COL] - left
        below, right = food[f, ROW] - row, food[f, COL] - col
        if food[f, LEVEL] > 0 and y >= 0 and x >= 0 and below <= p.sight and right <= p.sight:
            out[k], out[k + 1], out[k + 2] = y, x, food[f, LEVEL]
            k += 3
    while k < 3 * len(food):
        out[k], out[k + 1], out[k + 2] = -1.0, -1.0, 0.0
        k += 3
    out[k], out[k + 1] = row - top, col - left
    if p.show_levels:
        out[k + 2] = player[i, LEVEL]
    width = 3 if p.show_levels else 2
    k += width
    for j in range(len(player)):
        y, x = player[j, ROW] - top, player[j, COL] - left
        if j != i and 0 <= y <= 2 * p.sight and 0 <= x <= 2 * p.sight:
            out[k], out[k + 1] = y, x
            if p.show_levels:
                out[k + 2] = player[j, LEVEL]
            k += width
    while k < len(out):
        out[k], out[k + 1] = -1.0, -1.0
        if p.show_levels:
            out[k + 2] = 0.0
        k += width


@compiled
def _see_grid(p, player, food, i, out):  # type: ignore[no-untyped-def]
    """Layers `[side, side]` around oneself: levels of players, levels of food, free cells."""
    side = 2 * p.sight + 1
    top, left = player[i, ROW] - p.sight, player[i, COL] - p.sight
    cells = side * side
    for k in range(2 * cells):
        out[k] = 0.0
    for y in range(side):
        for x in range(side):
            out[2 * cells + y * side + x] = 0 <= top + y < p.rows and 0 <= left + x < p.cols
    for j in range(len(player)):
        y, x = player[j, ROW] - top, player[j, COL] - left
        if 0 <= y < side and 0 <= x < side:
            out[y * side + x] = player[j, LEVEL] if p.show_levels else 1
            out[2 * cells + y * side + x] = 0.0
    for f in range(len(food)):
        y, x = food[f, ROW] - top, food[f, COL] - left
        if food[f, LEVEL] > 0 and 0 <= y < side and 0 <= x < side:
            out[cells + y * side + x] = food[f, LEVEL]
            out[2 * cells + y * side + x] = 0.0


@compiled
def _show(p, player, food, obs, legal):  # type: ignore[no-untyped-def]
    for i in range(len(player)):
        if p.grid:
            _see_grid(p, player, food, i, obs[i])
        else:
            _see_list(p, player, food, i, obs[i])
        if legal.shape[1] > 0:
            row, col = np.int64(player[i, ROW]), np.int64(player[i, COL])
            legal[i, NONE] = True
            legal[i, NORTH], legal[i, SOUTH] = _free(p, food, row - 1, col), _free(p, food, row + 1, col)
            legal[i, WEST], legal[i, EAST] = _free(p, food, row, col - 1), _free(p, food, row, col + 1)
            legal[i, LOAD] = _beside(food, row, col) >= 0


# The start of an episode


@compiled
def _taken(player, row, col):  # type: ignore[no-untyped-def]
    for i in range(len(player)):  # noqa: SIM110
        if player[i, ROW] == row and player[i, COL] == col:
            return True
    return False


@compiled
def _place_players(p, player, order, rng):  # type: ignore[no-untyped-def]
    """Cells on which others still stand from the episode before count as taken, as in the package."""
    shuffle(rng, order, len(player))
    for i in range(len(player)):
        attempts = 0
        while attempts < ATTEMPTS or player[i, ROW] < 0:
            row, col = integer(rng, p.rows), integer(rng, p.cols)
            if not _taken(player, row, col):
                low, high = p.player_low[order[i]], p.player_high[order[i]]
                player[i, ROW], player[i, COL] = row, col
                player[i, LEVEL] = low + integer(rng, high - low + 1)
                break
            attempts += 1


@compiled
def _weakest_three(player):  # type: ignore[no-untyped-def]
    """The sum of their levels (of fewer players, all)."""
    a = b = c = np.int64(2 * LARGEST)
    for i in range(len(player)):
        level = np.int64(player[i, LEVEL])
        if level < a:
            a, b, c = level, a, b
        elif level < b:
            b, c = level, b
        elif level < c:
            c = level
    return a + (b if len(player) > 1 else 0) + (c if len(player) > 2 else 0)


@compiled
def _crowded(food, count, row, col):  # type: ignore[no-untyped-def]
    for f in range(count):  # noqa: SIM110
        if abs(food[f, ROW] - row) + abs(food[f, COL] - col) <= 2:
            return True
    return False


@compiled
def _place_food(p, player, food, order, rng):  # type: ignore[no-untyped-def]
    """Returns the sum of the levels. No food is within two steps of other food: no cell is beside two of them."""
    shuffle(rng, order, len(food))
    team = _weakest_three(player)
    total = count = attempts = 0
    while count < len(food) and attempts < ATTEMPTS:
        attempts += 1
        row, col = 1 + integer(rng, p.rows - 2), 1 + integer(rng, p.cols - 2)
        if _crowded(food, count, row, col) or _taken(player, row, col):
            continue
        high = team if p.team_food else p.food_high[order[count]]
        low = high if p.coop else p.food_low[order[count]]
        level = low + integer(rng, high - low + 1)
        f = count
        while f > 0 and (food[f - 1, ROW] > row or (food[f - 1, ROW] == row and food[f - 1, COL] > col)):
            for k in range(3):
                food[f, k] = food[f - 1, k]
            f -= 1
        food[f, ROW], food[f, COL], food[f, LEVEL] = row, col, level
        total += level
        count += 1
    for f in range(count, len(food)):
        food[f, LEVEL] = 0
    return total


@compiled_kernel
def kernel(lo, hi, roll, start, p, world, buffers, actions):  # type: ignore[no-untyped-def]
    """See `KernelEnv`. An episode whose food is eaten terminates; one that is too long is cut off."""
    for t in range(roll[0]):
        begin(roll, lo, hi, t)
        for e in range(lo, hi):
            player, food, order, rng = world.player[e], world.food[e], world.order[e], world.rng[e]
            obs, legal, next_obs, next_legal = (
                buffers.obs[e],
                buffers.legal[e],
                buffers.next_obs[e],
                buffers.next_legal[e],
            )
            if start:
                for i in range(len(player)):
                    player[i, ROW] = -1  # on no cell
            else:
                _move(p, player, food, world.plan[e], actions[e])
                _load(p, player, food, world.plan[e], world.spawned[e], buffers.reward[e])
                buffers.steps[e] += 1
                over = _levels_left(food) == 0
                for i in range(len(player)):
                    buffers.terminated[e, i] = over
                buffers.ended[e] = over or buffers.steps[e] >= p.max_steps
                _show(p, player, food, next_obs, next_legal)
            if start or buffers.ended[e]:
                buffers.steps[e] = 0
                _place_players(p, player, order, rng)
                world.spawned[e] = _place_food(p, player, food, order, rng)
                _show(p, player, food, obs, legal)
            else:
                for i in range(len(player)):
                    for k in range(obs.shape[1]):
                        obs[i, k] = next_obs[i, k]
                    for k in range(legal.shape[1]):
                        legal[i, k] = next_legal[i, k]
        finish(roll, lo, hi, t)


# The suite


def parse(name: str) -> Rules:
    """The rules of an id.

    Raises:
        ShoalError: not an id of the scheme, or impossible rules.
    """
    found = ID.fullmatch(name)
    if found is None or (found["before"] and found["after"]):
        raise ShoalError(f"lbf has no {name!r}: an id is {SCHEME}, such as {names()[0]}")
    size = int(found["rows"]), int(found["cols"])
    return Rules(
        players=int(found["players"]),
        field_size=size,
        max_num_food=int(found["food"]),
        sight=int(found["before"] or found["after"] or max(size)),
        force_coop=bool(found["coop"]),
        max_food_level=1 if found["ind"] else None,
        grid_observation=bool(found["grid"]),
        penalty=0.1 if found["pen"] else 0.0,
    )


def canonical(name: str) -> str:
    """The id as the package writes it, without its version."""
    rules = parse(name)
    rows, cols = rules.field_size
    before = "-grid" * rules.grid_observation + f"-{rules.sight}s" * (rules.sight != max(rows, cols))
    after = "-coop" * rules.force_coop + "-ind" * (rules.max_food_level == 1) + "-pen" * (rules.penalty > 0)
    return f"Foraging{before}-{rows}x{cols}-{rules.players}p-{rules.max_num_food}f{after}"


def names() -> list[str]:
    """The published ids (Papoudakis et al. 2021); every id of the scheme can be made."""
    published = ["8x8-2p-2f-coop", "2s-8x8-2p-2f-coop", "10x10-3p-3f", "2s-10x10-3p-3f"]
    return [f"Foraging-{name}" for name in (*published, "15x15-3p-5f", "15x15-4p-3f", "15x15-4p-5f")]


def make(name: str, num_envs: int, *, threads: int = 0, **arguments: Any) -> KernelEnv:
    """A batch of fields; arguments as in `Rules`."""
    rules = dataclasses.replace(parse(name), **arguments)
    if num_envs < 1:
        raise ShoalError(f"num_envs must be at least 1, not {num_envs}")
    players, food = rules.players, rules.max_num_food
    low, high, food_low = (levels(rules, key) for key in ("min_player_level", "max_player_level", "min_food_level"))
    team_food = rules.max_food_level is None
    params = Params(
        rows=rules.field_size[0],
        cols=rules.field_size[1],
        sight=rules.sight,
        max_steps=rules.max_episode_steps,
        coop=rules.force_coop,
        normalize=rules.normalize_reward,
        grid=rules.grid_observation,
        show_levels=rules.observe_agent_levels,
        penalty=float(rules.penalty),
        team_food=team_food,
        player_low=low,
        player_high=high,
        food_low=food_low,
        food_high=food_low if team_food else levels(rules, "max_food_level"),
    )
    world = World(
        player=np.zeros((num_envs, players, 3), np.int8),
        food=np.zeros((num_envs, food, 3), np.int8),
        spawned=np.zeros(num_envs, np.int64),
        plan=np.zeros((num_envs, players, 3), np.int8),
        order=np.zeros((num_envs, max(players, food)), np.int64),
        rng=np.zeros((num_envs, 6), np.uint64),
    )
    agents = tuple(f"agent_{i}" for i in range(players))
    group = GroupSpec(agents, rules.obs_shape, Discrete(len(ACTIONS)), masked=rules.masks, parts=rules.parts)
    return KernelEnv(kernel, params, world, "agent", group, num_envs, draw=draw, threads=threads, least=THREAD_ENVS)


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of `make`, beside name and num_envs; their defaults are the id's."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    rules = dataclasses.asdict(parse(name))
    return {key: inspect.Parameter(key, keyword, default=value) for key, value in {**rules, "threads": 0}.items()}


def hints(name: str) -> dict[str, Any]:
    """Types of those arguments."""
    return {**get_type_hints(Rules), "threads": int}


def sources(name: str) -> tuple[Any, ...]:
    """Whose docstrings say what they mean."""
    return (Rules,)


# Pictures

CELL = 44  # pixels
COLORS = ("#3b6fb6", "#e08a2c", "#7a52a3", "#2a9d8f", "#c2478a", "#8a6d3b")


def draw(p: Params, world: World, index: int) -> Pixels:
    """Players are coloured squares, food red discs, each with its level; players in one cell share it."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (p.cols * CELL + 1, p.rows * CELL + 1), "#f4f1e8")
    canvas = ImageDraw.Draw(picture)
    for k in range(max(p.rows, p.cols) + 1):
        canvas.line([(0, k * CELL), (p.cols * CELL, k * CELL)], fill="#cfc9b8")
        canvas.line([(k * CELL, 0), (k * CELL, p.rows * CELL)], fill="#cfc9b8")

    def write(x: float, y: float, level: int) -> None:
        canvas.text((x, y), str(level), fill="white", anchor="mm", font_size=CELL * 0.45)

    for row, col, level in world.food[index].tolist():
        if level > 0:
            x, y, r = (col + 0.5) * CELL, (row + 0.5) * CELL, 0.38 * CELL
            canvas.line([(x, y - r), (x + 0.12 * CELL, y - 0.48 * CELL)], fill="#5b7f3a", width=3)
            canvas.ellipse([x - r, y - r, x + r, y + r], fill="#c8372d", outline="#7f1f18", width=2)
            write(x, y, level)
    drawn: dict[tuple[int, int], int] = {}
    for i, (row, col, level) in enumerate(world.player[index].tolist()):
        shift = drawn[row, col] = drawn.get((row, col), -1) + 1
        x, y, r = (col + 0.5) * CELL + 5 * shift, (row + 0.5) * CELL + 5 * shift, 0.36 * CELL
        color = COLORS[i % len(COLORS)]
        canvas.rounded_rectangle([x - r, y - r, x + r, y + r], radius=8, fill=color, outline="#333333", width=2)
        write(x, y, level)
    return np.asarray(picture)
