"""A run in a directory: train, log, evaluate, save; stop and go on. What `shoal train` does after reading options."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from shoal import checkpoint, config, plot, registry
from shoal.config import Run, Settings
from shoal.envs.check import Problem, problems
from shoal.envs.common.serial import SerialEnvs
from shoal.evaluate import evaluate
from shoal.locks import locked
from shoal.log import ABSOLUTE, Display, Log, read_absolute, read_evaluations, read_metrics, replace
from shoal.teams.curriculum import Course
from shoal.teams.exploitability import diagnose
from shoal.teams.league import League
from shoal.teams.scripted import SCRIPTS, Scripted
from shoal.teams.team import Against, Team, by_agent, seat, without
from shoal.train import Progress, carry_over, train
from shoal.types import Algorithm, EnvSpec, Policy, ShoalError, Tree, VecEnv, nearest

CHECKPOINTS = "checkpoint"


def open_run(directory: Path) -> Run:
    """The settings of a run directory."""
    data = config.read(directory)
    defaults = registry.algorithm(data["algorithm"]).config
    return Run(
        algorithm=data["algorithm"],
        env=data["env"],
        env_args=data["env_args"],
        settings=config.from_dict(Settings, data["settings"]),
        config=config.from_dict(type(defaults), data["config"]),
        versions=data["versions"],
    )


def build(run: Run, spec: EnvSpec) -> Algorithm:
    """The run's algorithm for the agents it learns of an environment with `spec`, untrained."""
    return learner(run, without(spec, by_agent(spec, opponents(run.settings.opponents)).keys()))


