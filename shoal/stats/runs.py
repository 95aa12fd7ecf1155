"""Runs read from their directories, sorted into what may be compared with what."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shoal import config, registry
from shoal.evaluate import UNITS
from shoal.log import read_absolute, read_evaluations
from shoal.stats.aggregate import Array, Curve
from shoal.types import ShoalError, nearest

UNIMPORTANT = {
    "seed",
    "out",
    "opponents",
    "tensorboard",
    "wandb",
    "log_every",
    "worker_timeout",
}  # no settings of the algorithm
EVALUATION = ("eval_every", "eval_episodes", "eval_sampled", "absolute_episodes")
OVERSHOOT = 1.02  # an evaluation comes at the end of a rollout, a little after the step it was asked for
Score = Literal["absolute", "peak", "last"]
Budgets = Literal["equal", "cut", "own"]
SCORES: dict[str, str] = {
    "absolute": "the best checkpoint's policy over other starts, at the end of the run",
    "peak": "the evaluation at which the mean over the runs is highest",
    "last": "the last evaluation",
}


@dataclass(frozen=True)
class RunResult:
    """One run: what it was, and what it reached."""

    directory: Path
    algorithm: str
    env: str
    env_args: dict[str, Any]
    settings: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, str]
    evaluations: list[dict[str, Any]]
    absolute: dict[str, Any]

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def task(self) -> str:
        """Environment, its arguments and the opponents: returns of different tasks are never in one mean."""
        extra = [f"{key}={_text(value)}" for key, value in sorted(self.env_args.items())]
        here = f"={Path.cwd()}/"  # directories are kept with their whole path
        extra += [f"against {opponent.replace(here, '=')}" for opponent in self.settings.get("opponents", ())]
        return self.env + (f" ({', '.join(extra)})" if extra else "")

    @property
    def steps(self) -> int:
        """Environment steps at its last evaluation."""
        return int(self.evaluations[-1]["env_steps"])

    def option(self, name: str) -> int:
        """A setting of the evaluation, derived ones worked out."""
        value = int(self.settings.get(name, 0))
        return value or (max(self.settings["total_steps"] // 20, 1) if name == "eval_every" else 0)

    def choices(self) -> dict[str, Any]:
        """All settings that make it what it is, nested ones as `outer.inner`."""
        settings = {k: v for k, v in self.settings.items() if k not in UNIMPORTANT and k not in EVALUATION}
        return {**flat(settings), **flat(self.config)}

    def value(self, record: dict[str, Any], metric: str) -> float:
        """The mean return of an evaluation in the unit `metric`."""
        return float(_at(record, metric, self.directory)["mean"])

    def samples(self, record: dict[str, Any], metric: str) -> list[float]:
        """The episodes' returns of an evaluation; its mean alone where an older shoal did not keep them."""
        if "samples" not in record:
            return [self.value(record, metric)]
        return list(_at(record["samples"], metric, self.directory))


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _at(record: dict[str, Any], metric: str, directory: Path) -> Any:
    unit, _, group = metric.partition(".")
    if unit not in ("agent_return", "team_return", "group_return") or bool(group) != (unit == "group_return"):
        raise ShoalError(f"a metric is agent_return, team_return or group_return.GROUP, not {metric!r}")
    value = record[unit]
    if not group:
        return value
    if group not in value:
        raise ShoalError(f"{directory} has no group {group!r}; {nearest(group, value)}")
    return value[group]


def unit(metric: str) -> str:
    """In words."""
    name, _, group = metric.partition(".")
    return UNITS[name].replace("the group's agents", f"the agents of {group}")


def load(directory: Path) -> RunResult:
    """A run directory."""
    data = config.read(directory)
    preset = registry.algorithms().get(data["algorithm"])
    return RunResult(
        directory=directory,
        algorithm=data["algorithm"],
        env=data["env"],
        env_args=data["env_args"],
        settings=_complete(config.Settings(), data["settings"]),
        config=_complete(preset.config, data["config"]) if preset else data["config"],
        versions=data["versions"],
        evaluations=read_evaluations(directory),
        absolute=read_absolute(directory),
    )


