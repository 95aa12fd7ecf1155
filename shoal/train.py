"""The training loop: a generator. Logging, evaluating, saving and stopping happen in the caller's for-loop."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from shoal.checkpoint import restore
from shoal.collect import LocalCollector
from shoal.types import Algorithm, Metrics, Scalable, ShoalError, Tree, VecEnv

FOLD_EVERY = 500  # updates
MEMBERS = ("spec", "initial_memory", "act", "experience", "update", "state_dict", "load_state_dict")
"""Of every `Algorithm`."""
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h


class Diverged(ShoalError):
    """A loss became NaN or infinite."""


class Progress:
    """Where training stands. One object for a whole training; `train` yields it after every rollout."""

    def __init__(self, algorithm: Algorithm, env: VecEnv, total_steps: int, seed: int) -> None:
        self.algorithm, self.env, self.total_steps = algorithm, env, total_steps
        self.experience = algorithm.experience(env.num_envs)
        self.seed = seed
        self.collector = LocalCollector(algorithm, env, self.experience.rollout_steps, _env_seed(seed))
        self.env_steps = 0
        self.previous_steps = 0
        self.seconds = 0.0
        """Time spent playing and learning, interruptions and the caller's own work excluded."""
        self.learning_seconds = 0.0
        self.updates = 0
        self._metrics: dict[str, list[Tensor]] = {}  # of the latest updates
        self._sums: dict[str, tuple[float, int]] = {}  # and, folded, of those before

    def move_to(self, env: VecEnv, algorithm: Algorithm | None = None) -> None:
        """Go on in another environment with the same groups of agents, from fresh starts; what is known stays known.

        Args:
            env: as many environments as before.
            algorithm: built for `env`, where agents, or things they see, are more or fewer: takes over what was learned
                (see `carry_over`) and learns on, from experience of its own. `self.algorithm` is this one then.

        Raises:
            ShoalError: its agents see or do something else, or there are more or fewer environments.
        """
        if env.num_envs != self.env.num_envs:
            raise ShoalError(f"training cannot go on in {env.num_envs} environments, and not {self.env.num_envs}")
        if env.spec != (spec := self.env.spec if algorithm is None else algorithm.spec):
            raise ShoalError(
                f"training cannot go on among other agents: {env.spec}, and not {spec}. Give move_to an algorithm that "
                "is built for them"
            )
        if algorithm is None:
            self._cut_all()
        else:
            carry_over(self.algorithm, algorithm)
            self.algorithm, self.experience = algorithm, algorithm.experience(env.num_envs)
        self.env = env
        seed = _env_seed(self.seed, self.env_steps)
        self.collector.enter(self.algorithm, env, self.experience.rollout_steps, seed)

    def _cut_all(self) -> None:
        self.experience.cut(torch.ones(self.env.num_envs, dtype=torch.bool))

    def every(self, steps: int) -> bool:
        """Whether this rollout passed a multiple of `steps` environment steps (or the end)."""
        passed = self.env_steps // steps > self.previous_steps // steps
        return passed or self.env_steps >= self.total_steps

    def record(self, metrics: dict[str, Tensor]) -> None:
        """Keep an update's metrics for `drain`; every few hundred are folded into sums, and must be finite."""
        self.updates += 1
        for name, value in metrics.items():
            self._metrics.setdefault(name, []).append(torch.as_tensor(value))  # numbers of one's own will do
        if self.updates % FOLD_EVERY == 0:
            self._fold()

    def _fold(self) -> None:
        self.check()
        for name, values in self._metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + float(torch.stack(values).double().sum()), count + len(values)
        self._metrics.clear()

    def check(self) -> None:
        """Refuse to go on from numbers that are none.

        Raises:
            Diverged: a metric of the latest updates is NaN or infinite.
        """
        for name, values in self._metrics.items():
            worst = torch.stack(values).sum()
            if not torch.isfinite(worst):
                raise Diverged(
                    f"{name} became {float(worst)} before step {self.env_steps:,}: the run stopped; what it "
                    "had saved is intact. A smaller --lr or --max-grad-norm usually helps; look for huge rewards too"
                )

    def drain(self) -> Metrics:
        """Means of the update's metrics and of finished episodes since the last call, and the split of time.

        Raises:
            Diverged: a metric is NaN or infinite.
        """
        self._fold()
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums.clear()
        means |= self._episodes()
        if self.seconds > 0:
            if self.collector.compiled:
                means["time_play"] = self.collector.acting_seconds / self.seconds
            else:
                means["time_env"] = self.collector.env_seconds / self.seconds
                means["time_act"] = self.collector.acting_seconds / self.seconds
            means["time_learn"] = self.learning_seconds / self.seconds
            means["steps_per_second"] = self.env_steps / self.seconds
        means["updates"] = float(self.updates)
        if self.collector.lost_episodes:  # since training began
            means["lost_episodes"] = float(self.collector.lost_episodes)
        return means

    def _episodes(self) -> Metrics:
        finished, self.collector.finished = self.collector.finished, []
        if not finished:
            return {}
        everyone = [torch.cat(list(returns.values()), dim=1) for returns, _ in finished]  # of as many as there were
        metrics = {
            "train_agent_return": [x.mean(1) for x in everyone],
            "train_team_return": [x.sum(1) for x in everyone],
        }
        metrics["train_length"] = [lengths.float() for _, lengths in finished]
        if len(names := self.env.spec.groups) > 1:
            metrics |= {f"train_return_{name}": [returns[name].mean(1) for returns, _ in finished] for name in names}
        return {name: float(torch.cat(values).mean()) for name, values in metrics.items()}

    def state_dict(self) -> Tree:
        """Everything a later process needs to go on as if nothing had happened."""
        return {
            "algorithm": self.algorithm.state_dict(),
            "experience": self.experience.state_dict(),
            "collector": self.collector.state_dict(),
            "env_steps": self.env_steps,
            "seconds": self.seconds,
            "clocks": [self.collector.env_seconds, self.collector.acting_seconds, self.learning_seconds],
            "updates": self.updates,
        }

    def load_state_dict(self, state: Tree) -> None:
        restore(self.algorithm, state["algorithm"], "what was learned")
        restore(self.experience, state["experience"], "what was kept to learn from")
        restore(self.collector, state["collector"], "where the environments were")
        if not state["collector"]["env"]:  # it starts new episodes: what was kept does not go on
            self._cut_all()
        self.env_steps = self.previous_steps = state["env_steps"]
        self.seconds, self.updates = state["seconds"], state["updates"]
        self.collector.env_seconds, self.collector.acting_seconds, self.learning_seconds = state["clocks"]


