"""A batch of compiled environments whose agents are alike: one group, discrete actions.

A game is a compiled kernel and its arrays; everything around them (buffers, threads, seeds, checkpoints) is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shoal import pointers, roll
from shoal.envs.common import pcg64
from shoal.envs.common.shares import Kernel, Shares
from shoal.jit import jit
from shoal.roll import ONCE, Roll
from shoal.types import Discrete, EnvSpec, Groups, GroupSpec, ShoalError, Step, Tree, View

Pixels = NDArray[np.uint8]
FILES = pcg64, roll, pointers
"""That kernels are compiled from, beside their own."""


class Buffers(NamedTuple):
    """What a kernel writes for environment e, in row e. `next_*` is the true successor; without, what to act on."""

    obs: NDArray[np.float32]  # [env, agent, obs], flat
    next_obs: NDArray[np.float32]
    state: NDArray[np.float32]  # [env, state]; width 0 without a global state
    next_state: NDArray[np.float32]
    legal: NDArray[np.bool_]  # [env, agent, action]; width 0 without masks
    next_legal: NDArray[np.bool_]
    reward: NDArray[np.float32]  # [env, agent]
    terminated: NDArray[np.bool_]  # [env, agent]
    alive: NDArray[np.bool_]  # [env, agent]; true unless the kernel says otherwise
    ended: NDArray[np.bool_]  # [env]
    steps: NDArray[np.int64]  # [env], since the episode began: the kernel's to count
    hears: NDArray[np.bool_]  # [env, listener or 1, speaker]; width 0 where all hear all
    next_hears: NDArray[np.bool_]


def compiled_kernel(function: Callable[..., None]) -> Kernel:
    """Compiles a kernel, and keeps the result on disk.

    See `jit`: it may call the random generator and `shoal.roll`, and nothing else of other files.
    """
    return jit(*FILES, _nrt=False)(function)


class KernelEnv:
    """Satisfies `VecEnv`.

    Args:
        kernel: see `compiled_kernel`; `kernel(lo, hi, roll, start, params, world, buffers, actions)` plays a
            `Roll` in the environments lo..hi-1, and begins a new episode in them (in all with `start`, else where one
            ended), writing what they show. `actions` is `[env, agent]` int64.
        params: the game's constants, for the kernel.
        world: a named tuple of arrays `[env, ...]`, all that changes in a game; `rng` `[env, 6]` uint64 holds the
            random streams (see `pcg64`), of which that of environment i is seeded with `seed + i`.
        group: the agents.
        state_size: width of the global state.
        hears: axes of `View.hears`, see `EnvSpec`.
        draw: `draw(params, world, index) -> uint8 [height, width, 3]`.
        threads: 0 chooses by the number of environments.
        least: environments that make a thread worth waking.
    """

    def __init__(
        self,
        kernel: Kernel,
        params: Any,
        world: Any,
        name: str,
        group: GroupSpec,
        num_envs: int,
        *,
        draw: Callable[[Any, Any, int], Pixels],
        state_size: int = 0,
        hears: tuple[int, int] = (0, 0),
        threads: int = 0,
        least: int = 256,
    ) -> None:
        assert isinstance(group.action, Discrete)
        self.kernel, self.params, self.world, self.draw = kernel, params, world, draw
        self.num_envs, self.name, self.size = num_envs, name, group.action.size
        self.spec = EnvSpec({name: group}, state_size, hears)
        self.shares = Shares(num_envs, threads, least)
        lead, legal = (num_envs, group.num_agents), group.action.size if group.masked else 0
        self.buffers = Buffers(
            obs=np.zeros((*lead, group.obs_size), np.float32),
            next_obs=np.zeros((*lead, group.obs_size), np.float32),
            state=np.zeros((num_envs, state_size), np.float32),
            next_state=np.zeros((num_envs, state_size), np.float32),
            legal=np.zeros((*lead, legal), np.bool_),
            next_legal=np.zeros((*lead, legal), np.bool_),
            reward=np.zeros(lead, np.float32),
            terminated=np.zeros(lead, np.bool_),
            alive=np.ones(lead, np.bool_),
            ended=np.zeros(num_envs, np.bool_),
            steps=np.zeros(num_envs, np.int64),
            hears=np.zeros((num_envs, *hears), np.bool_),
            next_hears=np.zeros((num_envs, *hears), np.bool_),
        )
        b = {field: torch.from_numpy(array) for field, array in self.buffers._asdict().items()}
        obs, next_obs = (b[field].view(*lead, *group.obs_shape) for field in ("obs", "next_obs"))
        self._view = View({name: obs}, {name: b["legal"]}, b["state"], b["hears"])
        successor = View({name: next_obs}, {name: b["next_legal"]}, b["next_state"], b["next_hears"])
        self.inputs = {name: torch.zeros(lead, dtype=torch.int64)}
        self.result = Step(
            self._view, successor, {name: b["reward"]}, {name: b["terminated"]}, {name: b["alive"]}, b["ended"]
        )
        self.seeded = False

    def _work(self, roll: Roll, start: bool) -> tuple[Any, ...]:
        return roll, start, self.params, self.world, self.buffers, self.inputs[self.name].numpy()

    def play(self, low: int, high: int, roll: Roll) -> None:
        """See `Compiled`."""
        self.kernel(low, high, *self._work(roll, start=False))

    def reset(self, seed: int | None = None) -> View:
        """Start every environment anew; without a seed the streams go on (or start from 0)."""
        if seed is not None or not self.seeded:
            self.world.rng[:] = pcg64.streams([(seed or 0) + i for i in range(self.num_envs)])
            self.seeded = True
        self.shares.run(self.kernel, *self._work(ONCE, start=True))
        return self._view

    def step(self, actions: Groups) -> Step:
        if not self.seeded:
            raise ShoalError("reset the environment before its first step")
        chosen = actions[self.name].numpy()
        if chosen.shape != self.buffers.reward.shape or chosen.min() < 0 or chosen.max() >= self.size:
            envs, agents = self.buffers.reward.shape
            raise ShoalError(f"actions of {self.name} must be [{envs}, {agents}] numbers in 0..{self.size - 1}")
        self.inputs[self.name].numpy()[:] = chosen
        self.shares.run(self.kernel, *self._work(ONCE, start=False))
        return self.result

    def render(self, index: int = 0) -> Pixels:
        """A picture `[height, width, 3]` of one environment."""
        return self.draw(self.params, self.world, index)

    def state_dict(self) -> Tree:
        shown = {n: getattr(self.buffers, n) for n in ("obs", "state", "legal", "steps", "hears")}
        arrays = {**self.world._asdict(), **shown}
        saved = {name: torch.from_numpy(_signed(array)) for name, array in arrays.items()}
        return {**saved, "seeded": self.seeded}

    def load_state_dict(self, state: Tree) -> None:
        for holder in (self.world, self.buffers):
            for name, array in holder._asdict().items():
                if name in state:
                    _signed(array)[...] = state[name].numpy()
        self.seeded = state["seeded"]

    def close(self) -> None:
        self.shares.close()


def _signed(array: NDArray[Any]) -> NDArray[Any]:
    """uint64 as int64, which checkpoints can hold: the same memory."""
    return array.view(np.int64) if array.dtype == np.uint64 else array