def learner(run: Run, spec: EnvSpec) -> Algorithm:
    """The run's algorithm for all agents of `spec`, untrained."""
    preset, settings = registry.algorithm(run.algorithm), run.settings
    registry.check_device(settings.device)

    def player(spec: EnvSpec, seed: int) -> Algorithm:
        return preset.build(spec, run.config, seed=seed, device=settings.device)

    if settings.self_play == "none":
        return player(spec, settings.seed)
    if settings.opponents and len(spec.groups) == 1:
        raise ShoalError("self-play needs two groups that learn, and --opponents leave one")
    return League(
        spec,
        player,
        self_play=settings.self_play,
        sides=settings.sides,
        snapshot_every=settings.snapshot_every or max(settings.total_steps // 20, 1),
        pool=settings.pool,
        latest_share=settings.latest_share,
        seed=settings.seed,
    )


def load_policy(directory: Path, which: str, spec: EnvSpec) -> Algorithm:
    """The trained policy of a run, for environments like the one it was trained in; where it trained, or on the CPU."""
    run = open_run(directory)
    if not registry.has_device(run.settings.device):
        run = dataclasses.replace(run, settings=dataclasses.replace(run.settings, device="cpu"))
    algorithm = build(run, spec)
    checkpoint.restore(
        algorithm, checkpoint.load(directory / CHECKPOINTS, which)["algorithm"], f"what {directory} learned"
    )
    return algorithm


def opponents(sources: tuple[str, ...]) -> dict[str, str]:
    """`WHO=POLICY` settings, by the names of groups or agents."""
    found = {}
    for source in sources:
        who, equals, policy = source.partition("=")
        if not (who and equals and policy):
            raise ShoalError(f"an opponent is written WHO=POLICY (WHO: a group or an agent), not {source!r}")
        found[who] = policy
    return found


def policy_of(source: str, spec: EnvSpec, which: str = "best") -> Policy:
    """A script by name, or the trained policy of a run's directory."""
    if source in SCRIPTS:
        return Scripted(spec, source)
    if not Path(source).is_dir():
        raise ShoalError(f"{source!r} is neither a run's directory nor a script; {nearest(source, SCRIPTS)}")
    return load_policy(Path(source), which, spec)


def team(directory: Path, spec: EnvSpec, which: str, others: tuple[str, ...] = ()) -> Team:
    """Everybody who plays in a run's environment: its own policy, its opponents, or `others` instead of either."""
    run = open_run(directory)
    sources = by_agent(spec, opponents(run.settings.opponents)) | by_agent(spec, opponents(others))
    known: dict[str, Policy] = {source: policy_of(source, spec, which) for source in dict.fromkeys(sources.values())}
    agents = [agent for group in spec.groups.values() for agent in group.agents]
    own = load_policy(directory, which, spec)
    return seat(spec, {agent: known[sources[agent]] if agent in sources else own for agent in agents})


def environment_of(run: Run) -> registry.Environment:
    """The run's environment, with the arguments it was trained with."""
    return registry.Environment(run.env, **run.env_args)


def against(env: VecEnv, run: Run) -> VecEnv:
    """`env`, its agents that do not learn played by the run's opponents."""
    sources = opponents(run.settings.opponents)
    if not sources:
        return env
    return Against(env, {who: policy_of(source, env.spec) for who, source in sources.items()})


def course_of(run: Run) -> Course | None:
    """The run's curriculum, if it has one.

    Raises:
        ShoalError: settings of a curriculum, and none is chosen.
    """
    settings = run.settings
    if settings.curriculum.kind == "none":
        if settings.curriculum != config.Settings().curriculum:
            raise ShoalError("settings of a curriculum, and none is chosen: set --curriculum.kind")
        return None

    def make(arguments: dict[str, Any]) -> VecEnv:
        task = registry.Environment(run.env, **{**run.env_args, **arguments})
        return against(_make(task, settings.num_envs, settings), run)

    return Course(settings.curriculum, settings.seed, make, partial(learner, run))


def evaluation_env(environment: registry.Environment, episodes: int, settings: Settings | None = None) -> VecEnv:
    """Environments to play `episodes` in: all at once where that costs nothing, else a few (`settings`: in workers)."""
    num_envs = episodes if environment.native else min(episodes, 8)
    return environment.make(num_envs) if settings is None else _make(environment, num_envs, settings)


def _make(environment: registry.Environment, num_envs: int, settings: Settings) -> VecEnv:
    """Environments for a run, in processes if it wants them."""
    return environment.make(
        num_envs,
        processes=settings.processes,
        on_worker_failure=settings.on_worker_failure,
        worker_timeout=settings.worker_timeout,
    )


@dataclass
class Trial:
    """What a run carries through its loop."""

    run: Run
    directory: Path
    algorithm: Algorithm
    """For the run's environment; in a task with other numbers of agents another one learns."""
    log: Log
    display: Display
    evaluation_env: VecEnv
    course: Course | None
    best: float = -np.inf

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    def write_metrics(self, progress: Progress) -> None:
        metrics = progress.drain()
        if self.course:
            metrics["task"] = float(self.course.task)
        self.log.write(progress.env_steps, progress.seconds, metrics)
        self.display.log(progress.env_steps, metrics)

    def evaluate(self, progress: Progress) -> None:
        """Whole episodes, and the best checkpoint if none before was better.

        Where NashConv can be computed the lowest is the best: in self-play, what one player wins another loses. What
        sides earn against each other says nothing about either, so of a league the newest is the best.
        """
        settings = self.run.settings
        # the same starts each time, other ones than training's: differences are the policy's
        arena, seed = self.evaluation_env, _seed(settings, 1)
        if progress.algorithm is not self.algorithm:
            carry_over(progress.algorithm, self.algorithm)
        result = evaluate(self.algorithm, arena, settings.eval_episodes, seed, sampled=settings.eval_sampled)
        steps, mean = progress.env_steps, float(result.agent_return.mean())
        found = diagnose(self.algorithm, self.evaluation_env)
        summary = {**result.summary(), "samples": result.samples(), **found}
        self.log.write_evaluation(steps, progress.seconds, summary)
        metrics = {"eval_agent_return": mean, "eval_team_return": float(result.team_return.mean()), **found}
        self.log.write(steps, progress.seconds, metrics)
        text = ", ".join([str(result), *[f"{name} {value:.4f}" for name, value in found.items()]])
        self.display.evaluation(steps, mean, text, progress.seconds)
        score = -found["nash_conv"] if found else mean
        # a game that is won by what the other loses is always worth 0: the newest is the best
        if score >= self.best or (settings.self_play != "none" and not found):
            self.best = score
            tree = {"algorithm": progress.algorithm.state_dict(), "env_steps": steps}
            checkpoint.save(self.checkpoints, tree, steps, "best")

    def save(self, progress: Progress) -> None:
        course = self.course.curriculum.state_dict() if self.course else None
        tree = {**progress.state_dict(), "best": self.best, "curriculum": course}
        checkpoint.save(self.checkpoints, tree, progress.env_steps)


def _seed(settings: Settings, stream: int) -> int:
    """Of starts that training does not see: 1 for the evaluations, 2 for the absolute metric."""
    return int(np.random.SeedSequence([settings.seed, stream]).generate_state(1)[0]) % 2**31


def absolute(run: Run, directory: Path) -> None:
    """Write `absolute.json`: the best checkpoint's policy over other starts (Gorsane et al. 2022).

    The best of many evaluations is chosen by luck too; starts that did not choose it say what it is worth.
    """
    torch.set_num_threads(run.settings.threads)  # as in training: the same numbers whenever it is called
    torch.set_flush_denormal(True)
    episodes = run.settings.absolute_episodes
    full = evaluation_env(environment_of(run), episodes)
    env, policy = against(full, run), load_policy(directory, "best", full.spec)
    result = evaluate(policy, env, episodes, _seed(run.settings, 2), sampled=run.settings.eval_sampled)
    env.close()
    about = {"env_steps": checkpoint.step(directory / CHECKPOINTS, "best"), "total_steps": run.settings.total_steps}
    record = {**about, **result.summary(), "samples": result.samples()}
    replace(directory / ABSOLUTE, json.dumps(record) + "\n")


def finished(run: Run, directory: Path) -> bool:
    """Whether a run has reached its end, its absolute metric included."""
    trained = checkpoint.step(directory / CHECKPOINTS) >= run.settings.total_steps
    measured = read_absolute(directory).get("total_steps") == run.settings.total_steps
    return trained and (measured or not run.settings.absolute_episodes)


def start(run: Run, directory: Path, *, resume: bool = False) -> bool:
    """Train `run` in `directory`, from its last checkpoint if `resume`. Returns whether it reached its end.

    Ctrl-C (or SIGTERM, or a closed terminal) ends the current rollout, saves, and returns; a second one stops at once.

    Raises:
        ShoalError: the directory holds a run already (without `resume`), or cannot be resumed.
        Diverged: a loss became NaN or infinite; what was saved is intact.
    """
    new = not directory.exists()
    with locked(directory, patience=0.0):
        try:
            return _start(run, directory, resume)
        except (ShoalError, KeyboardInterrupt):
            if new and not read_metrics(directory) and not (directory / CHECKPOINTS).exists():
                shutil.rmtree(directory)  # before anything was played: the same command, mended, shall find no run
            raise


def _start(run: Run, directory: Path, resume: bool) -> bool:
    done, saved = checkpoint.step(directory / CHECKPOINTS), (directory / CHECKPOINTS / "last").exists()
    if not resume and (directory / config.FILE).exists():
        if saved:
            raise ShoalError(
                f"{directory} holds a run already: continue it with --resume {directory}, or choose another --out"
            )
        if _told(open_run(directory)) != _told(run):
            raise ShoalError(
                f"{directory} holds a run already, of other settings, that saved nothing: remove the directory, or "
                "choose another --out"
            )
    if resume and done >= run.settings.total_steps:
        if finished(run, directory) or run.settings.total_steps < open_run(directory).settings.total_steps:
            raise ShoalError(f"{directory} has already trained {done:,} steps; ask for more with --total-steps")
        absolute(run, directory)  # it was stopped just before its end
        return True
    environment = environment_of(run)
    warnings = _checked(environment)
    state = checkpoint.load(directory / CHECKPOINTS) if saved else None  # stopped before it saved: from its start
    full = _make(environment, run.settings.num_envs, run.settings)
    env, algorithm, course = against(full, run), build(run, full.spec), course_of(run)
    if course and state:
        course.curriculum.load_state_dict(state["curriculum"])
    first = course.begin(algorithm) if course else algorithm
    run.save(directory)
    trial = Trial(
        run=run,
        directory=directory,
        algorithm=algorithm,
        log=Log(
            directory,
            done if state else 0,
            tensorboard=run.settings.tensorboard,
            wandb=run.settings.wandb,
            config=dataclasses.asdict(run),
        ),
        display=Display(f"{run.algorithm} on {run.env}, seed {run.settings.seed}", run.settings.total_steps),
        evaluation_env=against(evaluation_env(environment, run.settings.eval_episodes, run.settings), run),
        course=course,
        best=state["best"] if state else -np.inf,
    )
    trial.display.evaluations = [(e["env_steps"], e["agent_return"]["mean"]) for e in read_evaluations(directory)]
    if course:
        trial.display.note = str(course)
    for warning in warnings:
        trial.display.message(f"warning: {warning}")
    try:
        reached = _loop(trial, first, course.env if course else env, state)
        if reached and run.settings.absolute_episodes:
            absolute(run, directory)
        return reached
    finally:
        trial.log.close()
        env.close()
        if course:
            course.close()
        trial.evaluation_env.close()
        if read_evaluations(directory):
            plot.curves(directory, f"{run.algorithm} on {run.env}, seed {run.settings.seed}")


def _told(run: Run) -> str:
    """What was asked for, wherever it is written to."""
    settings = dataclasses.replace(run.settings, out="")
    return json.dumps(dataclasses.asdict(dataclasses.replace(run, settings=settings, versions={})))


def _checked(environment: registry.Environment) -> list[Problem]:
    """Refuse a user's environment that breaks its contract; what shoal copes with is returned, to be told."""
    if environment.native:
        return []
    env = environment.make(1)
    found = problems(env.envs[0] if isinstance(env, SerialEnvs) else env, steps=100)
    env.close()
    serious = [problem for problem in found if not problem.harmless]
    if serious:
        raise ShoalError(f"{environment.name} breaks its contract:\n" + "\n".join(f"  - {p}" for p in serious))
    return found


def _loop(trial: Trial, algorithm: Algorithm, env: VecEnv, state: Tree | None) -> bool:
    settings = trial.run.settings
    eval_every = settings.eval_every or max(settings.total_steps // 20, 1)
    log_every = settings.log_every or max(settings.total_steps // 200, 1)
    done = 0
    with _interruptible() as interrupted:
        try:
            trial.display.begin(state["env_steps"] if state else 0)
            steps, seed, threads = settings.total_steps, settings.seed, settings.threads
            for progress in train(algorithm, env, steps, seed=seed, threads=threads, state=state):
                if not done:
                    trial.display.message(
                        f"memory for experience: {progress.experience.num_bytes / 2**20:,.0f} MiB at most"
                    )
                done = progress.env_steps
                if trial.course and trial.course.follow(progress):
                    trial.display.note = str(trial.course)
                    trial.display.message(f"{done:>11,} steps  {trial.course}")
                trial.display.update(done)
                if progress.every(log_every):
                    trial.write_metrics(progress)
                if progress.every(eval_every):
                    progress.check()
                    trial.evaluate(progress)
                    trial.save(progress)
                elif interrupted:
                    progress.check()
                    trial.save(progress)
                if interrupted:
                    break
            if not progress.updates:
                trial.display.message("nothing was learned: no update was made (are --total-steps below --warmup?)")
            if lost := progress.collector.lost_episodes:
                trial.display.message(f"{lost:,} episodes were lost with their worker processes, and not learned from")
        finally:
            trial.display.close(done)
    return done >= settings.total_steps


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that holds the signal once Ctrl-C, SIGTERM or SIGHUP came; a second one acts as usual."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for kind, handler in before.items():
            signal.signal(kind, handler)

    with contextlib.suppress(ValueError):  # not in the main thread: no handlers
        for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                before[number] = signal.signal(number, handle)
    try:
        yield received
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
