"""How strong the members of a league are: everybody against everybody, and Elo ratings from who won.

Bradley and Terry's model says that i beats j with probability g_i / (g_i + g_j); Elo is 400 log10 g, shifted so that
the mean of all members is 1000. A drawn episode is half won by either, and each member has one drawn episode against a
member of strength 1 beside those it played, without which one that never loses would be infinitely strong. The
likelihood then has one maximum (Hunter 2004, Annals of Statistics 32(1)). It is found by Newton's steps on log g:
Hunter's own iteration took a hundred times as long between two pools, whose members do not meet their own side.
Intervals resample the episodes of every pair.

Who won? Players of one group compare their returns. Returns of unlike groups have no common scale: there the side wins
whose return ranks higher among all the episodes of that side in the matrix. Where one side's gain is the other's loss
that is: whose return is above its side's median. So the members of both sides are rated on one scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal import tree
from shoal.teams.crossplay import all_pairs
from shoal.teams.league import ALL_ENVS, League, Lineup, Member, Side, outcome, ranks
from shoal.types import Algorithm, Discrete, Policy, ShoalError, VecEnv, View

Array = NDArray[np.float64]
RESAMPLES = 500
DRAWS = 4096
"""Actions drawn of each version to see its strategy: a share's standard error is 0.008 at most."""


def bradley_terry(won: Array, tolerance: float = 1e-6) -> Array:
    """Logarithms of strengths `[..., member]` from `won[..., i, j]`: episodes i won against j, drawn ones half each."""
    played = won + won.swapaxes(-1, -2)
    strength: Array = np.zeros(won.shape[:-1])
    diagonal = np.arange(strength.shape[-1])
    for _ in range(100):
        chance = _logistic(strength[..., :, None] - strength[..., None, :])
        prior = _logistic(strength)
        gradient = (won - played * chance).sum(-1) + 0.5 - prior
        curvature = played * chance * (1 - chance)
        hessian = -curvature
        hessian[..., diagonal, diagonal] += curvature.sum(-1) + prior * (1 - prior)
        change = np.linalg.solve(hessian, gradient[..., None])[..., 0].clip(-1, 1)
        strength += change
        if np.abs(change).max() < tolerance:
            break
    return strength


def _logistic(x: Array) -> Array:
    chance: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return chance


def elo(won: Array) -> Array:
    """Ratings `[..., member]`, with mean 1000."""
    rating = 400 / np.log(10) * bradley_terry(won)
    shifted: Array = rating - rating.mean(-1, keepdims=True) + 1000
    return shifted


@dataclass(frozen=True)
class Standing:
    """One member of a league."""

    side: str
    step: int
    """Environment steps after which it was kept."""
    elo: float
    low: float
    high: float
    """Of the 95 % interval."""
    mean_return: float
    """Per agent, over all opponents."""


@dataclass(frozen=True)
class Matrix:
    """Scores of every row member against every column member."""

    sides: tuple[str, str]
    """Of the rows and of the columns; one side plays both where its seats are alike."""
    steps: tuple[list[int], list[int]]
    scores: Array
    """`[row, column, episode, seat]`: returns per agent; the row plays the first seat and the column the others."""
    comparable: bool
    """Seats are of one group."""

    @property
    def one_pool(self) -> bool:
        return self.sides[0] == self.sides[1]

    def returns(self) -> tuple[Array, Array]:
        """Mean returns `[row, column]` of the rows, and of the columns; of one pool, with the seats changed too."""
        rows, columns = self.scores[..., 0].mean(2), self.scores[..., 1:].mean((2, 3))
        if self.one_pool:
            rows, columns = (rows + columns.T) / 2, (columns + rows.T) / 2
        return rows, columns

    def outcomes(self) -> Array:
        """1 where the row won, 0 where it lost, 0.5 where nobody did: `[row, column, episode]` (more seats: means)."""
        scores = torch.from_numpy(self.scores)
        if not self.comparable:
            flat = [seat.flatten().contiguous() for seat in scores.unbind(-1)]
            scores = torch.stack([ranks(x, x) for x in flat], -1).unflatten(0, self.scores.shape[:3])
        won: Array = outcome(scores[..., :1], scores[..., 1:]).mean(-1).numpy()
        return won

    def standings(self) -> list[Standing]:
        """Every member, the strongest first."""
        outcomes, random = self.outcomes(), np.random.default_rng(0)
        rating = elo(self._won(outcomes.sum(2)))
        draws = random.integers(outcomes.shape[2], size=(RESAMPLES, *outcomes.shape))
        resampled = np.stack([np.take_along_axis(outcomes, draw, 2).sum(2) for draw in draws])
        low, high = np.quantile(elo(self._won(resampled)), [0.025, 0.975], axis=0)
        rows, columns = self.returns()
        earned = rows.mean(1) if self.one_pool else np.concatenate([rows.mean(1), columns.mean(0)])
        both = [(side, step) for side, steps in zip(self.sides, self.steps, strict=True) for step in steps]
        members = dict.fromkeys(both)  # one pool's only once
        found = [
            Standing(*member, *map(float, numbers))
            for member, *numbers in zip(members, rating, low, high, earned, strict=True)
        ]
        return sorted(found, key=lambda standing: -standing.elo)

    def _won(self, won: Array) -> Array:
        """From the rows' wins `[..., row, column]` to everybody's, `[..., member, member]`."""
        episodes, (rows, columns) = self.scores.shape[2], won.shape[-2:]
        if self.one_pool:
            both_seats: Array = won + (episodes - won.swapaxes(-1, -2))
            both_seats[..., np.arange(rows), np.arange(rows)] = 0  # against oneself
            return both_seats
        all_won = np.zeros((*won.shape[:-2], rows + columns, rows + columns))
        all_won[..., :rows, rows:] = won
        all_won[..., rows:, :rows] = episodes - won.swapaxes(-1, -2)
        return all_won


