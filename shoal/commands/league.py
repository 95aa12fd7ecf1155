"""`shoal league DIR`: standings and the matrix of a self-play run, as tables, as JSON and as a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich import box
from rich.table import Column, Table

from shoal import experiment
from shoal.stats.summary import console
from shoal.teams.league import League
from shoal.teams.ratings import Matrix, Standing, play, strategies, summary
from shoal.types import ShoalError

COLOURS = ("#1f4e79", "#c0504d")


@dataclass(frozen=True)
class Options:
    """Standings of a self-play run: its versions play each other; Elo ratings, and the matrix as a picture."""

    directory: tyro.conf.Positional[Path]
    """Of the run."""
    episodes: int = 100
    """Episodes a pair."""
    members: int = 11
    """Versions of each side, at most; of more, some are left out, evenly."""
    sampled: bool = False
    """Play as in training instead of greedily: right where the best strategy is a mixed one."""
    seed: int = 1_000_000
    """Of the episodes' starts."""


def main(arguments: list[str]) -> int:
    """Print standings and matrix; write league.json and league.png into the run's directory."""
    options = tyro.cli(Options, args=arguments, prog="shoal league")
    if options.episodes < 1 or options.members < 2:
        raise ShoalError(f"episodes must be 1 or more and members 2 or more, not {options.episodes}, {options.members}")
    run = experiment.open_run(options.directory)
    torch.set_num_threads(run.settings.threads)
    if run.settings.self_play == "none":
        raise ShoalError(f"{options.directory} did not learn by self-play: train with --self-play uniform, say")
    env = experiment.against(experiment.evaluation_env(experiment.environment_of(run), options.episodes), run)
    league = experiment.load_policy(options.directory, "last", env.spec)
    assert isinstance(league, League)
    matrix = play(league, env, options.members, options.episodes, options.seed, sampled=options.sampled)
    standings = matrix.standings()
    mixed = {side.name: strategies(league, side, env) for side in league.sides}
    env.close()
    how = "sampled" if options.sampled else "greedy"
    title = f"{run.algorithm} on {run.env}, {run.settings.self_play} self-play, seed {run.settings.seed}"
    out = console()
    out.print(f"{title}: {options.episodes} {how} episodes a pair\n")
    out.print(_standings_table(standings))
    out.print(_matrix_table(matrix))
    for side, shares in mixed.items():
        if shares:
            out.print(_strategy_line(side, shares))
    about: dict[str, Any] = {"algorithm": run.algorithm, "env": run.env, "episodes": options.episodes, "play": how}
    played = {side: {"by_step": shares, "average": _average(shares)} for side, shares in mixed.items() if shares}
    written = {**about, **summary(matrix, standings), "strategies": played}
    (options.directory / "league.json").write_text(json.dumps(written, indent=2) + "\n")
    picture(options.directory / "league.png", matrix, standings, f"{title}; {options.episodes} {how} episodes a pair")
    print(f"wrote {options.directory / 'league.json'} and {options.directory / 'league.png'}")
    return 0


def _average(shares: dict[int, list[float]]) -> list[float]:
    """The average strategy: as often as each version plays each action, over all versions alike."""
    return [round(float(x), 4) for x in np.mean(list(shares.values()), 0)]


def _strategy_line(side: str, shares: dict[int, list[float]]) -> str:
    newest = shares[max(shares)]
    average, last = (" ".join(f"{x:.3f}" for x in row) for row in (_average(shares), newest))
    return f"{side} plays its actions at first: on average over {len(shares)} versions {average}, the newest {last}"


def short(step: int) -> str:
    """150000 -> 150k."""
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if step >= size:
            return f"{step / size:.3g}{unit}"
    return str(step)


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 9.95 else 1
    return f"{round(value, digits) + 0.0:.{digits}f}"  # never -0.0


def _standings_table(standings: list[Standing]) -> Table:
    table = Table("side", "step", "Elo", "95 %", "mean return", title="standings", box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for s in standings:
        table.add_row(s.side, f"{s.step:,}", f"{s.elo:.0f}", f"[{s.low:.0f}, {s.high:.0f}]", f"{s.mean_return:.2f}")
    return table


def _matrix_table(matrix: Matrix) -> Table:
    rows, columns = matrix.sides
    title = f"mean return per agent of {rows} (rows) against {columns} (columns), by steps of training"
    table = Table(Column("", no_wrap=True), title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for step in matrix.steps[1]:
        table.add_column(short(step), justify="right", no_wrap=True)
    for step, values in zip(matrix.steps[0], matrix.returns()[0], strict=True):
        table.add_row(short(step), *map(_number, values))
    return table


def picture(path: Path, matrix: Matrix, standings: list[Standing], title: str) -> None:
    """The matrix as a heat map, and Elo against steps of training with 95 % bands."""
    from matplotlib.figure import Figure

    values = matrix.returns()[0]
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    low, high = values.min(), values.max()
    if matrix.comparable:  # zero says that nobody is the better one
        low, high = -np.abs(values).max(), np.abs(values).max()
    image = left.imshow(
        values, cmap="RdBu" if matrix.comparable else "YlGnBu", vmin=low, vmax=high or 1.0, aspect="auto"
    )
    size = 9 if max(values.shape) <= 12 else 6
    for (i, j), value in np.ndenumerate(values):
        red, green, blue, _ = image.to_rgba(value)
        colour = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        left.text(j, i, _number(value), ha="center", va="center", color=colour, fontsize=size)
    for axis, side, steps in ((left.yaxis, matrix.sides[0], matrix.steps[0]), (left.xaxis, *_columns(matrix))):
        axis.set_ticks(range(len(steps)), [short(step) for step in steps])
        axis.set_label_text(f"{side} after so many steps")
    left.set_title(f"mean return per agent of {matrix.sides[0]} (rows)", fontsize=10)
    figure.colorbar(image, ax=left, fraction=0.04)
    for side, colour in zip(dict.fromkeys(matrix.sides), COLOURS, strict=False):
        mine = sorted((s for s in standings if s.side == side), key=lambda s: s.step)
        steps = [s.step for s in mine]
        right.plot(steps, [s.elo for s in mine], color=colour, marker="o", markersize=4, label=side)
        right.fill_between(steps, [s.low for s in mine], [s.high for s in mine], color=colour, alpha=0.2, linewidth=0)
    right.set_xlabel("environment steps")
    right.set_title("Elo, with 95 % intervals over episodes", fontsize=10)
    right.xaxis.set_major_formatter(lambda step, _: short(int(step)))
    right.grid(alpha=0.3)
    right.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, loc="lower right")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)


def _columns(matrix: Matrix) -> tuple[str, list[int]]:
    return matrix.sides[1], matrix.steps[1]
