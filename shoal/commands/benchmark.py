"""shoal benchmark: a named suite, run in parallel, resumable, with the published figures beside ours."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.live import Live
from rich.table import Table

from shoal import experiment, log, registry
from shoal.cli import parse_run
from shoal.config import Run, slug
from shoal.evaluate import evaluate
from shoal.jobs import INTERRUPTED, OUTPUT, Job, Process, last_words, run_all
from shoal.locks import locked
from shoal.log import clock
from shoal.stats import report, runs
from shoal.stats.published import lookup
from shoal.stats.references import references
from shoal.stats.suites import ON_POLICY, SUITES, Suite, Task
from shoal.stats.summary import HEADER as ROWS
from shoal.stats.summary import caption, console, figures, group, markdown_table, rich_table, rows, text
from shoal.threads import cores
from shoal.train import train
from shoal.types import ShoalError, nearest

TABLE = "benchmark.md"
PROBE_SECONDS = 2.0
PROBE_EPISODES = 8
LINE_EVERY = 15.0  # seconds, where there is no terminal
START_SECONDS = 4.0  # of a process until it trains: imports, compiled worlds from their cache


@dataclass(frozen=True)
class Benchmark:
    """Run a named suite, or what is left of it, and write its table with the published figures."""

    out: Path | None = None
    """Directory of all runs and of the table; default: runs/benchmark/NAME. The same one again continues."""
    jobs: int = 0
    """Runs at a time, a core each; 0: one for every core."""
    seeds: int = 0
    """Runs with different seeds of every algorithm in every environment; 0: as many as the suite says."""
    algorithms: tuple[str, ...] = ()
    """Only these of the suite's."""
    dry_run: bool = False
    """Say what would be run and how long it would take."""


def main(arguments: list[str]) -> int:
    """Entry point; the exit status."""
    if not arguments or arguments[0].startswith("-"):
        print("shoal benchmark NAME [--out DIR] [--jobs N] [--seeds N] [--algorithms A B ...] [--dry-run]\n")
        print("\n".join(f"  {name:<10}{suite.summary}" for name, suite in SUITES.items()))
        return 0 if "--help" in arguments or "-h" in arguments else 2
    name = arguments[0]
    if name not in SUITES:
        raise ShoalError(f"there is no benchmark {name!r}; {nearest(name, SUITES)}")
    options = tyro.cli(
        Benchmark, args=arguments[1:], prog=f"shoal benchmark {name}", config=(tyro.conf.FlagCreatePairsOff,)
    )
    return run(name, SUITES[name], options)


def run(name: str, suite: Suite, options: Benchmark) -> int:
    """Run what is missing of a suite and write its table; the exit status."""
    for algorithm in options.algorithms:
        if algorithm not in suite.algorithms:
            raise ShoalError(f"the benchmark has no {algorithm!r}; {nearest(algorithm, suite.algorithms)}")
    suite = dataclasses.replace(
        suite, algorithms=options.algorithms or suite.algorithms, seeds=options.seeds or suite.seeds
    )
    out, parallel = options.out or Path("runs/benchmark") / name, options.jobs or cores()
    jobs, begin = plan(suite, out), time.monotonic()
    if options.dry_run:
        _prepare(name, jobs, parallel, out)
        print("\n".join(f"  {job.state:<9} {job.name}" for job in jobs))
        return 0
    with locked(out) as lock:
        failed = _run(_prepare(name, jobs, parallel, out), parallel, lock)
        done = [job for job in jobs if job.state == "finished"]
        if done:
            _conclude(name, suite, done, out)
            print(f"this took {clock(time.monotonic() - begin)}")
    for job, words in failed:
        print(f"failed: {job.name}\n{words}\n  all it printed: {job.directory / OUTPUT}")
    return 1 if failed else 0


