"""Environments in worker processes: several a worker, over shared memory.

What is shown, earned and done lies in memory that the main process and its workers share; a step sends each worker a
few bytes to wake it and gets a few back. Nobody spins. The memory has no name in the file system and workers end with
the main process, however that ends, so nothing is left behind.

Workers are started as programs of their own, never forked (PyTorch and numba have threads), and do not run the caller's
main module again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal import actions as action_spaces
from shoal import tree
from shoal.types import EnvSpec, Groups, ShoalError, Stateful, Step, Tree, VecEnv, View

Make = Callable[[int, int], Sequence[VecEnv]]
"""`make(first, count)`: the environments first..first+count-1, each a `VecEnv` of one environment."""

ATTEMPTS = 3  # failures in a row, without a step between them
PATIENCE = 600.0  # seconds for a worker to start; to load a state, at most
FAREWELL = 5.0  # seconds for workers to close their environments
HEADER = struct.Struct("<Q")
PR_SET_PDEATHSIG = 1  # Linux's sys/prctl.h
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from shoal.envs.common.processes import work; work(*map(int, sys.argv[2:]))"
)


def seed_of(*numbers: int) -> int:
    """A seed in [0, 2^31) of its own for every tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) % 2**31


@dataclass
class Shared:
    """What the main process and the workers write for each other."""

    steps: list[Step]
    """Two, written in turn: while one is written, the other still holds what was acted on."""
    actions: Groups
    episodes: Tensor
    """`[env, 2]` int64: the seed of the episode that is played, and the steps in it."""
    busy: Tensor
    """`[worker]` int64: the environment that it is playing; -1: none."""


def _nameless() -> int:
    """A descriptor of memory that no name in the file system leads to: it is gone with those who hold it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("shoal")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _share(spec: EnvSpec, num_envs: int, workers: int, memory: int) -> Shared:
    """In the memory behind the descriptor `memory`, which is made large enough."""
    one = _blank(spec, num_envs)
    taken = {n: action_spaces.empty(g.action, (num_envs, g.num_agents)) for n, g in spec.groups.items()}
    numbers = torch.zeros(num_envs, 2, dtype=torch.int64), torch.zeros(workers, dtype=torch.int64)
    layout = Shared([one, one], taken, *numbers)
    sizes = [x.numel() * x.element_size() for x in tree.leaves(layout)]
    starts = np.cumsum([0] + [-(-size // 64) * 64 for size in sizes]).tolist()
    if os.fstat(memory).st_size < starts[-1]:
        os.ftruncate(memory, starts[-1])
    block, place = mmap.mmap(memory, starts[-1]), iter(starts)

    def put(x: Tensor) -> Tensor:
        return torch.from_numpy(np.ndarray(tuple(x.shape), x.numpy().dtype, block, next(place)))

    return tree.map(put, layout)


def _blank(spec: EnvSpec, num_envs: int) -> Step:
    def view() -> View:
        obs, legal = {}, {}
        for name, g in spec.groups.items():
            lead = (num_envs, g.num_agents)
            obs[name] = torch.zeros((*lead, *g.obs_shape), dtype=torch.uint8 if g.image else torch.float32)
            legal[name] = torch.zeros((*lead, g.action.size if g.masked else 0), dtype=torch.bool)
        return View(obs, legal, torch.zeros(num_envs, spec.state_size))

    def each(dtype: torch.dtype) -> Groups:
        return {name: torch.zeros(num_envs, g.num_agents, dtype=dtype) for name, g in spec.groups.items()}

    flags = [torch.zeros(num_envs, dtype=torch.bool) for _ in range(2)]
    return Step(view(), view(), each(torch.float32), each(torch.bool), each(torch.bool), *flags)


def _send(channel: socket.socket, data: bytes) -> None:
    channel.sendall(HEADER.pack(len(data)) + data)


def _receive(channel: socket.socket) -> Any:
    (size,) = HEADER.unpack(_read(channel, HEADER.size))
    return pickle.loads(_read(channel, size))


def _read(channel: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = channel.recv_into(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data


# In the main process


class _Failed(Exception):
    """A worker did not do what it was asked to; the message says what became of it."""


class _Worker:
    """A worker process, seen from the main one."""

    def __init__(self, number: int, first: int, last: int, memory: int) -> None:
        self.number, self.first, self.last, self.memory = number, first, last, memory
        self.rows = slice(first, last)
        self.restarts = 0
        self.failures = 0
        """Since it last finished a step."""
        self.lost = False
        """Its environments have begun new episodes, of which nobody was told yet."""
        self.start()

    def start(self) -> None:
        """Begin a process; it answers once it has imported what it needs."""
        self.channel, its = socket.socketpair()
        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = its.fileno(), self.memory, os.getpid(), int(in_main_thread)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(sys.path), *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            pass_fds=numbers[:2],
            start_new_session=True,  # Ctrl-C is the main process's, and what the environments start ends with them
            env={**os.environ, **ONE_THREAD},
        )
        its.close()
        self.owed = 0

    def ask(self, seconds: float, method: str, *arguments: Any) -> None:
        """Have it call a method of `_Player`, which may take so long."""
        while self.owed:  # by a call that was interrupted
            with contextlib.suppress(_Failed):
                self.answer()
        self.send(seconds, method, *arguments)

    def send(self, seconds: float, method: str, *arguments: Any) -> None:
        self.owed += 1
        self.seconds, self.deadline = seconds, time.monotonic() + seconds
        with contextlib.suppress(OSError):  # it is gone, or hangs: `answer` says so
            self.channel.settimeout(seconds)
            _send(self.channel, pickle.dumps((method, arguments)))

    def answer(self) -> Any:
        """What the method returned.

        Raises:
            _Failed: it raised, took too long, or the process has ended. In the last two cases it is no more.
        """
        self.owed -= 1
        try:
            self.channel.settimeout(max(self.deadline - time.monotonic(), 1.0))  # it may have been sent in time
            good, value = _receive(self.channel)
        except TimeoutError:
            self.kill()
            raise _Failed(f"gave no answer in {self.seconds:g} seconds") from None
        except (EOFError, OSError):
            code = self.kill()
            how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit status {code}"
            raise _Failed(how) from None
        except BaseException:  # Ctrl-C: half an answer may have been read
            self.kill()
            raise
        if not good:
            raise _Failed(value)
        return value

    def kill(self) -> int:
        """End the process and all it started; its exit status (negative: the signal that killed it)."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.channel.close()
        return int(self.process.returncode)


