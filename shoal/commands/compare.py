"""shoal compare: statistics, tables, plots and a report over many runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from shoal.types import ShoalError


@dataclass(frozen=True)
class Compare:
    """Statistics, a table, plots and a report over many runs: grouped by environment, algorithm and settings."""

    directories: tyro.conf.Positional[tuple[Path, ...]]
    """Of runs, or folders that contain some."""
    out: Path
    """Directory for report.html, table.md, summary.json, marl_eval.json and plots/."""
    metric: str = "agent_return"
    """Unit: agent_return, team_return, or group_return.GROUP."""
    score: Literal["absolute", "peak", "last", "auto"] = "auto"
    """What counts as a run's result; auto: the absolute metric if every run has it, else the last evaluation."""
    low: str = ""
    """What becomes 0 in normalised scores: a script (random, still, greedy, ...) or a number; empty: random."""
    high: str = ""
    """What becomes 1: best (the best run here), published (the best published mean), a script or a number."""
    allow_budgets: bool = False
    """Compare runs of different length or evaluation settings, at the smallest common number of steps."""
    films: bool = False
    """Film the best run's policy of every kind, into the report too."""
    title: str = ""
    """Of the report; empty: the environments."""


def main(arguments: list[str]) -> int:
    """Entry point; the exit status."""
    options = tyro.cli(Compare, args=arguments, prog="shoal compare", config=(tyro.conf.FlagCreatePairsOff,))
    from shoal.stats import report, runs
    from shoal.stats.references import references
    from shoal.stats.summary import caption, console, rich_table, tables

    if not options.directories:
        raise ShoalError("name the directories of the runs to compare")
    score = None if options.score == "auto" else options.score
    budgets: runs.Budgets = "cut" if options.allow_budgets else "equal"
    comparison = runs.compare(runs.find(options.directories), options.metric, score, budgets)
    known = references(comparison, options.low, options.high)
    summary = report.write(comparison, options.out, known, films=options.films, title=options.title)
    print(caption(summary), *(f"note: {note}" for note in summary["notes"]), sep="\n")
    for table in tables(summary):
        print()
        console().print(rich_table(*table), highlight=False)
    print(f"\nreport: {options.out / report.REPORT}   figures: {options.out / 'plots'}")
    return 0
