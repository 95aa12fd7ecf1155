"""Who does how well against whom: every run's one side against every run's other side.

MADDPG's paper compares algorithms in competitive games this way (Lowe et al. 2017, section 5): returns in self-play say
little, since a strong opponent lowers them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.evaluate import Evaluation, evaluate
from shoal.teams.team import by_agent, seat
from shoal.types import Policy, VecEnv


@dataclass(frozen=True)
class CrossPlay:
    """Mean returns of both sides, for every pair of labels (algorithms, say, each with several seeds)."""

    sides: tuple[str, str]
    """The groups, or agents, that play: of the rows, of the columns."""
    labels: list[str]
    returns: dict[tuple[str, str], NDArray[np.float64]]
    """(row label, column label) -> `[row seed, column seed, side]`: mean over a group's agents, and over episodes."""

    def cell(self, row: str, column: str, side: int = 0) -> dict[str, Any]:
        """Mean over all pairs of seeds, with a 95 % bootstrap interval that resamples the seeds of either side."""
        values = self.returns[row, column][..., side]
        random = np.random.default_rng(0)
        rows, columns = (random.integers(n, size=(2000, n)) for n in values.shape)
        means = values[rows[:, :, None], columns[:, None, :]].mean((1, 2))
        low, high = np.quantile(means, [0.025, 0.975])
        return {"mean": float(values.mean()), "ci95": [float(low), float(high)], "pairs": int(values.size)}

    def table(self, side: int = 0) -> str:
        """A Markdown table of one side's mean returns."""
        lines = [
            f"mean return per agent of {self.sides[side]}; rows: {self.sides[0]}, columns: {self.sides[1]}",
            "",
            "| | " + " | ".join(self.labels) + " |",
            "|---|" + "---|" * len(self.labels),
        ]
        for row in self.labels:
            cells = [self.cell(row, column, side) for column in self.labels]
            texts = [  # of one pair of runs there is no interval
                f"{c['mean']:.2f}" + (f" [{c['ci95'][0]:.2f}, {c['ci95'][1]:.2f}]" if c["pairs"] > 1 else "")
                for c in cells
            ]
            lines.append(f"| {row} | " + " | ".join(texts) + " |")
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """Everything as plain numbers, ready for JSON."""
        cells = [
            {"row": r, "column": c, **{side: self.cell(r, c, k) for k, side in enumerate(self.sides)}}
            for r, c in itertools.product(self.labels, self.labels)
        ]
        unit = "mean over the group's agents of the undiscounted episode reward"
        return {"rows": self.sides[0], "columns": self.sides[1], "unit": unit, "cells": cells}


def all_pairs(
    rows: Sequence[Policy],
    columns: Sequence[Policy],
    join: Callable[[Policy, Policy], Policy],
    env: VecEnv,
    episodes: int,
    seed: int,
    sampled: bool = False,
) -> list[list[Evaluation]]:
    """Every row against every column, from the same starts; `join(row, column)` is the policy that plays both."""
    return [[evaluate(join(r, c), env, episodes, seed, sampled=sampled) for c in columns] for r in rows]


def cross_play(
    players: dict[str, list[Policy]], env: VecEnv, sides: tuple[str, str], episodes: int, seed: int
) -> CrossPlay:
    """Play every policy's first side against every policy's second side.

    Args:
        players: policies by label, one a seed; each can play both sides.
        env: in which the two sides are everybody; every pair plays the same starts.
        sides: of the rows and of the columns, each a group or an agent.
        episodes: greedy episodes a pair.
    """
    members = [list(by_agent(env.spec, {side: side})) for side in sides]

    def join(one: Policy, other: Policy) -> Policy:
        return seat(env.spec, by_agent(env.spec, dict(zip(sides, (one, other), strict=True))))

    def paid(result: Evaluation) -> list[float]:
        return [float(np.mean([result.return_of(agent) for agent in agents])) for agents in members]

    returns = {}
    for row, column in itertools.product(players, players):
        pairs = all_pairs(players[row], players[column], join, env, episodes, seed)
        returns[row, column] = np.array([[paid(result) for result in line] for line in pairs])
    return CrossPlay(sides, list(players), returns)
