"""Recurrent units, mixers, targets, sequence replay, and Q-learning on games whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import shoal
from shoal.nets.dense import AgentNet
from shoal.nets.gru import Gru, plain
from shoal.nets.mixers import Monotonic
from shoal.replay import Replay, SumTree, allocate
from shoal.returns import n_step
from shoal.types import Box, Discrete, EnvSpec, GroupSpec, ShoalError, View

SPEC = EnvSpec({"a": GroupSpec(("a_0", "a_1"), (3,), Discrete(4), masked=True)})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gru_is_torchs() -> None:
    ours, torchs = Gru(5, 8, 1, generator()).double(), torch.nn.GRU(5, 8).double()
    with torch.no_grad():
        torchs.weight_ih_l0.copy_(ours.input_weight[0].T)
        torchs.weight_hh_l0.copy_(ours.memory_weight[0].T)
        torchs.bias_ih_l0.copy_(ours.input_bias[0, 0])
        torchs.bias_hh_l0.copy_(ours.memory_bias[0, 0])
    x, memory = torch.randn(6, 7, 5).double(), torch.randn(1, 7, 8).double()
    out = ours(x.unsqueeze(0), memory, torch.ones(6, 7, dtype=torch.bool))
    assert torch.allclose(out[0], torchs(x, memory)[0])


@pytest.mark.parametrize("copies", [1, 3])
def test_compiled_gru_is_the_plain_one_with_its_gradients(copies: int) -> None:
    keep = torch.rand(6, 7, generator=generator()) < 0.7

    def results(compiled: bool) -> list[Tensor]:
        net = Gru(5, 8, copies, generator())
        g = generator(1)
        x = torch.randn(copies, 6, 7, 5, generator=g).requires_grad_()
        memory = torch.randn(copies, 7, 8, generator=g).requires_grad_()
        if compiled:
            out = net(x, memory, keep)
        else:
            drive = torch.baddbmm(net.input_bias, x.flatten(1, 2), net.input_weight).unflatten(1, (6, 7))
            out = plain(drive, memory, net.memory_weight, net.memory_bias, keep)
        (out * torch.randn(out.shape, generator=g)).sum().backward()
        return [out, *(p.grad for p in (x, memory, *net.parameters()) if p.grad is not None)]

    for one, other in zip(results(True), results(False), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_unroll_is_step_after_step_with_memory_zeroed_between_episodes(shared: bool) -> None:
    net = AgentNet(3, (5, 8, 4), shared=shared, generator=generator(), memory=6)
    x, memory = torch.randn(7, 2, 3, 5), torch.randn(2, 3, 6)
    ended = torch.rand(7, 2, generator=generator()) < 0.4
    assert ended.any()
    out, after = net.unroll(x, memory, ended)
    following = net.foresee(x + 1, out, after, ended)
    for t in range(7):
        q, memory = net.step(x[t], memory)
        assert torch.allclose(out[t], q, atol=1e-5)
        assert torch.allclose(after[t], memory, atol=1e-5)
        anew = net.step(x[t] + 1, memory)[0]
        for env in range(2):
            if ended[t, env] or t == 6:
                assert torch.allclose(following[t, env], anew[env], atol=1e-5)
            else:
                assert torch.equal(following[t, env], out[t + 1, env])
        memory = memory * ~ended[t].view(-1, 1, 1)


def test_the_monotonic_mixer_never_falls_with_an_agents_value() -> None:
    mixer = Monotonic(3, 5, 8, 16, generator())
    q, state = torch.randn(50, 3, requires_grad=True), torch.randn(50, 5)
    (slope,) = torch.autograd.grad(mixer(q, q, state, q).sum(), q)
    assert (slope >= 0).all()
    assert (slope > 1e-4).any()


def test_targets_of_many_rewards_stop_at_ends() -> None:
    reward, value = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([10.0, 20.0, 40.0, 80.0])
    no = torch.zeros(4, dtype=torch.bool)
    assert n_step(reward, no, no, value, 0.5, 3).tolist() == [1 + 1 + 1 + 5, 2 + 2 + 2 + 10]
    cut = torch.tensor([False, True, False, False])
    assert n_step(reward, no, cut, value, 0.5, 3).tolist() == [1 + 1 + 5, 2 + 10]
    assert n_step(reward, cut, cut, value, 0.5, 3).tolist() == [1 + 1, 2]


def replay(**settings: object) -> Replay:
    arguments = {"capacity": 20, "batch_size": 64, "update_every": 1000, "warmup": 0, "length": 3, **settings}
    return Replay(SPEC, 2, generator=generator(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("priority", [0.0, 0.6])
def test_sequences_follow_time_in_one_environment_also_round_the_ring(priority: float) -> None:
    ring = replay(priority=priority)
    rollout = allocate(SPEC, (1, 2), {})
    for t in range(27):
        rollout.groups["a"].reward[:] = torch.tensor([[[t, t], [1000 + t, 1000 + t]]])
        list(ring.add(rollout))
    first = ring.sample().groups["a"].reward[..., 0]
    assert torch.equal(first[1:], first[:-1] + 1)
    assert {int(x) % 1000 for x in first[0]} == set(range(17, 25))  # of the 10 rows kept, 8 start a sequence


def test_priorities_are_drawn_in_proportion() -> None:
    priorities = SumTree(5, 1.0)
    priorities.set(torch.arange(5), torch.tensor([1.0, 0.0, 3.0, 0.0, 4.0]))
    slots, probability = priorities.sample(8000, generator())
    assert torch.bincount(slots, minlength=5).tolist() == pytest.approx([1000, 0, 3000, 0, 4000], abs=5)
    assert torch.allclose(probability, torch.tensor([1.0, 0, 3, 0, 4])[slots] / 8)


def test_illegal_actions_are_never_taken() -> None:
    algorithm = shoal.build("qmix", SPEC)
    legal = torch.zeros(40, 2, 4, dtype=torch.bool)
    legal[..., 2] = True
    view = View({"a": torch.randn(40, 2, 3)}, {"a": legal}, torch.zeros(40, 0))
    for explore in (True, False):
        chosen, _ = algorithm.act(view, algorithm.initial_memory(40), explore=explore)
        assert (chosen["a"] == 2).all()


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(ShoalError, match="discrete"):
        shoal.build("qmix", EnvSpec({"a": GroupSpec(("a_0",), (3,), Box(2))}))
    with pytest.raises(ShoalError, match="sum or mean"):
        shoal.build("vdn", SPEC, reward="own")


@pytest.mark.parametrize(("name", "best"), [("vdn", 7.0), ("qmix", 8.0)])
def test_the_two_step_game_tells_vdn_from_qmix(name: str, best: float) -> None:
    env = shoal.make("matrix/two_step", num_envs=8)
    settings = {"epsilon_end": 1.0, "update_every": 8, "lr": 1e-3, "tau": 0.01, "target_every": 1}
    algorithm = shoal.build(name, env.spec, **settings)
    for _ in shoal.train(algorithm, env, total_steps=15_000):
        pass
    assert shoal.evaluate(algorithm, env, episodes=8).agent_return.mean() == best


def test_a_recurrent_agent_learns_to_remember() -> None:
    env = shoal.make("memory/recall", num_envs=16, cues=2, delay=2)
    settings = {"lr": 2e-3, "update_every": 64, "batch_size": 32, "epsilon_steps": 20_000, "sequence": 8}
    algorithm = shoal.build("iql", env.spec, net={"memory": 32, "hidden": (32,)}, **settings)
    for _ in shoal.train(algorithm, env, total_steps=40_000):
        pass
    assert shoal.evaluate(algorithm, env, episodes=160).agent_return.mean() >= 0.95
