"""`shoal nashconv DIR`: how far a trained run is from a Nash equilibrium of its game."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from shoal import experiment
from shoal.teams.exploitability import Game, GameTree
from shoal.types import ShoalError


@dataclass(frozen=True)
class Options:
    """What all players of a trained run would gain by best responses; 0 in a Nash equilibrium."""

    directory: tyro.conf.Positional[Path]
    """Of the run, in a turn-based game of OpenSpiel."""
    checkpoint: Literal["best", "last"] = "best"
    """The evaluation's policy with the lowest NashConv, or the newest policy."""
    limit: int = 1_000_000
    """States of the game to visit at most."""
    json: bool = False
    """Print one JSON object instead of text."""


def main(arguments: list[str]) -> int:
    """Print NashConv, or with --json an object that holds it."""
    options = tyro.cli(Options, args=arguments, prog="shoal nashconv")
    run = experiment.open_run(options.directory)
    env = experiment.environment_of(run).make(1)
    if not isinstance(env, Game):
        raise ShoalError(f"{run.env} is no game of OpenSpiel: NashConv needs one, such as openspiel/kuhn_poker")
    tree = GameTree(env, options.limit)
    value = tree.nash_conv(experiment.load_policy(options.directory, options.checkpoint, env.spec))
    about = {"algorithm": run.algorithm, "env": run.env, "checkpoint": options.checkpoint}
    if options.json:
        print(json.dumps({"nash_conv": value, "information_states": len(tree.keys), **about}))
        return 0
    print(f"{run.algorithm} on {run.env}, {options.checkpoint} checkpoint, {len(tree.keys):,} information states")
    print(f"  NashConv {value:.6f}")
    return 0