def _prepare(name: str, jobs: list[Job], parallel: int, out: Path) -> list[Job]:
    """Those that are left, after saying how many and how long they will take."""
    states = [job.state for job in jobs]
    taken = sum(not job.directory.is_relative_to(out) for job in jobs)
    finished = f"{states.count('finished')} finished" + f", {taken} of them by other benchmarks" * bool(taken)
    counts = f"{finished}, {states.count('started')} to continue, {states.count('new')} new"
    print(f"{name}: {len(jobs)} runs ({counts}), {parallel} at a time, in {out}", flush=True)
    left = [job for job, state in zip(jobs, states, strict=True) if state != "finished"]
    if left:
        seconds, how = estimate(left, jobs, parallel)
        print(f"estimate: {clock(seconds)} ({how})", flush=True)
    return left


def plan(suite: Suite, out: Path) -> list[Job]:
    """Every run of a suite, seed by seed, so that an interrupted one has some of everything."""
    first = [_job(suite, task, algorithm, out) for task in suite.tasks for algorithm in suite.algorithms]
    return [_made(_seeded(job, seed), out) for seed in range(suite.seeds) for job in first]


def _job(suite: Suite, task: Task, algorithm: str, out: Path) -> Job:
    steps = task.on_policy_steps if algorithm in ON_POLICY else task.off_policy_steps
    options = [f"--env.{key}={value}" for key, value in task.env_args]
    options += ["--total-steps", str(steps)] if steps else []
    options += ["--eval-episodes", str(suite.episodes), "--absolute-episodes", str(suite.absolute_episodes)]
    options += ["--workers", "1"] if hasattr(registry.algorithm(algorithm).config, "workers") else []
    options += ["--no-tensorboard", *task.options, *task.of.get(algorithm, ())]
    folder = slug("_".join([task.env, *(f"{key}{value}" for key, value in task.env_args)]))
    return Job(out / folder / algorithm, algorithm, task.env, tuple(options), parse_run(algorithm, task.env, options))


def _seeded(job: Job, seed: int) -> Job:
    settings = dataclasses.replace(job.run.settings, seed=seed)
    return dataclasses.replace(
        job,
        directory=job.directory.with_name(f"{job.algorithm}_s{seed}"),
        options=(*job.options, "--seed", str(seed)),
        run=dataclasses.replace(job.run, settings=settings),
    )


def _made(job: Job, out: Path) -> Job:
    """It, or the same run if another suite, in a directory beside `out` that has its name, has finished that."""
    if job.state == "new":
        for name in SUITES:
            other = dataclasses.replace(job, directory=out.parent / name / job.directory.relative_to(out))
            with contextlib.suppress(ShoalError):  # the same task and seed, with other settings
                if other.state == "finished":
                    return other
    return job


# How long it will take


def estimate(left: list[Job], jobs: list[Job], parallel: int) -> tuple[float, str]:
    """Seconds until all of `left` are finished, and where the speeds are from.

    The speed of an algorithm in an environment is that of its runs here that are finished, else that of a probe: a few
    seconds of training and one evaluation.
    """
    known = {_kind(job): cost for job in jobs if (cost := _measured(job)) > 0}
    missing = {_kind(job): job for job in left if _kind(job) not in known}
    if missing:
        print(f"measuring the speed of {len(missing)} algorithms and environments ...", flush=True)
    known |= {kind: probe(job.run) for kind, job in missing.items()}
    costs = []
    for job in left:
        share = max(1 - job.steps() / job.run.settings.total_steps, 0.0)
        costs.append(START_SECONDS + share * known[_kind(job)] * job.run.settings.total_steps)
    how = "from a measured probe of each" if missing else "from the speed of the finished runs"
    return max(sum(costs) / parallel, max(costs)), how


def _kind(job: Job) -> tuple[str, str]:
    return job.algorithm, job.env


def _measured(job: Job) -> float:
    """Seconds a step of a finished run, evaluations excluded; 0: it is not finished."""
    evaluations = log.read_evaluations(job.directory)
    if job.state != "finished" or not evaluations:
        return 0.0
    return float(evaluations[-1]["seconds"]) / float(evaluations[-1]["env_steps"])


