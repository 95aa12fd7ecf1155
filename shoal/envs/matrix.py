"""Matrix games: players choose at once, a payoff tensor says what each earns; played `max_steps` times an episode.

    climbing        Claus & Boutilier 1998: 11 together, -30 for the neighbour's mistake
    penalty         Claus & Boutilier 1998: 10 at two corners, k at the other two, 2 in the safe middle
    nonmonotonic    Rashid et al. 2020 (arXiv 2006.10800): 8, -12, 0; no monotonic mixer can represent it
    two_step        Rashid et al. 2018 (arXiv 1803.11485): the first player chooses game 2A (7 always) or 2B (up to 8)
    prisoners, matching_pennies, rock_paper_scissors, stag_hunt    the textbook's, each player its own payoff
    custom          any payoffs: [a1, a2, ...] for all players alike, or [player, a1, a2, ...]

Common payoffs are paid to every player, so the best *per agent* return of climbing is 11 x 25 = 275, as published.
What a player sees is constant (one-hot of the stage). The end of a repeated game is a truncation, that of two_step a
termination.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Sequence
from typing import Any, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.types import Discrete, EnvSpec, Groups, GroupSpec, ShoalError, Step, Tree, View

COMMON: dict[str, list[list[float]]] = {
    "climbing": [[11, -30, 0], [-30, 7, 0], [0, 6, 5]],
    "nonmonotonic": [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]],
}
OWN: dict[str, list[list[list[float]]]] = {
    "prisoners": [[[-1, -3], [0, -2]], [[-1, 0], [-3, -2]]],  # cooperate, defect
    "matching_pennies": [[[1, -1], [-1, 1]], [[-1, 1], [1, -1]]],  # heads, tails; the first wins when equal
    "rock_paper_scissors": [[[0, -1, 1], [1, 0, -1], [-1, 1, 0]], [[0, 1, -1], [-1, 0, 1], [1, -1, 0]]],
    "stag_hunt": [[[4, 1], [3, 2]], [[4, 3], [1, 2]]],  # stag, hare
}
TWO_STEP = [[[7, 7], [7, 7]], [[0, 1], [1, 8]]]  # games 2A and 2B


class MatrixGame:
    """A batch of games with payoffs `[stage, player, a1, a2, ...]`; satisfies `VecEnv`.

    With one stage it is a repeated game of `max_steps` rounds. With more, the first round pays nothing and the first
    player's action chooses the stage of the second, last round.
    """

    def __init__(self, num_envs: int, payoffs: NDArray[np.float32], max_steps: int) -> None:
        if num_envs < 1 or max_steps < 1:
            raise ShoalError(f"num_envs and max_steps must be at least 1, not {num_envs} and {max_steps}")
        self.num_envs, self.max_steps = num_envs, max_steps
        self.payoffs = torch.from_numpy(payoffs)
        self.stages, self.players = payoffs.shape[:2]
        self.rounds = self.stages > 1
        sizes = payoffs.shape[2:]
        stages = self.stages + self.rounds
        alike = len(set(sizes)) == 1
        groups = {"player": tuple(range(self.players))} if alike else {f"player_{i}": (i,) for i in range(self.players)}
        self.members = groups
        self.spec = EnvSpec(
            {
                name: GroupSpec(tuple(f"player_{i}" for i in players), (stages,), Discrete(sizes[players[0]]))
                for name, players in groups.items()
            },
            state_size=stages,
        )
        self.stage = torch.zeros(num_envs, dtype=torch.int64)  # 0: the choice, or the only game
        self.steps = torch.zeros(num_envs, dtype=torch.int64)

    def _view(self) -> View:
        state = torch.nn.functional.one_hot(self.stage, self.spec.state_size).float()
        obs = {n: state.unsqueeze(1).expand(-1, len(p), -1).contiguous() for n, p in self.members.items()}
        legal = {n: torch.zeros(self.num_envs, len(p), 0, dtype=torch.bool) for n, p in self.members.items()}
        return View(obs, legal, state)

    def reset(self, seed: int | None = None) -> View:
        """Start every game anew; nothing here is random."""
        self.stage.zero_()
        self.steps.zero_()
        return self._view()

    def step(self, actions: Groups) -> Step:
        chosen = [actions[name][:, j] for name, players in self.members.items() for j in range(len(players))]
        for name, group in self.spec.groups.items():
            if not ((actions[name] >= 0) & (actions[name] < group.action.size)).all():
                raise ShoalError(f"actions of {name} must be 0..{group.action.size - 1}")
        reward, ended, terminated = self._play(chosen)
        successor = self._view()
        self.stage[ended] = 0
        self.steps[ended] = 0
        paid = {n: reward[:, list(players)] for n, players in self.members.items()}
        stopped = {n: terminated.unsqueeze(1).expand(-1, len(p)) for n, p in self.members.items()}
        alive = {n: torch.ones(self.num_envs, len(p), dtype=torch.bool) for n, p in self.members.items()}
        return Step(self._view(), successor, paid, stopped, alive, ended)

    def _play(self, chosen: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards `[env, player]`, ended and terminated `[env]`."""
        self.steps += 1
        if not self.rounds:
            where: Any = (slice(None), *chosen)
            reward = self.payoffs[0][where].T
            ended = self.steps >= self.max_steps
            return reward, ended, torch.zeros_like(ended)
        last = self.stage > 0
        games = self.payoffs[(self.stage - 1).clamp(min=0)]  # [env, player, a1, ...]
        where = (torch.arange(self.num_envs), slice(None), *chosen)
        reward = games[where] * last.unsqueeze(1)
        self.stage = torch.where(last, self.stage, chosen[0].clamp(max=self.stages - 1) + 1)
        return reward, last, last

    @property
    def optimal_return(self) -> float:
        """The largest *per agent* return of an episode that any joint choice reaches."""
        mean = self.payoffs.mean(1).amax()
        return float(mean) * (1 if self.rounds else self.max_steps)

    def table(self) -> Tensor:
        """Payoffs `[stage, player, a1, a2, ...]`."""
        return self.payoffs

    def joint_actions(self) -> list[tuple[int, ...]]:
        """Every joint action, in the order of the payoff tensor."""
        return list(itertools.product(*[range(n) for n in self.payoffs.shape[2:]]))

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """The payoffs of the current stage for two players (the first two choices of more), as a table."""
        from PIL import Image, ImageDraw

        stage = max(int(self.stage[index]) - self.rounds, 0)
        game = self.payoffs[stage].flatten(3)[..., 0] if self.players > 2 else self.payoffs[stage]
        rows, columns = game.shape[1:3]
        picture = Image.new("RGB", (40 + 90 * columns, 40 + 40 * rows), "white")
        draw = ImageDraw.Draw(picture)
        draw.text((4, 4), f"step {int(self.steps[index])}, stage {int(self.stage[index])}", fill="black")
        for r, c in itertools.product(range(rows), range(columns)):
            text = ", ".join(f"{value:g}" for value in game[:, r, c].tolist())
            draw.rectangle([30 + 90 * c, 30 + 40 * r, 118 + 90 * c, 68 + 40 * r], outline="#999999")
            draw.text((36 + 90 * c, 42 + 40 * r), text, fill="black")
        return np.asarray(picture)

    def state_dict(self) -> Tree:
        return {"stage": self.stage, "steps": self.steps}

    def load_state_dict(self, state: Tree) -> None:
        self.stage, self.steps = state["stage"].clone(), state["steps"].clone()

    def close(self) -> None:
        pass