def _end(workers: list[_Worker], memory: int, owner: int) -> None:
    if os.getpid() != owner:  # a fork of the main process ends
        return
    here = [worker for worker in workers if worker.process.returncode is None]
    for worker in here:
        worker.send(FAREWELL, "close")
    for worker in here:
        with contextlib.suppress(_Failed):
            while worker.owed:
                worker.answer()
        worker.kill()
    os.close(memory)


class Processes:
    """`num_envs` environments, played in worker processes; satisfies `VecEnv`.

    What is played does not depend on the number of workers.

    A step in which a worker fails is `lost` in all of its environments: their episodes are cut off before it, and new
    ones begin in a new worker.

    Args:
        make: makes environments, in the workers (a picklable function).
        num_envs: how many, in all.
        processes: workers that share them as evenly as possible; at most one an environment.
        name: for error messages.
        numbered: whether the environments derive their own random numbers from the number they were made with, as
            `SerialEnvs` does. Without, each is reset with a seed of its own.
        on_failure: what to do when a worker raises, hangs or dies: `raise`, or `restart` it.
        timeout: seconds that a worker may take for a step of its environments (or to reset, draw or save them).

    Raises:
        ShoalError: a worker failed; names the environment, its episode's seed and the step. With `restart`, only after
            three times in a row.
    """

    def __init__(
        self,
        make: Make,
        num_envs: int,
        processes: int,
        name: str = "environment",
        *,
        numbered: bool = False,
        on_failure: Literal["raise", "restart"] = "raise",
        timeout: float = 60.0,
    ) -> None:
        if num_envs < 1 or processes < 1:
            raise ShoalError(f"num_envs and processes must be at least 1, not {num_envs} and {processes}")
        self.name, self.num_envs = name, num_envs
        self.on_failure, self.timeout = on_failure, timeout
        self.seed: int | None = None
        self.turn = 0
        try:
            self.making = pickle.dumps(make), numbered
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ShoalError(f"{name}: worker processes need a function that pickle can find again: {error}") from error
        memory = _nameless()
        self.workers: list[_Worker] = []
        self.end = weakref.finalize(self, _end, self.workers, memory, os.getpid())
        edges = np.linspace(0, num_envs, min(processes, num_envs) + 1).astype(int).tolist()
        self.sizes = num_envs, len(edges) - 1
        try:
            for number in range(self.sizes[1]):
                self.workers.append(_Worker(number, edges[number], edges[number + 1], memory))
            for worker in self.workers:
                worker.ask(PATIENCE, "make", *self.making, worker.first, worker.last)
            specs = [worker.answer() for worker in self.workers]
            self.spec: EnvSpec = specs[0]
            if any(spec != self.spec for spec in specs):
                raise ShoalError(f"{name}: environments differ in what agents see or do, and so cannot step together")
            self.shared = _share(self.spec, *self.sizes, memory)
            self.shared.busy.fill_(-1)
            for worker in self.workers:
                self._join(worker)
        except _Failed as failed:
            self.close()
            raise ShoalError(f"{name} cannot be made: a worker process {failed}") from None
        except BaseException:
            self.close()
            raise

    def _join(self, worker: _Worker) -> None:
        """Give a new worker its part of the shared memory."""
        worker.ask(PATIENCE, "join", self.spec, *self.sizes, worker.number)
        worker.answer()

    def _call(self, workers: list[_Worker], seconds: float, turn: int, method: str, *arguments: Any) -> list[Any]:
        """What `method` returns from every worker; None from one that failed and begins anew (see `_revive`)."""
        if not self.end.alive:
            raise ShoalError(f"{self.name} is closed")
        for worker in workers:
            worker.ask(seconds, method, *arguments)
        answers = []
        for worker in workers:
            try:
                answers.append(worker.answer())
            except _Failed as failed:
                self._revive(worker, failed, turn)
                answers.append(None)
        return answers

    def _where(self, worker: _Worker) -> str:
        """What a worker was playing."""
        index = int(self.shared.busy[worker.number])
        if index < 0:
            several = worker.last - worker.first > 1
            return f"environments {worker.first} to {worker.last - 1}" if several else f"environment {worker.first}"
        seed, step = self.shared.episodes[index].tolist()
        return f"environment {index}, episode seed {seed}, step {step}"

    def _revive(self, worker: _Worker, failed: _Failed, turn: int) -> None:
        """Start a failed worker and its environments anew, which show their first observations in `steps[turn]`."""
        while True:
            worker.kill()
            worker.failures += 1
            what = f"{self.name}, {self._where(worker)}: the worker process {failed}"
            if self.on_failure == "raise":
                raise ShoalError(what) from None
            if worker.failures == ATTEMPTS:
                raise ShoalError(f"{what}\n(this worker failed {ATTEMPTS} times without finishing a step)") from None
            count = worker.last - worker.first
            warnings.warn(f"{what}\nThe worker is started anew; lost episodes: {count}", stacklevel=4)
            worker.restarts += 1
            self.shared.busy[worker.number] = -1
            try:
                worker.start()
                worker.ask(PATIENCE, "make", *self.making, worker.first, worker.last)
                worker.answer()
                self._join(worker)
                worker.ask(self.timeout, "reset", self._seed_of(worker), turn)
                worker.answer()
            except _Failed as again:
                failed = again
            else:
                worker.lost = True
                return

    def _seed_of(self, worker: _Worker) -> int:
        """The seed to reset with: another one after each restart, since the same episodes may fail again."""
        seed = self.seed or 0
        return seed_of(seed, worker.restarts) if worker.restarts else seed

    def reset(self, seed: int | None = None) -> View:
        """Start every environment anew; without a seed the streams go on (or start from 0)."""
        if self.seed is None or seed is not None:
            self.seed = seed = seed or 0
            for worker in self.workers:
                worker.restarts = 0
        self._call(self.workers, self.timeout, self.turn, "reset", seed, self.turn)
        for worker in self.workers:
            worker.lost = False
        return self.shared.steps[self.turn].view

    def step(self, actions: Groups) -> Step:
        if self.seed is None:
            raise ShoalError("reset the environment before its first step")
        self.turn = turn = 1 - self.turn
        for name, action in actions.items():
            self.shared.actions[name].copy_(action)
        playing = [worker for worker in self.workers if not worker.lost]
        self._call(playing, self.timeout, turn, "step", turn)
        step = self.shared.steps[turn]
        step.lost.zero_()
        for worker in self.workers:
            if worker.lost:
                self._lose(worker, step)
            else:
                worker.failures = 0
        return step

    def _lose(self, worker: _Worker, step: Step) -> None:
        """Nothing happened in a worker's environments; what they show already is the next episode's start."""
        worker.lost = False
        before = self.shared.steps[1 - self.turn].view
        tree.copy_(tree.index(step.successor, worker.rows), tree.index(before, worker.rows))
        for name in self.spec.groups:
            step.reward[name][worker.rows] = 0.0
            step.terminated[name][worker.rows] = False
            step.alive[name][worker.rows] = False
        step.ended[worker.rows] = True
        step.lost[worker.rows] = True

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """The environment's own picture `[height, width, 3]`."""
        worker = next(worker for worker in self.workers if index < worker.last)
        worker.ask(self.timeout, "render", index)
        try:
            return worker.answer()  # type: ignore[no-any-return]
        except _Failed as failed:
            raise ShoalError(f"{self.name}, environment {index} cannot be drawn: its worker {failed}") from None

    def state_dict(self) -> Tree:
        """Of an environment without a state None: it begins a new episode where this is loaded, the old one is lost."""
        playing = [worker for worker in self.workers if not worker.lost]
        answers = self._call(playing, self.timeout, 1 - self.turn, "state_dict")
        envs: list[Tree | None] = [None] * self.num_envs
        for worker, answer in zip(playing, answers, strict=True):
            if not worker.lost:
                envs[worker.rows] = answer
        view = self.shared.steps[self.turn].view
        return {
            "seed": self.seed,
            "restarts": [worker.restarts for worker in self.workers],
            "lost": [worker.lost for worker in self.workers],
            "episodes": self.shared.episodes,
            "view": {"obs": view.obs, "legal": view.legal, "state": view.state},
            "envs": envs,
        }

    def load_state_dict(self, state: Tree) -> None:
        if len(state["restarts"]) != len(self.workers):
            raise ShoalError(f"the state is that of {len(state['restarts'])} processes, not {len(self.workers)}")
        self.seed = state["seed"]
        self.shared.episodes.copy_(state["episodes"])
        tree.copy_(self.shared.steps[self.turn].view, View(**state["view"]))
        for worker, restarts, lost in zip(self.workers, state["restarts"], state["lost"], strict=True):
            worker.restarts, worker.lost = restarts, lost
            envs = state["envs"][worker.rows]
            if None not in envs:
                self._call([worker], self._patience(worker), 1 - self.turn, "load_state_dict", envs)
                continue
            if not lost:
                worker.restarts, worker.lost = restarts + 1, True
            self._call([worker], self.timeout, 1 - self.turn, "reset", self._seed_of(worker), 1 - self.turn)

    def _patience(self, worker: _Worker) -> float:
        """Seconds to load its environments: each step so far is played again, and may take as long as any."""
        steps = int(self.shared.episodes[worker.rows, 1].clamp(min=0).sum())
        return min(PATIENCE, self.timeout * (worker.last - worker.first + steps))

    def close(self) -> None:
        """End the workers, as also happens when this is collected as garbage and when the interpreter ends."""
        self.end()