def probe(run: Run) -> float:
    """Seconds a step of training, evaluations included, measured for about two seconds in this process."""
    settings, config = run.settings, run.config
    if hasattr(config, "warmup"):  # else nothing would be learned in a probe
        config = dataclasses.replace(config, warmup=min(config.warmup, config.batch_size))
    environment = experiment.environment_of(run)
    env = environment.make(settings.num_envs)
    algorithm = experiment.build(dataclasses.replace(run, config=config), env.spec)
    marks: list[tuple[int, float]] = []  # from the first update on: what that compiles or allocates is left out
    updates, begin = 0, time.perf_counter()
    for progress in train(algorithm, env, settings.total_steps, seed=settings.seed, threads=1):
        if progress.updates > updates:
            updates = progress.updates
            marks.append((progress.env_steps, time.perf_counter()))
            if marks[-1][1] - marks[0][1] > PROBE_SECONDS:
                break
    if len(marks) < 2:
        marks = [(0, begin), (progress.env_steps, time.perf_counter())]
    first, last = marks[0], marks[-1]
    trained = (last[1] - first[1]) / max(last[0] - first[0], 1)
    episodes = settings.eval_episodes if environment.native else min(settings.eval_episodes, PROBE_EPISODES)
    arena = experiment.evaluation_env(environment, episodes)
    if environment.native:
        evaluate(algorithm, arena, episodes, max_steps=settings.total_steps)  # compiles
    begin = time.perf_counter()
    evaluate(algorithm, arena, episodes, max_steps=settings.total_steps)
    an_episode = (time.perf_counter() - begin) / episodes
    env.close()
    arena.close()
    every = settings.eval_every or max(settings.total_steps // 20, 1)
    played = settings.total_steps / every * settings.eval_episodes + settings.absolute_episodes
    return trained + an_episode * played / settings.total_steps


# Running


def _run(left: list[Job], parallel: int, lock: int) -> list[tuple[Job, str]]:
    """Run the jobs, showing where they are; those that failed, with what they said last."""
    failed: list[tuple[Job, str]] = []
    display = Progress(left)

    def ended(job: Job, status: int) -> None:
        if status not in (0, INTERRUPTED):
            failed.append((job, last_words(job)))
        display.ended(job, status)

    try:
        run_all(left, parallel, lock, watch=display.watch, ended=ended)
    except KeyboardInterrupt:
        display.close()
        print("stopped; every run has saved. The same command continues")
        raise
    display.close()
    return failed


class Progress:
    """How far the runs are: live on a terminal, lines elsewhere."""

    def __init__(self, jobs: list[Job]) -> None:
        self.total = sum(job.run.settings.total_steps for job in jobs)
        self.before = {job.directory: job.steps() for job in jobs}
        self.count, self.finished, self.finished_steps = len(jobs), 0, 0
        self.begin = self.shown = time.monotonic()
        terminal = console()
        self.live = Live(console=terminal, auto_refresh=False) if terminal.is_terminal and jobs else None
        if self.live:
            self.live.start()

    def watch(self, running: list[Process]) -> None:
        """Show where those that run are."""
        now = time.monotonic()
        if now - self.shown < (1.0 if self.live else LINE_EVERY):
            return
        self.shown = now
        steps = {process.job.directory: process.job.steps() for process in running}
        if self.live is None:
            print(self._line(sum(steps.values())), flush=True)
            return
        table = Table.grid(padding=(0, 2))
        table.add_row(self._line(sum(steps.values())))
        for process in running:
            total = process.job.run.settings.total_steps
            table.add_row(f"  {process.job.name}", f"{steps[process.job.directory]:,} / {total:,} steps")
        self.live.update(table, refresh=True)

    def _line(self, steps: int) -> str:
        spent = time.monotonic() - self.begin
        done = self.finished_steps + steps
        new = done - sum(self.before.values())
        left = f", {clock(spent * (self.total - done) / new)} left at this pace" if new > 0 else ""
        return f"{self.finished} of {self.count} runs, {done / self.total:.0%} of the steps, {clock(spent)}{left}"

    def ended(self, job: Job, status: int) -> None:
        """A run is over."""
        self.finished += 1
        self.finished_steps += job.run.settings.total_steps
        how = "finished" if status == 0 else "saved" if status == INTERRUPTED else f"failed (status {status})"
        place = self.live.console.print if self.live else print
        place(f"  {how}: {job.name}")

    def close(self) -> None:
        """Stop drawing."""
        if self.live:
            self.live.stop()
            self.live = None


# The table


def _conclude(name: str, suite: Suite, jobs: Iterable[Job], out: Path) -> None:
    """Print and write the table, and the report."""
    comparison = runs.compare([runs.load(job.directory) for job in jobs], suite.metric, suite.score, "own")
    title, header, body = f"benchmark {name}", COLUMNS, published_rows(comparison)
    beside = markdown_table(header, body)
    extra = report.table(header, body) + f'<p class="small">{html.escape(LEGEND)}</p>'
    section = "Beside the published figures" if any(row[4] for row in body) else "All figures"
    try:
        known = references(comparison)
    except ShoalError as error:  # nobody beats random play, say: the tables in their own units remain
        print(f"not normalised: {error}")
        known = {}
    summary = report.write(comparison, out / "report", known, title=title, extra=((section, extra),))
    lines = [f"# {title}", "", caption(summary), "", beside, "", LEGEND, "", *_absolute(comparison)]
    log.replace(out / TABLE, "\n".join(lines) + "\n")
    log.replace(out / "benchmark.json", json.dumps([dict(zip(header, row, strict=True)) for row in body]) + "\n")
    print(caption(summary) + "\n")
    console().print(rich_table(title, header, body), highlight=False)
    print(f"\n{LEGEND}\n\nspent training: {_spent(comparison)}")
    print(f"table: {out / TABLE}   report: {out / 'report' / report.REPORT}")


COLUMNS = (
    "task", "algorithm", "runs", "ours: mean [95 %]", "published", "", "last", "steps", "published steps", "confirmed",
)  # fmt: skip
LEGEND = (
    "within spread, better, short: our mean against the published value and its spread. last: our mean at the last "
    "evaluation. Not confirmed: quoted from memory, not read in the source. Sources, units and conversions: "
    "docs/benchmarks.md"
)


def published_rows(comparison: runs.Comparison) -> list[list[str]]:
    """A row for every task and algorithm; ours and the published figure in the same unit."""
    found, at_the_end = [], dataclasses.replace(comparison, score="last")
    for task, groups in comparison.tasks.items():
        for label, members in groups.items():
            scores = comparison.scores(task, label)
            ours = text(figures([scores], ("mean",))["mean"])
            steps = f"{comparison.evaluations(members[0])[-1]['env_steps']:,}"
            last = f"{at_the_end.scores(task, label).mean():.2f}"
            row = [task, label, str(len(members)), ours, "", "", last, steps, "", ""]
            for figure in lookup(members[0].env, members[0].env_args, comparison.metric, members[0].algorithm)[:1]:
                row[4], row[5] = str(figure), figure.verdict(scores)
                row[8], row[9] = figure.budget.split(" env")[0], "yes" if figure.confirmed else "no"
            found.append(row)
    return found


def _absolute(comparison: runs.Comparison) -> list[str]:
    """The same runs by the absolute metric and by their last evaluation, which no luck has chosen."""
    lines: list[str] = []
    kinds: tuple[Literal["absolute", "last"], ...] = ("absolute", "last")
    for score in kinds:
        other = dataclasses.replace(comparison, score=score)
        lines += [f"## {score}: {runs.SCORES[score]}", ""]
        body = [
            [task, *row]
            for task, groups in other.tasks.items()
            for row in rows({label: group(other, task, label) for label in groups})
        ]
        lines += [markdown_table(("task", "algorithm", *ROWS[1:]), body), ""]
    return lines


def _spent(comparison: runs.Comparison) -> str:
    seconds = sum(
        run.evaluations[-1]["seconds"]
        for groups in comparison.tasks.values()
        for members in groups.values()
        for run in members
    )
    return f"{clock(seconds)} of one core (over all runs, evaluations excluded)"