def common(payoffs: Sequence[Any] | NDArray[Any]) -> NDArray[np.float32]:
    """`[a1, a2, ...]` paid to every player, as `[player, a1, a2, ...]`."""
    array = np.asarray(payoffs, np.float32)
    return np.repeat(array[None], array.ndim, 0)


def _custom(payoffs: str | Sequence[Any] | NDArray[Any] | None) -> NDArray[np.float32]:
    """Checked payoffs `[player, a1, a2, ...]`."""
    if payoffs is None:
        raise ShoalError("matrix/custom needs payoffs: [[11, -30], [0, 7]] (common), or one such table for each player")
    try:
        array = np.asarray(json.loads(payoffs) if isinstance(payoffs, str) else payoffs, np.float32)
    except ValueError as error:
        raise ShoalError(f"payoffs are no table of numbers: {error}") from error
    if array.ndim > 2 and array.shape[0] == array.ndim - 1:
        return array
    if array.ndim < 2 or not np.isfinite(array).all():
        raise ShoalError(f"payoffs must be finite, [a1, a2, ...] or [player, a1, a2, ...], not of shape {array.shape}")
    return common(array)


def climbing(num_envs: int, *, max_steps: int = 25) -> MatrixGame:
    return MatrixGame(num_envs, common(COMMON["climbing"])[None], max_steps)


def penalty(num_envs: int, *, k: float = -100.0, max_steps: int = 25) -> MatrixGame:
    return MatrixGame(num_envs, common([[k, 0, 10], [0, 2, 0], [10, 0, k]])[None], max_steps)


def nonmonotonic(num_envs: int, *, max_steps: int = 1) -> MatrixGame:
    return MatrixGame(num_envs, common(COMMON["nonmonotonic"])[None], max_steps)


def two_step(num_envs: int) -> MatrixGame:
    return MatrixGame(num_envs, np.stack([common(game) for game in TWO_STEP]), 2)


def prisoners(num_envs: int, *, max_steps: int = 25) -> MatrixGame:
    return MatrixGame(num_envs, np.asarray([OWN["prisoners"]], np.float32), max_steps)


def matching_pennies(num_envs: int, *, max_steps: int = 25) -> MatrixGame:
    return MatrixGame(num_envs, np.asarray([OWN["matching_pennies"]], np.float32), max_steps)


def rock_paper_scissors(num_envs: int, *, max_steps: int = 25) -> MatrixGame:
    return MatrixGame(num_envs, np.asarray([OWN["rock_paper_scissors"]], np.float32), max_steps)


def stag_hunt(num_envs: int, *, max_steps: int = 25) -> MatrixGame:
    return MatrixGame(num_envs, np.asarray([OWN["stag_hunt"]], np.float32), max_steps)


def custom(num_envs: int, *, payoffs: str = "", max_steps: int = 25) -> MatrixGame:
    return MatrixGame(num_envs, _custom(payoffs if len(payoffs) else None)[None], max_steps)


GAMES = {
    function.__name__: function
    for function in (
        climbing,
        penalty,
        nonmonotonic,
        two_step,
        prisoners,
        matching_pennies,
        rock_paper_scissors,
        stag_hunt,
        custom,
    )
}


def names() -> list[str]:
    """The suite's games."""
    return list(GAMES)


def make(name: str, num_envs: int, **arguments: Any) -> MatrixGame:
    """A batch of one game."""
    return GAMES[name](num_envs, **arguments)


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of `make`, beside name and num_envs."""
    found = dict(inspect.signature(GAMES[name]).parameters)
    del found["num_envs"]
    return found


def hints(name: str) -> dict[str, Any]:
    """Types of those arguments."""
    return get_type_hints(GAMES[name])
