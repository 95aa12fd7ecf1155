"""Many runs as processes of their own: as many at a time as there are cores, each one resumable.

A run is told to stop by one SIGTERM, upon which it saves. It is told so when whoever started it dies, too; and the
lock on the directory is held by all of them, so that a second start waits until the last has saved.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from shoal import checkpoint, config, experiment
from shoal.config import Run
from shoal.locks import POLL
from shoal.log import read_evaluations
from shoal.stats.runs import differing, flat
from shoal.types import ShoalError

OUTPUT = "output.txt"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
INTERRUPTED = 130
State = Literal["new", "started", "finished"]


@dataclass(frozen=True)
class Job:
    """A run that shall exist: its directory, and the options of `shoal train` that make it."""

    directory: Path
    algorithm: str
    env: str
    options: tuple[str, ...]
    run: Run
    """What these options mean."""

    @property
    def name(self) -> str:
        arguments = "".join(f" {key}={value}" for key, value in self.run.env_args.items())
        return f"{self.algorithm} {self.env}{arguments} seed {self.run.settings.seed}"

    @property
    def state(self) -> State:
        """How far it is.

        Raises:
            ShoalError: the directory holds a run with other settings.
        """
        if not (self.directory / config.FILE).exists():
            return "new"
        self._same(experiment.open_run(self.directory))
        if experiment.finished(self.run, self.directory):
            return "finished"
        return "started" if checkpoint.step(self.directory / experiment.CHECKPOINTS) else "new"

    def _same(self, other: Run) -> None:
        ours, theirs = (_settings(run) for run in (self.run, other))
        names = differing([ours, theirs])
        if names:
            parts = ", ".join(f"{name} {theirs.get(name)} instead of {ours.get(name)}" for name in names)
            raise ShoalError(f"{self.directory} holds a run with other settings ({parts}): choose another --out")

    def command(self) -> list[str]:
        """Start it, or continue it where it stopped."""
        train = [sys.executable, "-m", "shoal", "train"]
        if self.state == "started":
            return [*train, "--resume", str(self.directory)]
        return [*train, self.algorithm, self.env, *self.options, "--out", str(self.directory)]

    def steps(self) -> int:
        """Environment steps it is known to have made."""
        evaluations = read_evaluations(self.directory)
        return int(evaluations[-1]["env_steps"]) if evaluations else 0


def _settings(run: Run) -> dict[str, Any]:
    data = dataclasses.asdict(run)
    found = {"algorithm": run.algorithm, "env": run.env, **flat(data["env_args"], "env.")}
    found |= flat({k: v for k, v in data["settings"].items() if k != "out"}) | flat(data["config"])
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


@dataclass
class Process:
    """A job that is running."""

    job: Job
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    stopping: bool = False

    def stop(self) -> None:
        """Have it save and end; asked twice, it would not save."""
        if not self.stopping:
            self.stopping = True
            self.process.terminate()

    @property
    def status(self) -> int:
        """Once it has ended; one that was stopped before it could listen has nothing to save."""
        code = self.process.returncode
        return INTERRUPTED if self.stopping and code == -signal.SIGTERM else code


def start(job: Job, lock: int) -> Process:
    """Run a job; what it prints goes into its directory."""
    command = job.command()
    if "--resume" not in command:  # it was killed before it saved anything
        shutil.rmtree(job.directory, ignore_errors=True)
    job.directory.mkdir(parents=True, exist_ok=True)
    output = (job.directory / OUTPUT).open("ab")
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, **one},
        start_new_session=True,  # Ctrl-C is ours to pass on, once
        pass_fds=[lock] if lock >= 0 else [],
        preexec_fn=_ending_with_parent(),
    )
    return Process(job, process, output)


def _ending_with_parent() -> Callable[[], Any] | None:
    """Called in the child: have Linux send it a SIGTERM when its parent dies."""
    if sys.platform != "linux":
        return None
    return functools.partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)


def run_all(
    jobs: Iterable[Job],
    parallel: int,
    lock: int,
    *,
    watch: Callable[[list[Process]], None] = lambda processes: None,
    ended: Callable[[Job, int], None] = lambda job, status: None,
) -> None:
    """Run jobs, `parallel` at a time; jobs are taken from the iterator when there is room for them.

    Args:
        jobs: may be a generator that looks at what has ended.
        parallel: processes at a time.
        lock: of `locks.locked`.
        watch: called several times a second with those that run; may `stop` them.
        ended: called with each that has ended, and its exit status (`INTERRUPTED`: stopped; it saved what it had).

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, after all have saved. A second one kills them.
    """
    running: list[Process] = []
    waiting = iter(jobs)
    exhausted = False
    with _interrupted() as signals:
        try:
            while True:
                while not (exhausted or signals) and len(running) < parallel:
                    job = next(waiting, None)
                    exhausted = job is None
                    if job is not None and job.state == "finished":  # it was, before anybody was told
                        ended(job, 0)
                    elif job is not None:
                        running.append(start(job, lock))
                if signals:
                    for process in running:
                        process.stop()
                if not running and (exhausted or signals):
                    break
                time.sleep(POLL)
                watch(running)
                for process in [p for p in running if p.process.poll() is not None]:
                    running.remove(process)
                    process.output.close()
                    ended(process.job, process.status)
        finally:
            for process in running:
                process.process.kill()
                process.process.wait()
                process.output.close()
        if signals:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _interrupted() -> Iterator[list[int]]:
    """A list that holds the signal once Ctrl-C or SIGTERM came; a second one raises."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread: no handlers
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def last_words(job: Job, lines: int = 3) -> str:
    """The end of what a job printed."""
    path = job.directory / OUTPUT
    return "\n".join(path.read_text(errors="replace").strip().splitlines()[-lines:]) if path.is_file() else ""
