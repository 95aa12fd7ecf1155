"""Stacked networks against plain ones, the written-out chain rule against autograd, the optimiser against torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_value_decomposition import SPEC
from torch import nn

import shoal
from shoal import optim, tree
from shoal.nets.dense import AgentNet
from shoal.optim import Adam
from shoal.types import Discrete, EnvSpec, GroupSpec


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("rows", [7, 300])
@pytest.mark.parametrize("columns", [1, 5, 16])
def test_stacked_equals_one_network_an_agent(rows: int, columns: int) -> None:
    net = AgentNet(3, (5, 8, 8, columns), shared=False, generator=generator()).double()
    net.mlp.layers = list(zip(net.mlp.stack[::2], net.mlp.stack[1::2], strict=True))
    x = torch.randn(rows, 3, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(rows, 3, columns, dtype=torch.float64)
    plain = []
    for agent in range(3):
        h = x[:, agent]
        for k, (weight, bias) in enumerate(net.mlp.layers):
            h = h @ weight[agent] + bias[agent]
            h = h.relu() if k < 2 else h
        plain.append(h)
    out, expected = net(x)[0], torch.stack(plain, 1)
    assert torch.allclose(out, expected)
    assert torch.allclose(net.linearize(x.detach())[0][0], expected)
    wanted = [x, *net.parameters()]
    for a, b in zip(torch.autograd.grad(out, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True):
        assert torch.allclose(a, b)


def test_shared_weights_tell_agents_apart_by_identity() -> None:
    net = AgentNet(3, (5, 8, 2), shared=True, generator=generator())
    assert net.mlp.layers[0][0].shape == (1, 8, 8)  # one set of weights; 5 inputs and 3 identities
    same = torch.randn(4, 1, 5).expand(4, 3, 5)
    out = net(same)[0]
    assert not torch.allclose(out[:, 0], out[:, 1])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ensemble", [1, 2])
@pytest.mark.parametrize("agents", [1, 3])
@pytest.mark.parametrize("rows", [6, 200])
def test_pullback_is_autograd(shared: bool, ensemble: int, agents: int, rows: int) -> None:
    net = AgentNet(agents, (5, 8, 7, 2), shared=shared, generator=generator(), ensemble=ensemble).double()
    net.mlp.layers = list(zip(net.mlp.stack[::2], net.mlp.stack[1::2], strict=True))
    optim.flatten(net)
    x = torch.randn(rows, agents, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(ensemble, rows, agents, 2, dtype=torch.float64)
    out = net(x)
    assert out.shape == grad.shape
    expected = torch.autograd.grad(out, [x, *net.parameters()], grad)
    linear, pullback = net.linearize(x.detach())
    assert torch.allclose(linear, out.detach())
    assert torch.allclose(pullback.input(grad), expected[0])
    pullback.weights(grad)
    for parameter, wanted in zip(net.parameters(), expected[1:], strict=True):
        assert torch.allclose(parameter.grad, wanted)


def test_a_critic_of_everything_may_see_an_expanded_input() -> None:
    net = AgentNet(3, (4, 8, 1), shared=False, generator=generator())
    x = torch.randn(6, 1, 4)
    assert torch.allclose(net(x.expand(6, 3, 4)), net(x.repeat(1, 3, 1)))


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_adam_is_torchs_adam_with_clipping(max_grad_norm: float) -> None:
    module = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(3, 2)})
    reference = copy.deepcopy(module)
    ours = optim.Adam(module, lr=0.01, max_grad_norm=max_grad_norm)
    theirs = torch.optim.Adam(reference.parameters(), lr=0.01)
    for step in range(20):
        torch.manual_seed(step)
        for mine, other in zip(module.parameters(), reference.parameters(), strict=True):
            draw = torch.randn_like(mine)
            mine.grad.copy_(draw)
            other.grad = draw.clone()
        if max_grad_norm:
            expected = nn.utils.clip_grad_norm_(reference.parameters(), max_grad_norm)
            assert ours.step() == pytest.approx(expected.item(), rel=1e-5)
        else:
            ours.step()
        theirs.step()
    for mine, other in zip(module.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_flattened_parameters_stay_the_modules_own() -> None:
    module = nn.Linear(3, 2)
    before = [p.detach().clone() for p in module.parameters()]
    vector, _ = optim.flatten(module)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))
    vector.zero_()
    assert all((p == 0).all() for p in module.parameters())
    module.load_state_dict({"weight": before[0], "bias": before[1]})
    assert torch.equal(vector, torch.cat([b.flatten() for b in before]))


def test_follow() -> None:
    target, source = torch.zeros(3), torch.ones(3)
    optim.follow(target, source, 0.25)
    assert target.tolist() == [0.25] * 3


def test_a_seeds_weights_do_not_depend_on_the_number_of_threads() -> None:
    """LAPACK rounds otherwise with more threads."""
    spec = EnvSpec({"a": GroupSpec(("a_0", "a_1"), (61,), Discrete(5))}, state_size=190)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        algorithm = shoal.build("mappo", spec, net={"hidden": (128, 128), "memory": 32, "comm": "mean"})
        assert torch.get_num_threads() == threads
        found.append([t.clone() for t in tree.leaves(algorithm.state_dict()["nets"])])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("maddpg", {"lr": 0.3, "actor_lr": 0.1}),
        ("qmix", {"lr": 0.3}),
        ("pqn", {"lr": 0.3}),
        ("mappo", {"lr": 0.1, "critic_lr": 0.3}),
        ("happo", {"lr": 0.1, "critic_lr": 0.3}),
    ],
)
def test_settings_reach_the_optimisers(name: str, rates: dict[str, float]) -> None:
    algorithm: Any = shoal.build(name, SPEC, max_grad_norm=0.25, **rates)
    named = vars(algorithm)
    found = [x for x in (*named.values(), *named.get("actor_optimizers", {}).values()) if isinstance(x, Adam)]
    assert [optimizer.max_grad_norm for optimizer in found] == [0.25] * len(found)
    assert {optimizer.lr for optimizer in found} == set(rates.values())


@pytest.mark.parametrize("name", ["iql", "qmix", "pqn", "ippo", "mappo"])
def test_settings_reach_the_networks(name: str) -> None:
    for identity, norm in ((True, "none"), (False, "layer")):
        algorithm: Any = shoal.build(name, SPEC, net={"identity": identity, "norm": norm})
        nets = [algorithm.nets["runner"], *([algorithm.critics["runner"]] if name == "ippo" else [])]
        for net in nets:
            assert net.identity.shape == ((2, 2) if identity else (1, 0))
            assert net.mlp.norm == (norm == "layer")


def test_units_are_each_networks() -> None:
    for shared, units in ((True, (0, 0, 1, 1, 1)), (False, (0, 1, 2, 3, 4))):
        for name in ("iql", "pqn"):
            assert shoal.build(name, SPEC, net={"shared": shared}).norm.columns.tolist() == list(units)  # type: ignore[attr-defined]
