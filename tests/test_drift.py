"""tutorial/drift: the tutorial's dynamics, and what known controllers earn there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import shoal
from shoal.types import ShoalError


def team_return(controller: Callable[[Tensor], Tensor], seed: int = 0) -> float:
    """Mean over 200 episodes of two agents' summed rewards."""
    env = shoal.make("tutorial/drift", 200)
    obs, total = env.reset(seed).obs["agent"], torch.zeros(200)
    for _ in range(200):
        step = env.step({"agent": controller(obs)})
        total += step.reward["agent"].sum(1)
        obs = step.view.obs["agent"]
    assert step.ended.all()
    return float(total.mean())


def test_reference_controllers() -> None:
    generator = torch.Generator().manual_seed(0)
    assert team_return(lambda obs: -obs[..., :2].sign()) == pytest.approx(399.5, abs=1.0)
    assert team_return(lambda obs: torch.zeros(200, 2, 2)) == pytest.approx(270, abs=15)
    uniform = team_return(lambda obs: torch.rand(200, 2, 2, generator=generator) * 2 - 1)
    assert uniform == pytest.approx(250, abs=15)
    assert team_return(lambda obs: torch.ones(200, 2, 2)) == pytest.approx(-319, abs=10)


def test_dynamics() -> None:
    env = shoal.make("tutorial/drift", 500, n_agents=3, state_dim=5, action_dim=1)
    before = env.reset(1).obs["agent"]
    push = torch.full((500, 3, 1), 0.5)
    step = env.step({"agent": push})
    moved = step.successor.obs["agent"] - before - 0.05
    assert moved.mean().abs() < 0.005
    assert moved.std().item() == pytest.approx(0.1, rel=0.03)
    inside = step.successor.obs["agent"][..., 0].abs() < 2
    assert torch.equal(step.reward["agent"], torch.where(inside, 1.0, -1.0))


def test_what_was_returned_does_not_change() -> None:
    env = shoal.make("tutorial/drift", 2)
    view = env.reset(0)
    kept = view.obs["agent"].clone()
    for _ in range(5):
        env.step({"agent": torch.ones(2, 2, 2)})
    assert torch.equal(view.obs["agent"], kept)


def test_the_time_limit_is_a_truncation() -> None:
    env = shoal.make("tutorial/drift", 1, max_steps=3)
    env.reset(0)
    steps = [env.step({"agent": torch.zeros(1, 2, 2)}) for _ in range(3)]
    assert [bool(s.ended) for s in steps] == [False, False, True]
    assert not any(s.terminated["agent"].any() for s in steps)
    assert not torch.equal(steps[-1].successor.obs["agent"], steps[-1].view.obs["agent"])


def test_seeds() -> None:
    env = shoal.make("tutorial/drift", 2)
    one, two = env.reset(5).obs["agent"], env.reset(5).obs["agent"]
    assert torch.equal(one, two)
    assert not torch.equal(one, env.reset(6).obs["agent"])


@pytest.mark.parametrize("mode", ["individual", "cooperative", "competitive"])
def test_reward_modes(mode: str) -> None:
    envs = [shoal.make("tutorial/drift", 50, n_agents=3, reward_mode=m) for m in ("individual", mode)]
    for env in envs:
        env.reset(0)
    push = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0)) * 3
    for _ in range(30):
        own, shared = (env.step({"agent": push}).reward["agent"] for env in envs)
    assert own.min() == -1  # both outcomes occur
    if mode == "cooperative":
        assert torch.allclose(shared, own.mean(1, keepdim=True).expand_as(own))
    elif mode == "competitive":
        others = (own.sum(1, keepdim=True) - own) / 2
        assert torch.allclose(shared, own - others)
        assert torch.allclose(shared.sum(1), torch.zeros(50), atol=1e-6)
    else:
        assert torch.equal(shared, own)


def test_bad_arguments() -> None:
    with pytest.raises(ShoalError, match="reward_mode is individual"):
        shoal.make("tutorial/drift", reward_mode="team")
    with pytest.raises(ShoalError, match="at least 2 agents"):
        shoal.make("tutorial/drift", n_agents=1, reward_mode="competitive")
    with pytest.raises(ShoalError, match="state_dim must be at least 1"):
        shoal.make("tutorial/drift", state_dim=0)


def test_render() -> None:
    env = shoal.make("tutorial/drift", 1)
    env.reset(0)
    picture = env.render()
    assert picture.dtype == np.uint8
    assert picture.shape == (120, 480, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
