"""Pictures: which observations are, stacked convolutions against plain ones, and that algorithms learn from them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

import shoal
from shoal import optim
from shoal.algorithms.ppo import PPO
from shoal.algorithms.value_decomposition import ValueDecomposition
from shoal.evaluate import evaluate
from shoal.nets.conv import Block, Conv, Eyes, flat, real
from shoal.nets.dense import AgentNet, orthogonal
from shoal.replay import Fresh
from shoal.train import train
from shoal.types import Discrete, EnvSpec, Groups, GroupSpec, ShoalError, Step, View


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("shape", "picture"),
    [((84, 84, 4), True), ((6, 7, 2), True), ((5, 5, 1), True), ((3, 3, 2), False), ((30,), False)],
)
def test_three_axes_and_five_by_five_make_a_picture(shape: tuple[int, ...], picture: bool) -> None:
    assert Block(shape).picture == picture
    assert bool(len(Eyes((Block(shape),), "auto", 1, generator()).convs)) == picture
    assert not len(Eyes((Block(shape),), "none", 1, generator()).convs)


@pytest.mark.parametrize(("side", "features"), [(5, 32), (7, 9 * 32), (12, 4 * 32), (36, 64), (84, 49 * 64)])
def test_layers_follow_from_the_size(side: int, features: int) -> None:
    assert Conv((side, side, 3), "auto", 1, generator()).size == features


def test_convolutions_are_torchs() -> None:
    conv = Conv((40, 37, 3), "auto", 1, generator())
    x = torch.rand(1, 2, 3, 40, 37, 3)
    plain = x.flatten(0, 2).permute(0, 3, 1, 2)
    for (weight, bias), stride in zip(conv.layers, (4, 2, 1), strict=True):
        plain = functional.conv2d(plain, weight[0], bias[0], stride).relu()
    assert torch.allclose(conv(x)[0], plain.flatten(1).view(2, -1), atol=1e-5)


@pytest.mark.parametrize("side", [6, 36])
def test_stacked_weights_that_are_equal_act_as_shared_ones(side: int) -> None:
    block = Block((side, side, 2), 1)
    shared, stacked = (
        AgentNet(3, (block.size, 16, 4), shared=kind, identity=False, generator=generator(), blocks=(block,))
        for kind in (True, False)
    )
    with torch.no_grad():
        for own, one in zip(stacked.parameters(), shared.parameters(), strict=True):
            own.copy_(one.expand_as(own))
    x = torch.randint(256, (5, 3, block.size), dtype=torch.uint8, generator=generator())
    assert torch.allclose(shared(x), stacked(x), atol=1e-5)
    grads = [torch.autograd.grad(net(x).square().sum(), list(net.parameters())) for net in (shared, stacked)]
    for one, own in zip(*grads, strict=True):
        assert one.abs().max() > 0
        assert torch.allclose(own.sum(0), one[0], rtol=1e-4, atol=1e-3 * float(one.abs().max()))


def test_some_of_stacked_networks() -> None:
    block = Block((6, 6, 2))
    net = AgentNet(3, (block.size, 8, 4), shared=False, generator=generator(), blocks=(block,))
    x = torch.rand(5, 3, block.size)
    assert torch.allclose(net(x[:, 1:2], slice(1, 2)), net(x)[:, :, 1:2], atol=1e-6)


def test_bytes_are_numbers_between_0_and_1_and_other_columns_stay() -> None:
    blocks = (Block((2,)), Block((6, 6, 1), 2), Block((3,)))
    eyes = Eyes(blocks, "auto", 1, generator())
    pictures = torch.randint(256, (4, 2, 6, 6, 1), dtype=torch.uint8)
    before, after = torch.randn(4, 2), torch.randn(4, 3)
    out = eyes(torch.cat([before, real(flat(pictures, 1)), after], -1).unsqueeze(0))[0]
    assert out.shape == (4, eyes.size)
    assert torch.equal(out[:, :2], before)
    assert torch.equal(out[:, -3:], after)
    alone = Eyes((Block((6, 6, 1), 2),), "auto", 1, generator())  # the same weights
    assert torch.allclose(out[:, 2:-3], alone(flat(pictures, 1).unsqueeze(0))[0], atol=1e-6)


def test_orthogonal_convolutions() -> None:
    block = Block((8, 8, 2))
    net = AgentNet(2, (block.size, 8, 4), shared=False, generator=generator(), blocks=(block,))
    orthogonal(net, 0.01, generator())
    for weight, bias in net.eyes.convs[0].layers:
        rows = weight[1].flatten(1)
        assert torch.allclose(rows @ rows.T, 2 * torch.eye(len(rows)), atol=1e-5)
        assert not bias.any()


def test_pictures_too_small_for_the_layers_that_were_asked_for() -> None:
    with pytest.raises(ShoalError, match=r"net\.conv"):
        Eyes((Block((20, 20, 3)),), "large", 1, generator())


class Quadrant:
    """Each agent sees a dark picture with one lit quadrant, and earns 1 for naming it; one step an episode."""

    def __init__(self, num_envs: int, agents: int = 2, side: int = 6) -> None:
        self.num_envs, self.agents, self.side = num_envs, agents, side
        names = tuple(f"eye_{i}" for i in range(agents))
        self.spec = EnvSpec({"eye": GroupSpec(names, (side, side, 1), Discrete(4), image=True)})
        self.random = torch.Generator()

    def _view(self) -> View:
        lead, half = (self.num_envs, self.agents), self.side // 2
        self.lit = torch.randint(4, lead, generator=self.random)
        tiles = functional.one_hot(self.lit, 4).view(*lead, 2, 2)
        obs = tiles.repeat_interleave(half, 2).repeat_interleave(half, 3).unsqueeze(-1) * 200
        obs = obs + torch.randint(50, obs.shape, generator=self.random)
        return View(
            {"eye": obs.to(torch.uint8)}, {"eye": torch.zeros(*lead, 0, dtype=torch.bool)}, torch.zeros(lead[0], 0)
        )

    def reset(self, seed: int | None = None) -> View:
        if seed is not None:
            self.random.manual_seed(seed)
        self.view = self._view()
        return self.view

    def step(self, actions: Groups) -> Step:
        right = (actions["eye"] == self.lit).float()
        yes = torch.ones_like(right, dtype=torch.bool)
        before, self.view = self.view, self._view()
        return Step(self.view, before, {"eye": right}, {"eye": yes}, {"eye": yes}, yes[:, 0])

    def close(self) -> None:
        """Nothing is open."""


LEARN = [
    ("mappo", {"batch_steps": 256, "epochs": 4, "lr": 2e-3}),
    ("ippo", {"batch_steps": 256, "epochs": 4, "lr": 2e-3, "net": {"shared": False, "memory": 8}}),
    ("qmix", {"warmup": 256, "update_every": 16, "epsilon_steps": 2000, "lr": 2e-3}),
]


@pytest.mark.parametrize(("name", "settings"), LEARN)
def test_which_quadrant_is_lit_is_learned(name: str, settings: dict[str, Any]) -> None:
    env = Quadrant(16)
    algorithm = shoal.build(name, env.spec, **settings)
    assert evaluate(algorithm, env, 64).agent_return.mean() < 0.6
    for progress in train(algorithm, env, 6000):
        if progress.env_steps % 1024 == 0 and evaluate(algorithm, env, 64).agent_return.mean() > 0.95:
            return
    assert evaluate(algorithm, env, 64).agent_return.mean() > 0.95


@pytest.mark.parametrize("value", ["own", "central", "agent"])
def test_values_of_pictures_have_eyes_and_learn_with_them(value: str) -> None:
    env = Quadrant(8, agents=3)
    algorithm = shoal.build("mappo", env.spec, value=value, batch_steps=64, epochs=2, net={"memory": 4})
    assert isinstance(algorithm, PPO)
    before = {name: p.clone() for name, p in algorithm.modules[1].named_parameters() if "eyes" in name}
    assert before
    next(train(algorithm, env, 64))
    after = dict(algorithm.modules[1].named_parameters())
    assert all(not torch.equal(p, after[name]) for name, p in before.items())


@pytest.mark.parametrize("memory", [0, 4])
def test_a_mixer_without_a_state_sees_pictures_through_convolutions(memory: int) -> None:
    env = Quadrant(8, side=36)
    net = {"memory": memory}
    algorithm = shoal.build("qmix", env.spec, warmup=8, batch_size=8, update_every=8, sequence=3 * memory // 4, net=net)
    assert isinstance(algorithm, ValueDecomposition)
    assert algorithm.eyes.size == 2 * 64
    before = algorithm.eyes.convs[0].layers[0][0].clone()
    for _ in train(algorithm, env, 64):
        pass
    assert algorithm.updates > 1
    assert not torch.equal(before, algorithm.eyes.convs[0].layers[0][0])


def test_rollouts_keep_bytes_and_pieces_shrink() -> None:
    env = Quadrant(2, agents=2, side=84)
    algorithm = shoal.build("ippo", env.spec, batch_steps=8)
    assert isinstance(algorithm, PPO)
    progress = next(train(algorithm, env, 8))
    assert progress.collector.rollout.groups["eye"].obs.dtype == torch.uint8
    assert progress.experience.num_bytes < 8 * 2 * 2 * 84 * 84 + 1000
    assert algorithm.cut.most * 2 * 2 * 4 * 84 * 84 < 2**28


def test_rollouts_that_do_not_fit_are_refused_with_what_would() -> None:
    spec = EnvSpec({"eye": GroupSpec(("a",), (1000, 1000, 3), Discrete(2), image=True)})
    with pytest.raises(ShoalError, match="set batch_steps to"):
        Fresh(spec, 1024, 10_000)


def test_flat_algorithms_refuse_large_pictures_and_read_small_ones() -> None:
    with pytest.raises(ShoalError, match="no convolutions"):
        shoal.build("maddpg", EnvSpec({"eye": GroupSpec(("a",), (84, 84, 3), Discrete(2), image=True)}))
    env = Quadrant(4)
    algorithm = shoal.build("maddpg", env.spec, warmup=4, batch_size=4)
    assert [progress.updates for progress in train(algorithm, env, 16)][-1] > 4


def test_pistonball_makes_an_update() -> None:
    """Twenty agents that see 457x120 pixels."""
    pytest.importorskip("pygame")
    pytest.importorskip("pymunk")
    env = shoal.make("pettingzoo/butterfly/pistonball", 1)
    algorithm = shoal.build("ippo", env.spec, batch_steps=2, epochs=1, net={"shared": True})
    assert isinstance(algorithm, PPO)
    vector = optim.join([p.detach() for p in algorithm.modules[0].parameters()])
    next(train(algorithm, env, 2))
    assert not torch.equal(vector, optim.join([p.detach() for p in algorithm.modules[0].parameters()]))
    assert math.isfinite(float(vector.sum()))
    env.close()