def _complete(defaults: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them. One that an older shoal did not know was what its default leaves as it was."""
    known = json.loads(json.dumps(dataclasses.asdict(defaults)))
    return {k: {**known.get(k, {}), **v} if isinstance(v, dict) else v for k, v in (known | given).items()}


def find(places: Iterable[Path]) -> list[RunResult]:
    """The runs that these directories are or contain.

    Raises:
        ShoalError: a place does not exist or holds no run.
    """
    found: dict[Path, RunResult] = {}
    for place in places:
        if not place.is_dir():
            raise ShoalError(f"there is no directory {place}")
        inside = [place / config.FILE] if (place / config.FILE).is_file() else sorted(place.rglob(config.FILE))
        for path in inside:
            found[path.parent.resolve()] = load(path.parent)
        if not inside:
            raise ShoalError(f"{place} holds no run: no directory in it has a {config.FILE}")
    return list(found.values())


@dataclass(frozen=True)
class Comparison:
    """Runs by task and by label (the algorithm, and its settings where they differ), in one unit."""

    metric: str
    score: Score
    tasks: dict[str, dict[str, list[RunResult]]]
    cut: dict[str, int] = field(default_factory=dict)
    """Environment steps up to which a task is compared, where budgets differ; absent: all."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know."""

    @property
    def labels(self) -> list[str]:
        """Of all tasks, each once."""
        return list(dict.fromkeys(label for groups in self.tasks.values() for label in groups))

    @property
    def everywhere(self) -> list[str]:
        """Labels that have runs in every task."""
        return [label for label in self.labels if all(label in groups for groups in self.tasks.values())]

    def evaluations(self, run: RunResult) -> list[dict[str, Any]]:
        """A run's, within the common budget."""
        limit = self.cut.get(run.task)
        return [e for e in run.evaluations if limit is None or e["env_steps"] <= OVERSHOOT * limit]

    def curve(self, run: RunResult, x: str) -> Curve:
        """Returns against `env_steps` or `seconds`."""
        kept = self.evaluations(run)
        return [float(e[x]) for e in kept], [run.value(e, self.metric) for e in kept]

    def scores(self, task: str, label: str) -> Array:
        """One number a run, `[run]`."""
        runs = self.tasks[task][label]
        if self.score == "absolute":
            return np.array([run.value(run.absolute, self.metric) for run in runs])
        if self.score == "last":
            return np.array([run.value(self.evaluations(run)[-1], self.metric) for run in runs])
        kept = [self.evaluations(run) for run in runs]
        steps = [int(e["env_steps"]) for e in min(kept, key=len)]
        rows = [[_at_step(evaluations, step) for step in steps] for evaluations in kept]
        shared = [column for column in zip(*rows, strict=True) if None not in column]
        if not shared:
            raise ShoalError(f"{task}: the runs of {label} were never evaluated at the same step, so have no peak")
        values = np.array(
            [[run.value(e, self.metric) for e in row] for run, row in zip(runs, zip(*shared, strict=True), strict=True)]
        )
        return np.asarray(values[:, values.mean(0).argmax()])


def _at_step(evaluations: list[dict[str, Any]], step: int) -> dict[str, Any] | None:
    """The evaluation at `step`, or closest to it: rollouts end at slightly different steps."""
    nearby = min(evaluations, key=lambda e: abs(e["env_steps"] - step))
    low, high = sorted((nearby["env_steps"], step))
    return nearby if high <= OVERSHOOT * low else None


def _common_budget(task: str, runs: list[RunResult]) -> int:
    """The last step, within the smallest budget, at which all runs were evaluated."""
    most = min(_budget(run) for run in runs)
    asked = {int(e["env_steps"]) for run in runs for e in run.evaluations if e["env_steps"] <= OVERSHOOT * most}
    for step in sorted(asked, reverse=True):
        if all(_at_step(run.evaluations, step) for run in runs):
            return step
    raise ShoalError(f"{task}: no step up to {most:,}, the smallest budget, is one at which all runs were evaluated")


def compare(
    runs: list[RunResult], metric: str = "agent_return", score: Score | None = None, budgets: Budgets = "equal"
) -> Comparison:
    """Sort runs into tasks and groups, refusing what must not be put side by side without saying so.

    Args:
        runs: at least one; those without an evaluation are left out, which a note says.
        metric: `agent_return`, `team_return` or `group_return.GROUP`.
        score: what counts as a run's result; None: `absolute` if every run has it, else `last`.
        budgets: where training steps or evaluation settings differ within a task: refuse (`equal`), compare at the
            smallest common budget (`cut`), or let everyone have its own (`own`).

    Raises:
        ShoalError: the unit is not that of every run, budgets differ, or one run is there twice.
    """
    notes = [f"left out, since it has no evaluation: {run.directory}" for run in runs if not run.evaluations]
    runs = [run for run in runs if run.evaluations]
    if not runs:
        raise ShoalError("none of these runs has an evaluation yet")
    tasks: dict[str, dict[str, list[RunResult]]] = {}
    for task, members in _grouped(runs, lambda run: run.task).items():
        tasks[task] = labelled(members)
    for groups in tasks.values():
        for label, members in groups.items():
            _refuse_twins(label, members)
    differences = [text for task, groups in tasks.items() for text in _differences(task, groups)]
    if differences and budgets == "equal":
        lines = "\n".join(f"  - {text}" for text in differences)
        raise ShoalError(
            f"these runs had different budgets:\n{lines}\nCompare at the smallest common one: --allow-budgets"
        )
    notes += differences
    cut = {}
    if differences and budgets == "cut":
        cut = {task: _common_budget(task, _all(groups)) for task, groups in tasks.items()}
        notes += [f"{task}: compared up to {steps:,} environment steps" for task, steps in cut.items()]
    every = [run for groups in tasks.values() for run in _all(groups)]
    for run in every:
        run.value(run.evaluations[-1], metric)
    missing = [run for run in every if not run.absolute]
    if score == "absolute" and (missing or cut):
        why = f"{missing[0].directory} has none" if missing else "it belongs to the whole of a run, not to a part"
        raise ShoalError(f"the absolute metric cannot be used: {why} (train with --absolute-episodes N)")
    chosen: Score = score or ("last" if missing or cut else "absolute")
    return Comparison(metric, chosen, tasks, cut, notes)


def _all(groups: dict[str, list[RunResult]]) -> list[RunResult]:
    return [run for members in groups.values() for run in members]


def _grouped(runs: Iterable[RunResult], key: Any) -> dict[str, list[RunResult]]:
    found: dict[str, list[RunResult]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found


def labelled(runs: list[RunResult]) -> dict[str, list[RunResult]]:
    """A task's runs by algorithm; where an algorithm ran with different settings, these are named."""
    groups: dict[str, list[RunResult]] = {}
    for algorithm, members in _grouped(runs, lambda run: run.algorithm).items():
        variants = _grouped(members, lambda run: json.dumps(run.choices(), sort_keys=True))
        names = differing([variant[0].choices() for variant in variants.values()])
        for variant in variants.values():
            choices = variant[0].choices()
            settings = ", ".join(f"{name} {_text(choices.get(name, 'absent'))}" for name in names)
            label = algorithm.rpartition(":")[2] + (f" ({settings})" if settings else "")
            groups[label] = sorted(variant, key=lambda run: run.seed)
    return groups


def differing(choices: list[dict[str, Any]]) -> list[str]:
    """Names of settings that are not the same in all."""
    names = dict.fromkeys(itertools.chain.from_iterable(choices))
    return [name for name in names if any(c.get(name) != choices[0].get(name) for c in choices)]


def _refuse_twins(label: str, runs: list[RunResult]) -> None:
    for one, two in itertools.pairwise(runs):
        if one.seed == two.seed:
            raise ShoalError(
                f"{one.directory} and {two.directory} are the same run twice ({label}, seed {one.seed}); name one"
            )


def _budget(run: RunResult) -> int:
    return min(int(run.settings["total_steps"]), run.steps)


def _differences(task: str, groups: dict[str, list[RunResult]]) -> list[str]:
    """What differs between the groups of a task, in words."""
    found = [
        f"{task}: {run.directory} has {run.steps:,} of its {run.settings['total_steps']:,} steps"
        for run in _all(groups)
        if run.steps < run.settings["total_steps"]
    ]
    for name in ("total_steps", *EVALUATION):
        values: dict[int, list[str]] = {}
        for label, members in groups.items():
            for run in members:
                values.setdefault(run.option(name), []).append(label)
        if len(values) > 1:
            parts = [f"{value:,} ({', '.join(dict.fromkeys(labels))})" for value, labels in sorted(values.items())]
            found.append(f"{task}: {name} is " + " and ".join(parts))
    return found
