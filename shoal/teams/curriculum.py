"""Curricula: which of several tasks to train in next, from how training goes.

    stages              easy to hard: on after some steps, or as soon as a return is reached
    threshold           on when a return is reached, back when it falls below another
    learning_progress   more often where the return changes most (Matiisen et al. 2017, arXiv 1707.00183)

A task is a set of arguments of the environment, the number of agents among them. Runs are evaluated in the environment
they are trained for, whatever task they train in.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.train import Progress, carry_over
from shoal.types import Algorithm, EnvSpec, ShoalError, Tree, VecEnv

Array = NDArray[np.float64]
FAST, SLOW = 0.1, 0.02  # of the averages whose difference is the learning progress


@dataclass(frozen=True)
class Settings:
    kind: Literal["none", "stages", "threshold", "learning_progress"] = "none"
    """How the next task is chosen."""
    tasks: tuple[str, ...] = ()
    """KEY=VALUE[,KEY=VALUE]: arguments of the environment in each task, easy to hard."""
    steps: int = 0
    """stages: environment steps in each task but the last; learning_progress: between choices (0: 20 rollouts)."""
    advance_at: float | None = None
    """Return per agent (while exploring, mean of the latest episodes) at which the next task begins."""
    retreat_at: float | None = None
    """threshold: return per agent below which the task before comes back."""
    episodes: int = 100
    """Episodes over which that mean is taken, all of the present task."""
    explore: float = 0.1
    """learning_progress: share of the choices that are uniform."""


class Curriculum(Protocol):
    """Chooses tasks, numbered from easy to hard."""

    task: int

    def record(self, returns: Array, steps: int) -> None:
        """Returns per agent of the episodes that ended in a rollout of the present task, and its steps."""
        ...

    def next(self) -> int:
        """The task for the next rollout."""
        ...

    def state_dict(self) -> Tree: ...

    def load_state_dict(self, state: Tree) -> None: ...


class Stages:
    """`stages` and `threshold`."""

    def __init__(self, settings: Settings, num_tasks: int) -> None:
        self.settings, self.num_tasks = settings, num_tasks
        self.task = self.steps = 0
        self.latest: deque[float] = deque(maxlen=settings.episodes)

    def record(self, returns: Array, steps: int) -> None:
        self.steps += steps
        self.latest.extend(returns.tolist())

    def next(self) -> int:
        settings, move = self.settings, 0
        known = len(self.latest) == self.latest.maxlen
        mean = float(np.mean(self.latest)) if known else 0.0
        if (
            known and settings.advance_at is not None and mean >= settings.advance_at
        ) or 0 < settings.steps <= self.steps:
            move = 1
        elif known and settings.retreat_at is not None and mean < settings.retreat_at:
            move = -1
        if 0 <= self.task + move < self.num_tasks and move:
            self.task += move
            self.steps = 0
            self.latest.clear()
        return self.task

    def state_dict(self) -> Tree:
        return {"task": self.task, "steps": self.steps, "latest": list(self.latest)}

    def load_state_dict(self, state: Tree) -> None:
        self.task, self.steps = state["task"], state["steps"]
        self.latest.clear()
        self.latest.extend(state["latest"])


class LearningProgress:
    """Tasks are drawn in proportion to how much their return is changing, up or down: a task that is being forgotten
    is as interesting as one that is being learned. The change is the difference of a fast and a slow running mean of
    the rollouts' returns, in units of the returns' own standard deviation in that task.
    """

    KEPT = ("seen", "fast", "slow", "mean", "variance")

    def __init__(self, settings: Settings, num_tasks: int, seed: int) -> None:
        self.settings = settings
        self.random = np.random.default_rng(seed)
        self.steps, self.rollouts = 0, 0
        self.seen = np.zeros(num_tasks, np.int64)
        self.fast, self.slow, self.mean, self.variance = (np.zeros(num_tasks) for _ in range(4))
        self.task = 0

    def record(self, returns: Array, steps: int) -> None:
        self.steps, self.rollouts = self.steps + steps, self.rollouts + 1
        if not len(returns):
            return
        k, mean = self.task, float(returns.mean())
        if not self.seen[k]:
            self.fast[k] = self.slow[k] = mean
        self.fast[k] += FAST * (mean - self.fast[k])
        self.slow[k] += SLOW * (mean - self.slow[k])
        self.seen[k] += 1
        part, apart = max(FAST, 1 / self.seen[k]), mean - self.mean[k]
        self.mean[k] += part * apart  # of episodes, of which a rollout may have one only
        self.variance[k] += part * (float(returns.var()) - self.variance[k] + (1 - part) * apart**2)

    @property
    def progress(self) -> Array:
        """`[task]`, at least 0; tasks that were not tried yet come first."""
        change = np.abs(self.fast - self.slow) / (np.sqrt(self.variance) + 1e-8)
        found: Array = np.where(self.seen == 0, np.inf, change)
        return found

    def next(self) -> int:
        settings = self.settings
        enough = self.steps >= settings.steps if settings.steps else self.rollouts >= 20
        if not enough:
            return self.task
        self.steps = self.rollouts = 0
        progress = self.progress
        if np.isinf(progress).any():
            self.task = int(np.isinf(progress).argmax())
        elif self.random.random() < settings.explore or not progress.sum():
            self.task = int(self.random.integers(len(progress)))
        else:
            self.task = int(self.random.choice(len(progress), p=progress / progress.sum()))
        return self.task

    def state_dict(self) -> Tree:
        arrays = {name: getattr(self, name).tolist() for name in self.KEPT}
        generator = {"state": str(self.random.bit_generator.state)}  # its integers are too long for JSON readers
        return {**arrays, **generator, "task": self.task, "steps": self.steps, "rollouts": self.rollouts}

    def load_state_dict(self, state: Tree) -> None:
        for name in self.KEPT:
            getattr(self, name)[:] = state[name]
        self.random.bit_generator.state = ast.literal_eval(state["state"])
        self.task, self.steps, self.rollouts = state["task"], state["steps"], state["rollouts"]


def build(settings: Settings, seed: int) -> Curriculum:
    """The curriculum that `settings` describe.

    Raises:
        ShoalError: settings that cannot lead through the tasks.
    """
    count = len(settings.tasks)
    if count < 2:
        raise ShoalError(f"a curriculum needs two tasks or more (--curriculum.tasks KEY=VALUE KEY=VALUE), not {count}")
    up, down = settings.advance_at, settings.retreat_at
    if settings.kind == "learning_progress":
        if up is not None or down is not None:
            raise ShoalError("learning_progress goes by changes of returns: leave advance_at and retreat_at out")
        return LearningProgress(settings, count, seed)
    if settings.kind == "threshold" and settings.steps:
        raise ShoalError("threshold moves at returns only: leave --curriculum.steps out, or use stages")
    if settings.kind == "threshold" and (up is None or down is None or down >= up):
        raise ShoalError("threshold needs --curriculum.advance-at, and --curriculum.retreat-at below it")
    if settings.kind == "stages" and (down is not None or (up is None and not settings.steps)):
        raise ShoalError("stages go on after --curriculum.steps or at --curriculum.advance-at, and never back")
    return Stages(settings, count)


class Course:
    """A curriculum and the environments of its tasks.

    Args:
        settings: with two tasks or more.
        seed: of the choices.
        make: an environment from a task's arguments. All are made at once: a wrong one is refused before work is lost.
        learner: an untrained algorithm for a task's agents.
    """

    def __init__(
        self,
        settings: Settings,
        seed: int,
        make: Callable[[dict[str, Any]], VecEnv],
        learner: Callable[[EnvSpec], Algorithm],
    ) -> None:
        self.curriculum, self.tasks, self.learner = build(settings, seed), settings.tasks, learner
        self.envs = [make(arguments(task)) for task in settings.tasks]

    @property
    def task(self) -> int:
        return self.curriculum.task

    @property
    def env(self) -> VecEnv:
        """Of the present task."""
        return self.envs[self.task]

    def begin(self, algorithm: Algorithm) -> Algorithm:
        """Who learns at first: `algorithm`, or one like it for the agents of the present task.

        Raises:
            ShoalError: what is learned in a task cannot go on among the agents that `algorithm` is for.
        """
        for env in self.envs:
            if env.spec != algorithm.spec:
                carry_over(algorithm, self.learner(env.spec))
        return algorithm if self.env.spec == algorithm.spec else self.learner(self.env.spec)

    def follow(self, progress: Progress) -> bool:
        """Take note of the latest rollout; whether training went on to another task."""
        before, rollout = self.task, progress.collector.latest
        returns = [torch.cat(list(found.values()), 1).mean(1).double().numpy() for found, _ in rollout]
        steps = progress.env_steps - progress.previous_steps
        self.curriculum.record(np.concatenate([*returns, np.zeros(0)]), steps)
        if self.curriculum.next() == before:
            return False
        same = self.env.spec == progress.env.spec
        progress.move_to(self.env, None if same else self.learner(self.env.spec))
        return True

    def __str__(self) -> str:
        return f"task {self.task + 1} of {len(self.tasks)}: {self.tasks[self.task]}"

    def close(self) -> None:
        for env in self.envs:
            env.close()


def arguments(task: str) -> dict[str, Any]:
    """`delay=8,cues=4` as arguments; values that are no Python literal are strings.

    Raises:
        ShoalError: not of that form.
    """
    found: dict[str, Any] = {}
    for part in task.split(","):
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise ShoalError(f"a task is written KEY=VALUE[,KEY=VALUE], not {task!r}")
        try:
            found[key.strip().replace("-", "_")] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key.strip().replace("-", "_")] = value
    return found