def spread(members: list[Member], count: int) -> list[Member]:
    """`count` of them or fewer, evenly, with the first and the last."""
    where = np.linspace(0, len(members) - 1, min(count, len(members))).round().astype(int)
    return [members[k] for k in where]


def play(league: League, env: VecEnv, members: int, episodes: int, seed: int, *, sampled: bool) -> Matrix:
    """Everybody against everybody.

    Args:
        league: of one side, or two.
        env: to play in, with the league's spec.
        members: of each side at most; more are thinned out evenly.
        episodes: a pair, from the same starts for all.
        seed: of the starts.
        sampled: play as in training instead of greedily.

    Raises:
        ShoalError: the league has more than two sides.
    """
    if len(league.sides) > 2:
        raise ShoalError(f"a table of pairs needs two sides, and there are {len(league.sides)}")
    first, second = league.sides[0], league.sides[-1]
    seats = [seat for _, seat in league.seats]
    chosen = [spread(league.versions(side), members) for side in (first, second)]
    rows = [league.revive(first, m, k) for k, m in enumerate(chosen[0])]
    columns = [league.revive(second, m, k + len(rows)) for k, m in enumerate(chosen[1])]

    def join(row: Policy, column: Policy) -> Policy:
        others = [(seat, ALL_ENVS) for seat in seats[1:]]
        return Lineup(league.spec, [first.play(row, [(seats[0], ALL_ENVS)]), second.play(column, others)])

    pairs = all_pairs(rows, columns, join, env, episodes, seed, sampled=sampled)
    scores = [
        [[seat.score({g: torch.from_numpy(x) for g, x in result.returns.items()}) for seat in seats] for result in line]
        for line in pairs
    ]
    stacked = torch.stack([torch.stack([torch.stack(cell, -1) for cell in line]) for line in scores]).numpy()
    steps = [m.step for m in chosen[0]], [m.step for m in chosen[1]]
    return Matrix((first.name, second.name), steps, stacked, league.alike)


def strategies(league: League, side: Side, env: VecEnv) -> dict[int, list[float]]:
    """How often each version of `side` plays each action at first, by its step, as it plays in training.

    Empty where that is no question: a side of several agents, actions that are numbers, starts that differ.
    """
    groups = side.learner.spec.groups
    ((name, group),) = list(groups.items())[:1]
    view = env.reset(0)
    theirs, agents = side.seats[0].groups[name]
    obs, legal = view.obs[theirs][:, agents], view.legal[theirs][:, agents]
    if side.learner.spec.num_agents > 1 or not isinstance(group.action, Discrete) or not (obs == obs[:1]).all():
        return {}
    state = view.state[:, : side.learner.spec.state_size]
    start = View({name: obs[:1]}, {name: legal[:1]}, state[:1])
    shown = tree.map(lambda x: x.expand(DRAWS, *x.shape[1:]), start)
    return {
        member.step: _shares(league.revive(side, member, k), shown, name, group.action.size)
        for k, member in enumerate(league.versions(side))
    }


def _shares(policy: Algorithm, shown: View, group: str, size: int) -> list[float]:
    chosen, _ = policy.act(shown, policy.initial_memory(DRAWS), explore=True)
    return _counts(chosen[group], size)


def _counts(chosen: Tensor, size: int) -> list[float]:
    return (torch.bincount(chosen.flatten(), minlength=size) / chosen.numel()).tolist()


def summary(matrix: Matrix, standings: list[Standing]) -> dict[str, Any]:
    """Everything as plain numbers, ready for JSON."""
    rows, columns = matrix.returns()
    return {
        "standings": [vars(standing) for standing in standings],
        "rows": {"side": matrix.sides[0], "steps": matrix.steps[0]},
        "columns": {"side": matrix.sides[1], "steps": matrix.steps[1]},
        "return_of_rows": rows.tolist(),
        "return_of_columns": columns.tolist(),
        "won_by_rows": matrix.outcomes().mean(2).tolist(),
        "unit": "mean over the side's agents of the undiscounted episode reward",
    }
