"""The warehouse: the package `rware`, played beside it from the same seeds, is the judge."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import shoal
from shoal.envs import rware
from shoal.envs.common.kernel_env import KernelEnv
from shoal.types import ShoalError

package = pytest.importorskip("rware.warehouse")

CROWD = """
    g......
    .xx.xx.
    .xx.xx.
    .......
    .xx.xg.
"""
LADDER = """
    .....................
    xxxxxxxxxxxxxxxxxxxxx
    g....................
"""
OPEN_FLOOR = "\n".join(["." * 9] * 4 + ["..xx.xxg."] + ["." * 9] * 4)
PICTURE = {"observation_type": "IMAGE", "image_observation_layers": ("SHELVES", "REQUESTS", "AGENTS", "ACCESSIBLE")}


def both(name: str, num_envs: int = 3, **arguments: Any) -> tuple[KernelEnv, list[Any]]:
    """The same warehouses, here and there."""
    env = rware.make(name, num_envs, **arguments)
    given: dict[str, Any] = {"shelf_columns": 3, "msg_bits": 0, "max_inactivity_steps": None, "max_steps": 500}
    given |= rware.defaults(name) | arguments
    for key, kind in (("reward_type", package.RewardType), ("observation_type", package.ObservationType)):
        given[key] = kind[given[key]]
    if "image_observation_layers" in given:
        given["image_observation_layers"] = [package.ImageLayer[n] for n in given["image_observation_layers"]]
    return env, [package.Warehouse(**given) for _ in range(num_envs)]


def flat(obs: Any) -> np.ndarray:
    """A package's observation as one row of numbers, in gymnasium's order."""
    if isinstance(obs, dict):
        return np.concatenate([np.asarray(obs["features"]), np.asarray(obs["image"]).ravel()])
    return np.asarray(obs).ravel()


def assert_same_state(env: KernelEnv, e: int, other: Any) -> None:
    """Every agent, every shelf and every request."""
    p, w = env.params, env.world
    margin = max(p.reach, 1)

    def cell(thing: Any) -> int:
        return int((thing.y + margin) * p.stride + thing.x + margin)

    assert w.cell[e].tolist() == [cell(a) for a in other.agents]
    assert w.direction[e].tolist() == [a.dir.value for a in other.agents]
    assert w.load[e].tolist() == [a.carrying_shelf.id if a.carrying_shelf else 0 for a in other.agents]
    assert w.delivered[e].tolist() == [a.has_delivered for a in other.agents]
    assert w.place[e].tolist() == [cell(s) for s in other.shelfs]
    assert w.requested[e].tolist() == [s in other.request_queue for s in other.shelfs]


def acts(random: np.random.Generator, shape: tuple[int, ...], size: int) -> np.ndarray:
    """Mostly forward, so that agents meet; often enough a shelf is taken up."""
    moves = random.choice(5, shape, p=[0.05, 0.6, 0.1, 0.1, 0.15])
    return moves + 5 * random.integers(0, size // 5, shape)


def play_both(env: KernelEnv, others: list[Any], steps: int, seed: int = 0) -> float:
    """Step both and compare all there is; the sum of rewards."""
    random = np.random.default_rng(seed)
    view = env.reset(seed)
    first = [other.reset(seed=seed + e)[0] for e, other in enumerate(others)]
    bits, size, total = env.params.msg_bits, env.size, 0.0
    shown = [np.stack([flat(o) for o in obs]) for obs in first]
    for _ in range(steps):
        assert np.array_equal(view.obs["agent"].flatten(2).numpy(), np.stack(shown))
        chosen = acts(random, (env.num_envs, env.spec.num_agents), size)
        step = env.step({"agent": torch.from_numpy(chosen)})
        for e, other in enumerate(others):
            codes = chosen[e]
            there = [[a % 5, *((a // 5) >> np.arange(bits) & 1)] for a in codes] if bits else codes
            obs, reward, over, _, _ = other.step(there)
            total += sum(reward)
            assert np.array_equal(step.successor.obs["agent"][e].flatten(1).numpy(), np.stack([flat(o) for o in obs]))
            assert step.reward["agent"][e].tolist() == reward
            assert bool(step.ended[e]) == over
            if over:
                obs, _ = other.reset()
            assert_same_state(env, e, other)
            shown[e] = np.stack([flat(o) for o in obs])
        assert not step.terminated["agent"].any()
        view = step.view
    return float(total)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tiny-2ag", {}),
        ("rware-tiny-4ag-v2", {"max_steps": 60}),
        ("rware-small-4ag-hard", {"reward_type": "GLOBAL"}),
        ("2s-1x3-3h-6ag-4req-twostage", {"max_inactivity_steps": 25}),
        ("tiny-8ag", {"msg_bits": 2, "normalised_coordinates": True}),
        ("tiny-4ag", {"layout": CROWD, "n_agents": 20, "msg_bits": 1, "reward_type": "TWO_STAGE"}),
        ("tiny-4ag", {"layout": CROWD, "n_agents": 12, "sensor_range": 2, "reward_type": "GLOBAL"}),
        ("tiny-4ag", {"layout": OPEN_FLOOR, "n_agents": 30, "request_queue_size": 2, "max_steps": 0}),
        ("tiny-4ag", {"layout": LADDER, "n_agents": 25, "sensor_range": 0}),
        ("rware-img-tiny-3ag", {"max_steps": 40}),
        ("rware-imgdict-Nd-2s-1x3-2h-3ag-2req-global", {}),
        ("rware-imgdict-1x3-2h-5ag", PICTURE | {"observation_type": "IMAGE_DICT"}),
    ],
)
def test_it_is_the_package_step_by_step(name: str, arguments: dict[str, Any]) -> None:
    env, others = both(name, **arguments)
    play_both(env, others, 130)
