"""Rollouts that are compiled from the first step to the last are those that Python plays step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import shoal
from shoal import actions, tree
from shoal.collect import LocalCollector
from shoal.types import Batch, Discrete, Groups

STEPS = 9
SPREAD = "mpe/simple_spread"
LISTEN = "mpe/simple_speaker_listener"
FORAGE = "lbf/6x6-3p-2f"
GRU: dict[str, Any] = {"hidden": (20, 12), "memory": 7}
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("ippo", SPREAD, {}, {}),
    ("ippo", SPREAD, {"net": GRU}, {"continuous_actions": True}),
    ("mappo", LISTEN, {"net": {"std_of_state": True, "identity": True}}, {"continuous_actions": True}),
    ("happo", "mpe/simple_tag", {"net": GRU}, {}),
    ("happo", "mpe/simple_tag", {"net": GRU}, {"continuous_actions": True}),
    ("ippo", FORAGE, {}, {}),
    ("vdn", SPREAD, {"epsilon_steps": 60}, {}),
    ("qmix", LISTEN, {"epsilon_steps": 60, "net": GRU}, {}),
    ("iql", FORAGE, {"epsilon_steps": 60, "net": {"shared": False, **GRU}}, {}),
    ("pqn_vdn", SPREAD, {"net": {"norm": "layer", "hidden": (20, 12)}}, {}),
    ("qmix", SPREAD, {"net": {"norm": "layer", **GRU}}, {}),
    ("pqn_vdn", "rware/tiny-2ag", {"epsilon_steps": 60}, {}),
    ("maddpg", SPREAD, {"warmup": 30}, {}),
    ("maddpg", SPREAD, {"warmup": 30}, {"continuous_actions": True}),
    ("matd3", "mpe/simple_tag", {"warmup": 30, "net": {"shared": True}}, {"continuous_actions": True}),
    ("ippo", "comm/traffic_junction-easy", {}, {}),
    ("ippo", "comm/predator_prey-easy", {"net": GRU}, {}),
]


def collector(name: str, env: str, settings: dict[str, Any], arguments: dict[str, Any]) -> LocalCollector:
    limit = {"max_cycles": 7} if env.startswith("mpe") else {}
    worlds = shoal.make(env, 5, **arguments, **limit)
    algorithm = shoal.build(name, worlds.spec, seed=3, **settings)
    return LocalCollector(algorithm, worlds, STEPS, seed=1)


def played(player: LocalCollector) -> list[Batch]:
    return [tree.map(torch.clone, player.collect()) for _ in range(3)]


def close(a: Any, b: Any) -> bool:
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return all(torch.allclose(x, y, atol=1e-4) if x.is_floating_point() else torch.equal(x, y) for x, y in pairs)


def returns(player: LocalCollector) -> list[Tensor]:
    """Of all episodes that ended, and their lengths."""
    groups: list[Groups] = [group for group, _ in player.finished]
    rows = [torch.cat([group[name] for group in groups]) for name in groups[0]] if groups else []
    return [*rows, *([torch.cat([lengths for _, lengths in player.finished])] if groups else [])]


@pytest.mark.parametrize(("name", "env", "settings", "arguments"), CASES)
def test_compiled_rollouts_are_python_rollouts(
    name: str, env: str, settings: dict[str, Any], arguments: dict[str, Any]
) -> None:
    one, other = (collector(name, env, settings, arguments) for _ in range(2))
    assert one.compiled
    other.compiled = None
    assert close(played(one), played(other))
    for what in ("memory", "present"):
        assert close(getattr(one, what), getattr(other, what))
    assert close(one.episodes.sums, other.episodes.sums)
    assert torch.equal(one.episodes.lengths, other.episodes.lengths)
    assert close(returns(one), returns(other))
    if env.startswith("mpe"):
        assert returns(one)
    policies: list[Any] = [one.policy, other.policy]
    assert policies[0].env_steps == policies[1].env_steps
    assert torch.equal(*(policy.sampler.get_state() for policy in policies))


def test_threads_that_share_the_environments_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.nets.acting.WORTH", 1)
    case: tuple[Any, ...] = ("ippo", SPREAD, {"net": GRU, "workers": 3}, {})
    shared = collector(*case)
    policy: Any = shared.policy
    assert len(policy.compiled_player(shared.env, shared.memory, STEPS).tables) == 3
    alone = collector("ippo", SPREAD, {"net": GRU, "workers": 1}, {})
    for a, b in zip(tree.leaves(played(shared)), tree.leaves(played(alone)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        (SPREAD, {"net": {"comm": "mean"}}),
        (SPREAD, {"net": {"pool": "mean"}}),
        ("tutorial/drift", {}),
        ("matrix/climbing", {}),
    ],
)
def test_what_cannot_be_compiled_is_played_step_by_step(env: str, settings: dict[str, Any]) -> None:
    player = collector("ippo", env, settings, {})
    assert player.compiled is None
    assert player.collect().num_steps == 5 * STEPS


def test_random_actions_are_uniform_over_the_legal_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    legal = torch.tensor([False, True, False, True, True]).expand(30_000, 1, 5)
    counts = torch.bincount(actions.random(Discrete(5), legal, generator).flatten(), minlength=5) / 30_000
    assert torch.allclose(counts, torch.tensor([0, 1, 0, 1, 1]) / 3, atol=0.02)
    counts = torch.bincount(actions.random(Discrete(5), legal[..., :0], generator).flatten(), minlength=5) / 30_000
    assert torch.allclose(counts, torch.full((5,), 0.2), atol=0.02)