def carry_over(source: Algorithm, to: Algorithm) -> None:
    """`to` goes on from what `source` has learned, its optimisers included; numbers of agents and things may differ.

    Raises:
        ShoalError: what else differs, or the settings because of which weights fit one number of agents only.
    """
    before, after = source.spec.groups, to.spec.groups
    if list(before) != list(after):
        raise ShoalError(f"training cannot go on among other agents: {', '.join(after)}, and not {', '.join(before)}")
    for name, group in after.items():
        for what, now in group.kind.items():
            if now != (known := before[name].kind[what]):
                raise ShoalError(
                    f"training cannot go on among other agents: {what} of {name} are {now}, and not {known}; only the "
                    "numbers of agents, and of things in GroupSpec.parts, may differ"
                )
    if source.spec != to.spec:
        if not isinstance(source, Scalable):
            raise ShoalError(
                f"a {type(source).__name__} cannot go on with more or fewer agents: use one of the families of PPO, "
                "PQN or value decomposition (not within feudal or a league)"
            )
        if changes := source.tied():
            raise ShoalError(f"weights that fit any number of agents need other settings: set {', '.join(changes)}")
    to.load_state_dict(source.state_dict())


def _env_seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0]) % 2**31


def _keep_freed_memory() -> None:
    """Have the C library keep blocks up to 256 MiB for the next tensor.

    It would return those of megabytes to the system, which then has to fill the next one's pages with zeros: a fifth of
    the time of a large batch's gradient.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library than glibc
            mallopt = ctypes.CDLL(None).mallopt
            for setting in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
                mallopt(setting, 1 << 28)


def train(
    algorithm: Algorithm, env: VecEnv, total_steps: int, *, seed: int = 0, threads: int = 1, state: Tree | None = None
) -> Iterator[Progress]:
    """Alternate between playing and learning until `total_steps` environment steps; yields after every rollout.

    Args:
        algorithm: plays and learns; changed in place (until `move_to` puts another in its place).
        env: the environments it plays; reset with a seed derived from `seed`.
        total_steps: environment steps, counted over all environments.
        threads: CPU threads PyTorch uses from here on. Small networks are faster with 1, and on a busy machine many
            times so; 0 leaves the number as it is.
        state: of an earlier `Progress.state_dict()`, to continue from there.

    Raises:
        ShoalError: `algorithm` lacks something that all have.
    """
    if missing := [name for name in MEMBERS if not hasattr(algorithm, name)]:
        raise ShoalError(f"a {type(algorithm).__name__} is not an Algorithm yet: it has no {', '.join(missing)}")
    if threads:
        torch.set_num_threads(threads)
    # Adam's moments of silent units decay into denormal numbers, with which arithmetic is ten times slower
    torch.set_flush_denormal(True)
    progress = Progress(algorithm, env, total_steps, seed)
    _keep_freed_memory()
    if state is not None:
        progress.load_state_dict(state)
    while progress.env_steps < total_steps:
        start = time.perf_counter()
        rollout = progress.collector.collect()
        played = time.perf_counter()
        if progress.collector.cut.any():
            progress.experience.cut(progress.collector.cut)
        for batch in progress.experience.add(rollout):
            progress.record(progress.algorithm.update(batch))
        end = time.perf_counter()
        progress.learning_seconds += end - played
        progress.seconds += end - start
        progress.previous_steps = progress.env_steps
        progress.env_steps += rollout.num_steps
        yield progress
