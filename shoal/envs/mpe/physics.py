"""The physics of the particle world, compiled with numba for many environments at once.

The order of a step is that of the package `mpe2`: forces from the old positions, then positions, then velocities.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from shoal import pointers, roll
from shoal.envs.common import pcg64
from shoal.envs.mpe import world
from shoal.envs.mpe.world import World, distance
from shoal.jit import compiled, jit, version
from shoal.roll import begin, finish
from shoal.types import ShoalError

DT = 0.1
DAMPING = 0.25
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3
MOVES = 5  # stay, left, right, down, up


class Buffers(NamedTuple):
    """What a step writes."""

    obs: NDArray[np.float32]  # [env, state]: every agent's observation, side by side
    next_obs: NDArray[np.float32]  # the same before an automatic reset
    reward: NDArray[np.float32]  # [env, agent]
    terminated: NDArray[np.bool_]  # [env]
    ended: NDArray[np.bool_]  # [env]
    steps: NDArray[np.int64]  # [env]: of the episode so far


# The scenario's functions are chosen by the type of its Params: compiled once a scenario, and cached on disk, which
# closures over compiled functions would not be.
SCENARIOS: dict[type, ModuleType] = {}
OPTIONS: dict[str, Any] = {
    "jit_options": {"_nrt": False, "forceinline": True, "error_model": "numpy"},
    "strict": False,  # a scenario may annotate its functions
}


def reset(p: Any, w: World) -> None: ...
def reward(p: Any, w: World, out: Any) -> None: ...
def observe(p: Any, w: World, i: int, out: Any) -> None: ...
def terminal(p: Any, w: World) -> bool:
    return False


def _scenario_function(p: Any, name: str) -> Callable[..., Any]:
    function = getattr(SCENARIOS[p.instance_class], name, terminal)
    return getattr(function, "py_func", function)


@overload(reset, **OPTIONS)
def _(p, w):  # type: ignore[no-untyped-def]
    return _scenario_function(p, "reset")


@overload(reward, **OPTIONS)
def _(p, w, out):  # type: ignore[no-untyped-def]
    return _scenario_function(p, "reward")


@overload(observe, **OPTIONS)
def _(p, w, i, out):  # type: ignore[no-untyped-def]
    return _scenario_function(p, "observe")


@overload(terminal, **OPTIONS)
def _(p, w):  # type: ignore[no-untyped-def]
    return _scenario_function(p, "terminal")


@compiled
def _unit(x):  # type: ignore[no-untyped-def]
    """From [-1, 1] to [0, 1]."""
    return min(max(np.float64(x) * 0.5 + 0.5, 0.0), 1.0)


@compiled
def _decode(w, discrete, box, continuous):  # type: ignore[no-untyped-def]
    """Actions into forces and words, as mpe2's `_set_action`."""
    for i in range(w.vel.shape[0]):
        w.force[i, 0] = w.force[i, 1] = 0.0
        for c in range(w.comm.shape[1]):
            w.comm[i, c] = 0.0
        if continuous:
            k = w.box_start[i]
            if w.movable[i]:  # stay, left, right, down, up
                w.force[i, 0] = (_unit(box[k + 2]) - _unit(box[k + 1])) * w.accel[i]
                w.force[i, 1] = (_unit(box[k + 4]) - _unit(box[k + 3])) * w.accel[i]
                k += MOVES
            if not w.silent[i]:
                for c in range(w.comm.shape[1]):
                    w.comm[i, c] = _unit(box[k + c])
            continue
        action = discrete[i]
        if w.movable[i]:
            move = action % MOVES
            action //= MOVES
            if move == 1 or move == 2:
                w.force[i, 0] = w.accel[i] * (2 * move - 3)
            elif move == 3 or move == 4:
                w.force[i, 1] = w.accel[i] * (2 * move - 7)
        if not w.silent[i]:
            w.comm[i, action] = 1.0


@compiled
def _collide(w):  # type: ignore[no-untyped-def]
    """Contact forces between every pair that collides."""
    agents = w.vel.shape[0]
    for a in range(agents):
        for b in range(a + 1, w.pos.shape[0]):
            if not (w.collide[a] and w.collide[b]):
                continue
            dist = distance(w.pos, a, b)
            depth = (w.size[a] + w.size[b] - dist) / CONTACT_MARGIN
            if depth < -50.0 or dist == 0.0:  # a softplus below 2e-22: no force
                continue
            penetration = max(depth, 0.0) + np.log1p(np.exp(-abs(depth)))
            scale = CONTACT_FORCE / dist * (penetration * CONTACT_MARGIN)
            for d in range(2):
                push = (w.pos[a, d] - w.pos[b, d]) * scale
                if w.movable[a]:
                    w.force[a, d] += push
                if b < agents and w.movable[b]:
                    w.force[b, d] -= push


