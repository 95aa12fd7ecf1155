"""shoal sweep: trials of other settings, in parallel, resumable; the best as a file for `shoal train --config`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from shoal import config, log, registry
from shoal.cli import parse_run
from shoal.config import slug
from shoal.jobs import INTERRUPTED, Job, Process, last_words, run_all
from shoal.locks import locked
from shoal.log import read_evaluations
from shoal.stats import runs
from shoal.sweep import Dimension, Grid, Method, Sampler, Trial, best, hopeless, read_trials, sampler
from shoal.threads import cores
from shoal.types import ShoalError

SWEEP, BEST = "sweep.json", "best.json"


@dataclass(frozen=True)
class Sweep:
    """Try other settings. Whatever is not listed here is an option of `shoal train`, the same in all trials."""

    search: tyro.conf.UseAppendAction[tuple[str, ...]]
    """NAME=log:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH, logint:LOW:HIGH or choice:A|B|C; may be given several times.
    NAME is any setting; for a grid, ranges end in :POINTS."""
    trials: int = 20
    """Trials altogether; of a grid, at most all combinations."""
    method: Method = "random"
    """How values are chosen: random, grid, or tpe (Optuna; extra: tune)."""
    jobs: int = 0
    """Trials at a time, a core each; 0: one for every core."""
    out: Path | None = None
    """Directory of the sweep; default: runs/sweep/ENV_ALGORITHM. The same one again continues."""
    metric: str = "agent_return"
    """What is made large, in the best evaluation: agent_return, team_return, or group_return.GROUP."""
    prune: bool = True
    """Stop trials that are below the median of the finished ones at the same evaluation."""
    sampling_seed: int = 0
    """Of the values that are tried."""


def main(arguments: list[str]) -> int:
    """Entry point; the exit status."""
    if len(arguments) < 2 or arguments[0].startswith("-") or arguments[1].startswith("-"):
        print("shoal sweep ALGORITHM ENV --search NAME=log:LOW:HIGH [--search ...] [--trials N] [options of both]\n")
        if "--help" in arguments or "-h" in arguments:
            tyro.cli(Sweep, args=["--help"], prog="shoal sweep ALGORITHM ENV")
        return 2
    options, rest = tyro.cli(
        Sweep, args=arguments[2:], prog=f"shoal sweep {arguments[0]} {arguments[1]}", return_unknown_args=True
    )
    return Search(arguments[0], arguments[1], options, rest).run()


class Search:
    """A sweep in a directory."""

    def __init__(self, algorithm: str, env: str, options: Sweep, rest: list[str]) -> None:
        if not options.search:
            raise ShoalError("say what to search: --search lr=log:1e-4:1e-2")
        self.algorithm, self.env, self.options = algorithm, env, options
        self.common = [*rest, "--no-tensorboard"]
        if hasattr(registry.algorithm(algorithm).config, "workers") and "--workers" not in rest:
            self.common += ["--workers", "1"]
        self.dimensions = [Dimension.parse(text) for text in options.search]
        self.out = options.out or Path("runs/sweep") / slug(f"{env}_{algorithm}")
        self.sampler: Sampler = sampler(options.method, self.dimensions, options.sampling_seed)
        self.count = options.trials
        if isinstance(self.sampler, Grid):
            self.count = min(self.count, len(self.sampler.all))
        self.trials: dict[int, Trial] = {}
        self.pruned: set[int] = set()
        self._check()

    def _check(self) -> None:
        """Every end of every range, and every choice, must be settings that `shoal train` takes."""
        for dimension in self.dimensions:
            values = dimension.choices or (dimension.at(0.0), dimension.at(1.0))
            for value in values:
                others = {d.name: d.at(0.0) for d in self.dimensions}
                self._job(0, {**others, dimension.name: value})

    def _job(self, number: int, params: dict[str, str]) -> Job:
        chosen = list(itertools.chain.from_iterable(d.options(params[d.name]) for d in self.dimensions))
        arguments = (*self.common, *chosen)
        run = parse_run(self.algorithm, self.env, list(arguments))
        return Job(self.out / f"trial_{number:04}", self.algorithm, self.env, arguments, run)

    def run(self) -> int:
        """Run the trials that are missing; the exit status."""
        with locked(self.out) as lock:
            self._same()
            self.trials = read_trials(self.out)
            for trial in self.trials.values():
                if trial.state != "started":
                    self.sampler.tell(trial)
            ended = sum(trial.state != "started" for trial in self.trials.values())
            parallel = self.options.jobs or cores()
            print(f"{self.count} trials ({ended} have ended), {parallel} at a time, in {self.out}")
            try:
                run_all(self._jobs(), parallel, lock, watch=self._watch, ended=self._ended)
            finally:
                self._conclude()
        return 0 if best(self.trials) else 1

    def _same(self) -> None:
        """Refuse to mix two sweeps in one directory; more trials may be asked for."""
        mine = {
            "algorithm": self.algorithm, "env": self.env, "options": self.common, "search": list(self.options.search),
            "method": self.options.method, "metric": self.options.metric, "sampling_seed": self.options.sampling_seed,
        }  # fmt: skip
        path = self.out / SWEEP
        if path.exists():
            theirs = json.loads(path.read_text())
            names = [name for name in mine if theirs.get(name) != mine[name]]
            if names:
                parts = ", ".join(f"{name} {theirs.get(name)}" for name in names)
                raise ShoalError(f"{self.out} holds another sweep ({parts}): choose another --out")
        log.replace(path, json.dumps(mine, indent=2) + "\n")

    def _jobs(self) -> Iterator[Job]:
        """Those that were interrupted, then new ones; values are chosen when there is room to try them."""
        for number in range(self.count):
            trial = self.trials.get(number)
            if trial is None:
                trial = Trial(number, self.sampler.ask(number))
                trial.save(self.out)
                self.trials[number] = trial
            if trial.state == "started":
                yield self._job(number, trial.params)

    def _curve(self, job: Job) -> list[tuple[int, float]]:
        """Steps, and the best evaluation until then."""
        evaluations = read_evaluations(job.directory)
        if not evaluations:
            return []
        run = runs.load(job.directory)
        steps = [int(e["env_steps"]) for e in evaluations]
        return list(
            zip(steps, itertools.accumulate((run.value(e, self.options.metric) for e in evaluations), max), strict=True)
        )

    def _watch(self, running: list[Process]) -> None:
        if not self.options.prune:
            return
        others = [trial.curve for trial in self.trials.values() if trial.state == "finished"]
        for process in running:
            if not process.stopping and hopeless(
                self._curve(process.job), others, process.job.run.settings.total_steps
            ):
                self.pruned.add(_number(process.job))
                process.stop()

    def _ended(self, job: Job, status: int) -> None:
        number, curve = _number(job), self._curve(job)
        pruned = number in self.pruned and status == INTERRUPTED
        if status < 0 and not pruned:
            print(f"  trial {number} was killed (signal {-status}): the same command again goes on with it", flush=True)
        if (status == INTERRUPTED or status < 0) and not pruned:
            return
        state: Any = "pruned" if pruned else "finished" if status == 0 else "failed"
        trial = Trial(number, self.trials[number].params, state, curve[-1][1] if curve else None, curve)
        trial.save(self.out)
        self.trials[number] = trial
        self.sampler.tell(trial)
        value = "no evaluation" if trial.value is None else f"{self.options.metric} {trial.value:.3f}"
        print(f"  trial {number} {state}: {value}   {_words(trial)}", flush=True)
        if state == "failed":
            print(f"    {last_words(job, 1)}")

    def _conclude(self) -> None:
        """Write the best settings."""
        winner = best(self.trials)
        if winner is None:
            print("no trial has finished")
            return
        data = config.read(self._job(winner.number, winner.params).directory)
        data["settings"] = {k: v for k, v in data["settings"].items() if k not in ("seed", "out")}
        data["sweep"] = {"trial": winner.number, "params": winner.params, self.options.metric: winner.value}
        path = self.out / BEST
        log.replace(path, json.dumps(data, indent=2) + "\n")
        print(f"best: trial {winner.number}, {self.options.metric} {winner.value:.3f}   {_words(winner)}")
        print(f"next: shoal train {self.algorithm} {self.env} --config {path} --seed 1")


def _number(job: Job) -> int:
    return int(job.directory.name.removeprefix("trial_"))


def _words(trial: Trial) -> str:
    return "  ".join(f"{name} {value.replace(',', ' ')}" for name, value in trial.params.items())
