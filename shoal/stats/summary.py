"""A comparison in numbers: per task, over all tasks, each against each; as JSON, as a table, and for marl-eval."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from shoal.stats import aggregate
from shoal.stats.aggregate import STATISTICS, Array, bootstrap, improvement_interval, probability_of_improvement
from shoal.stats.references import Reference
from shoal.stats.runs import SCORES, Comparison, unit


def summarise(comparison: Comparison, references: dict[str, Reference]) -> dict[str, Any]:
    """Everything as plain numbers, ready for JSON."""
    return {
        "metric": comparison.metric,
        "unit": unit(comparison.metric),
        "score": comparison.score,
        "score_is": SCORES[comparison.score],
        "notes": comparison.notes,
        "tasks": {
            t: {label: group(comparison, t, label) for label in groups} for t, groups in comparison.tasks.items()
        },
        "references": {task: reference.words for task, reference in references.items()},
        "normalised": _normalised(comparison, references),
        "improvement": _improvement(comparison),
    }


def figures(scores: list[Array], names: tuple[str, ...] = ("iqm", "median", "mean")) -> dict[str, Any]:
    """Statistics with 95 % intervals; of a single run there is no interval."""
    found: dict[str, Any] = {}
    for name in names:
        found[name] = {"value": float(STATISTICS[name](scores))}
        if all(len(task) > 1 for task in scores):
            low, high = bootstrap(scores, STATISTICS[name])
            found[name]["ci95"] = [float(low), float(high)]
    return found


def group(comparison: Comparison, task: str, label: str) -> dict[str, Any]:
    """What there is to say about one label's runs of a task."""
    runs, scores = comparison.tasks[task][label], comparison.scores(task, label)
    ends = [comparison.evaluations(run)[-1] for run in runs]
    return {
        "algorithm": runs[0].algorithm,
        "runs": len(runs),
        "seeds": [run.seed for run in runs],
        "scores": [float(score) for score in scores],
        "std": float(scores.std(ddof=1)) if len(runs) > 1 else 0.0,
        **figures([scores]),
        "env_steps": int(np.median([e["env_steps"] for e in ends])),
        "seconds": float(np.median([e["seconds"] for e in ends])),
        "directories": [str(run.directory) for run in runs],
    }


def normalised(comparison: Comparison, references: dict[str, Reference], label: str) -> list[Array]:
    """A label's scores in units of the references, an array a task."""
    return [
        aggregate.normalise(comparison.scores(task, label), references[task].low, references[task].high)
        for task in comparison.tasks
    ]


def _normalised(comparison: Comparison, references: dict[str, Reference]) -> dict[str, Any]:
    """Over all tasks, of those labels that ran in all of them."""
    if not references:
        return {}
    names = ("iqm", "median", "mean", "optimality_gap")
    return {label: figures(normalised(comparison, references, label), names) for label in comparison.everywhere}


def _improvement(comparison: Comparison) -> dict[str, Any]:
    """Probability that a run of one label is better than one of another, over the tasks that both have."""
    found: dict[str, Any] = {}
    for one in comparison.labels:
        for other in comparison.labels:
            shared = [task for task, groups in comparison.tasks.items() if one in groups and other in groups]
            if one == other or not shared:
                continue
            x, y = ([comparison.scores(task, label) for task in shared] for label in (one, other))
            cell: dict[str, Any] = {"value": probability_of_improvement(x, y), "tasks": len(shared)}
            if all(len(scores) > 1 for scores in (*x, *y)):
                cell["ci95"] = list(improvement_interval(x, y))
            found.setdefault(one, {})[other] = cell
    return found


def text(cell: dict[str, Any], digits: int = 2) -> str:
    """A value and its interval."""
    value, interval = f"{cell['value']:.{digits}f}", cell.get("ci95")
    return f"{value} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else value


Titled = tuple[str, tuple[str, ...], list[list[str]]]
HEADER = ("", "runs", "IQM [95 %]", "mean [95 %]", "median", "std", "steps")


def rows(groups: dict[str, Any]) -> list[list[str]]:
    """A task's table: one row a label. Nothing in it depends on how fast the machine was."""
    return [
        [
            label,
            str(group["runs"]),
            text(group["iqm"]),
            text(group["mean"]),
            f"{group['median']['value']:.2f}",
            f"{group['std']:.2f}" if group["runs"] > 1 else "",
            f"{group['env_steps']:,}",
        ]
        for label, group in groups.items()
    ]


def tables(summary: dict[str, Any]) -> list[Titled]:
    """Title, header and rows of each: the tasks, then all tasks together."""
    found: list[Titled] = [(task, HEADER, rows(groups)) for task, groups in summary["tasks"].items()]
    if summary["normalised"]:
        names = {"iqm": "IQM [95 %]", "median": "median", "mean": "mean", "optimality_gap": "optimality gap"}
        body = [[label, *(text(cell[name]) for name in names)] for label, cell in summary["normalised"].items()]
        found.append(("all tasks, normalised", ("", *names.values()), body))
    return found


def caption(summary: dict[str, Any]) -> str:
    """The unit, and what a score is."""
    return f"{summary['metric']}: {summary['unit']}; of each run {summary['score_is']} ({summary['score']})"


def markdown(summary: dict[str, Any]) -> str:
    """All tables with their unit, as Markdown."""
    lines = [caption(summary), *(f"\nNote: {note}" for note in summary["notes"])]
    for title, header, body in tables(summary):
        lines += ["", f"### {title}", "", markdown_table(header, body)]
    return "\n".join(lines) + "\n"


def markdown_table(header: tuple[str, ...], body: list[list[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body])


def rich_table(title: str, header: tuple[str, ...], body: list[list[str]]) -> Table:
    """For the terminal."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column, name in enumerate(header):
        widest = max((len(row[column]) for row in body), default=0)
        table.add_column(
            name, justify="right" if column else "left", min_width=min(widest, 24), no_wrap=column > 0, overflow="fold"
        )
    for row in body:
        table.add_row(*row)
    return table


def console() -> Console:
    """For tables; wide where nobody has a window."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def marl_eval(comparison: Comparison) -> dict[str, Any]:
    """Gorsane et al. 2022's JSON: environment, task, algorithm, run, step -> one value an episode.

    The package marl-eval wants equal numbers of runs and steps and no comma in an algorithm's name (so there is none).
    """
    metrics = list(dict.fromkeys(("agent_return", "team_return", comparison.metric)))
    found: dict[str, Any] = {}
    for task, groups in comparison.tasks.items():
        suite, _, name = task.partition("/")
        for label, runs in groups.items():
            entry = found.setdefault(suite, {}).setdefault(name or suite, {}).setdefault(label.replace(",", ";"), {})
            for run in runs:
                steps: dict[str, Any] = {
                    f"step_{k}": {
                        "step_count": e["env_steps"],
                        "elapsed_time": e["seconds"],
                        **{metric: run.samples(e, metric) for metric in metrics},
                    }
                    for k, e in enumerate(comparison.evaluations(run))
                }
                if run.absolute and task not in comparison.cut:
                    steps["absolute_metrics"] = {metric: run.samples(run.absolute, metric) for metric in metrics}
                entry[f"seed_{run.seed}"] = steps
    return found