@compiled
def _integrate(w):  # type: ignore[no-untyped-def]
    for i in range(w.vel.shape[0]):
        if not w.movable[i]:
            continue
        for d in range(2):
            w.pos[i, d] += w.vel[i, d] * DT
            w.vel[i, d] = w.vel[i, d] * (1 - DAMPING) + w.force[i, d] * DT
        speed = np.sqrt(w.vel[i, 0] ** 2 + w.vel[i, 1] ** 2)
        if speed > w.max_speed[i]:
            w.vel[i, 0] = w.vel[i, 0] / speed * w.max_speed[i]
            w.vel[i, 1] = w.vel[i, 1] / speed * w.max_speed[i]


@compiled
def _observe_all(p, w, out):  # type: ignore[no-untyped-def]
    for i in range(w.vel.shape[0]):
        observe(p, w, i, out[w.obs_start[i] : w.obs_start[i + 1]])


@compiled
def _restart(p, w, out):  # type: ignore[no-untyped-def]
    for i in range(w.vel.shape[0]):
        w.vel[i, 0] = w.vel[i, 1] = 0.0
        for c in range(w.comm.shape[1]):
            w.comm[i, c] = 0.0
    reset(p, w)
    _observe_all(p, w, out)


@compiled
def one(w, e):  # type: ignore[no-untyped-def]
    """Environment e of all of them."""
    return World(
        w.pos[e], w.vel[e], w.comm[e], w.goal[e], w.rng[e], w.force[e], w.order[e], w.size, w.collide, w.movable,
        w.silent, w.accel, w.max_speed, w.obs_start, w.box_start,
    )  # fmt: skip


def kernel_of(scenario: ModuleType) -> Callable[..., None]:
    """The compiled step of a scenario over a range of environments; with `start`, their reset.

    Raises:
        ShoalError: the module lacks something a scenario has.
    """
    for needed in ("Params", "layout", "reset", "reward", "observe"):
        if not hasattr(scenario, needed):
            raise ShoalError(f"the scenario {scenario.__name__} has no {needed}")
    SCENARIOS[scenario.Params] = scenario
    return _kernel(scenario.__name__, version(sys.modules[__name__], pcg64, world, scenario, roll, pointers))


@cache
def _kernel(scenario: str, version: str) -> Callable[..., None]:
    """`advance` over environments lo..hi-1, which starts them (all with `start`, else those whose episode ended).

    See `shoal.roll` for how many steps.

    One function, not two: compiling takes seconds and megabytes. numba's cache looks at the file of this function
    alone; `version`, a hash of every file it is built from, makes a changed scenario compile again. Each scenario has
    its own files in the cache: numba loads such a file with the types in it, and those of somebody's own module are not
    to be had wherever another scenario is used.
    """

    def advance(  # type: ignore[no-untyped-def]
        lo, hi, roll, start, p, worlds, buffers, max_cycles, discrete, box, continuous
    ):
        version  # noqa: B018
        for t in range(roll[0]):
            begin(roll, lo, hi, t)
            for e in range(lo, hi):
                w = one(worlds, e)
                if not start:
                    _decode(w, discrete[e], box[e], continuous)
                    _collide(w)
                    _integrate(w)
                    buffers.steps[e] += 1
                    reward(p, w, buffers.reward[e])
                    _observe_all(p, w, buffers.next_obs[e])
                    truncated = buffers.steps[e] >= max_cycles
                    buffers.terminated[e] = not truncated and terminal(p, w)
                    buffers.ended[e] = truncated or buffers.terminated[e]
                if start or buffers.ended[e]:
                    buffers.steps[e] = 0
                    _restart(p, w, buffers.obs[e])
                else:
                    for k in range(buffers.obs.shape[1]):
                        buffers.obs[e, k] = buffers.next_obs[e, k]
            finish(roll, lo, hi, t)

    advance.__qualname__ += f".{scenario}"
    return jit(_nrt=False)(advance)