# In a worker


def work(channel: int, memory: int, parent: int, in_main_thread: int) -> None:
    """What a worker process runs: it does what it is asked to until it is told to close, or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _follow(parent, bool(in_main_thread))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as in `train`
    player, asked = _Player(memory), socket.socket(fileno=channel)
    with contextlib.suppress(EOFError, ConnectionError):  # the main process is gone
        while True:
            method, arguments = _receive(asked)
            try:
                reply = pickle.dumps((True, getattr(player, method)(*arguments)))
            except ShoalError as error:
                reply = pickle.dumps((False, f"refused: {error}"))
            except (Exception, SystemExit):
                reply = pickle.dumps((False, f"raised\n{traceback.format_exc()}"))
            _send(asked, reply)
    player.close()


def _follow(parent: int, in_main_thread: bool) -> None:
    """End with the process `parent`, also while an environment is stuck in a step."""
    if sys.platform == "linux" and in_main_thread:  # the signal is sent when the thread ends that started this process
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


class _Player:
    """The environments of one worker."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.envs: list[VecEnv] = []

    def make(self, pickled: bytes, numbered: bool, first: int, last: int) -> EnvSpec:
        self.first, self.numbered = first, numbered
        self.envs = list(pickle.loads(pickled)(first, last - first))
        specs = [env.spec for env in self.envs]
        if any(env.num_envs != 1 for env in self.envs) or any(spec != specs[0] for spec in specs):
            raise ShoalError("environments that step together must be alike, and each a VecEnv of one")
        return specs[0]

    def join(self, spec: EnvSpec, num_envs: int, workers: int, number: int) -> None:
        shared = _share(spec, num_envs, workers, self.memory)
        self.busy: NDArray[np.int64] = shared.busy[number : number + 1].numpy()
        rows = [slice(self.first + k, self.first + k + 1) for k in range(len(self.envs))]
        self.steps = [[tree.index(step, row) for row in rows] for step in shared.steps]
        self.actions = [tree.index(shared.actions, row) for row in rows]
        self.episodes: list[NDArray[np.int64]] = [shared.episodes[row][0].numpy() for row in rows]

    def reset(self, seed: int | None, turn: int) -> None:
        for k, env in enumerate(self.envs):
            self.busy[0] = self.first + k
            own = seed if seed is None or self.numbered else seed_of(seed, self.first + k)
            self.episodes[k][:] = -1 if own is None else own, 0
            _show(env.reset(own), self.steps[turn][k].view)
            self._begin(k)
        self.busy[0] = -1

    def _begin(self, k: int) -> None:
        """A new episode."""
        episode_seed = getattr(self.envs[k], "episode_seed", None)
        if episode_seed:
            self.episodes[k][0] = episode_seed(0)
        self.episodes[k][1] = 0

    def step(self, turn: int) -> None:
        for k, env in enumerate(self.envs):
            self.busy[0] = self.first + k
            self.episodes[k][1] += 1
            step = env.step({name: action.clone() for name, action in self.actions[k].items()})
            shown = self.steps[turn][k]
            _show(step.view, shown.view)
            _show(step.successor, shown.successor)
            for name in shown.reward:
                shown.reward[name].copy_(step.reward[name])
                shown.terminated[name].copy_(step.terminated[name])
                shown.alive[name].copy_(step.alive[name])
            shown.ended.copy_(step.ended)
            if step.ended[0]:
                self._begin(k)
        self.busy[0] = -1

    def render(self, index: int) -> Any:
        return self.envs[index - self.first].render(0)  # type: ignore[attr-defined]

    def state_dict(self) -> list[Tree | None]:
        return [env.state_dict() if isinstance(env, Stateful) else None for env in self.envs]

    def load_state_dict(self, states: list[Tree]) -> None:
        for k, (env, state) in enumerate(zip(self.envs, states, strict=True)):
            self.busy[0] = self.first + k
            env.load_state_dict(state)  # type: ignore[attr-defined]
        self.busy[0] = -1

    def close(self) -> None:
        for env in self.envs:
            env.close()
        self.envs = []


def _show(view: View, into: View) -> None:
    for name, obs in into.obs.items():
        obs.copy_(view.obs[name])
        if into.legal[name].shape[-1]:
            into.legal[name].copy_(view.legal[name])
    if into.state.shape[-1]:
        into.state.copy_(view.state)
