"""Networks that pool: the equations written plainly, the order and number of things, and what carries over."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import shoal
from shoal.envs.common.spaces import AgentAdapter
from shoal.nets.conv import Block
from shoal.nets.dense import AgentNet
from shoal.nets.normalise import ValueNorm
from shoal.nets.pool import WIDTH, Pool, Pooling, Sight
from shoal.train import carry_over
from shoal.types import Discrete, EnvSpec, GroupSpec, Part, ShoalError, View, columns

PARTS = Part("self", 2), Part("other", 2, 3), Part("self", 1), Part("food", 3, 2), Part("other", 1, 3)
KINDS: tuple[Pooling, ...] = ("mean", "attention")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def randomised(module: torch.nn.Module) -> None:
    """Biases and queries too: what is 0 hides what it is multiplied with."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator())


@pytest.mark.parametrize("kind", KINDS)
def test_an_observation_is_pooled_as_the_equations_say(kind: Pooling) -> None:
    sight = Sight(PARTS, kind, 2, generator())
    randomised(sight)
    x = torch.randn(2, 5, columns(PARTS))
    out = sight(x)
    assert out.shape == (2, 5, sight.size) == (2, 5, 3 + 2 * WIDTH)
    for copy in range(2):
        for row in range(5):
            seen = x[copy, row].tolist()
            own = torch.tensor(seen[:2] + seen[8:9])
            others = [torch.tensor(seen[2 + 2 * j : 4 + 2 * j] + seen[15 + j : 16 + j]) for j in range(3)]
            foods = [torch.tensor(seen[9 + 3 * j : 12 + 3 * j]) for j in range(2)]
            found = [own]
            for pool, things in zip(sight.pools, (others, foods), strict=True):
                weight, bias = (p[copy] for p in pool.embed.layers[0])
                e = torch.stack([(torch.cat([own, thing]) @ weight + bias[0]).relu() for thing in things])
                a = torch.full((len(things),), 1 / len(things))
                if kind == "attention":
                    weight, bias = (p[copy] for p in pool.query[0].layers[0])
                    a = torch.stack([(own @ weight + bias[0]) @ e_j / math.sqrt(WIDTH) for e_j in e]).softmax(0)
                found.append(a @ e)
            assert torch.allclose(out[copy, row], torch.cat(found), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_there_and_nobody_who_looks(kind: Pooling) -> None:
    pool = Pool(0, 4, kind, 1, generator())
    assert torch.equal(pool(torch.zeros(1, 3, 0), torch.zeros(1, 3, 0, 4)), torch.zeros(1, 3, WIDTH))
    things = torch.randn(1, 3, 1, 4)
    alone = pool.embed(things.flatten(1, 2)).relu()
    assert torch.allclose(pool(torch.zeros(1, 3, 0), things), alone, atol=1e-6)


def swapped(obs: Tensor, parts: tuple[Part, ...], name: str, only: int | None = None) -> Tensor:
    """The first two things of a kind change places, in all parts of that name or in one."""
    found = []
    for k, (part, x) in enumerate(zip(parts, obs.split([p.size * p.count for p in parts], -1), strict=True)):
        chosen = part.name == name and only in (None, k)
        rows = x.unflatten(-1, (part.count, part.size))
        found.append(rows[..., [1, 0, *range(2, part.count)], :].flatten(-2) if chosen else x)
    return torch.cat(found, -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ippo", "vdn"])
def test_places_of_things_do_not_matter(name: str, kind: Pooling) -> None:
    spec = shoal.make("mpe/simple_spread", N=4).spec
    algorithm: Any = shoal.build(name, spec, net={"pool": kind, "identity": False})
    net, parts = algorithm.nets["agent"], spec.groups["agent"].parts
    randomised(net)
    obs = torch.randn(6, 4, spec.groups["agent"].obs_size)
    out = net(obs)
    for thing in ("landmark", "other"):
        assert torch.allclose(net(swapped(obs, parts, thing)), out, atol=1e-4)
    # where one is and what another says is another situation
    assert not torch.allclose(net(swapped(obs, parts, "other", only=2)), out, atol=1e-2)
    plain: Any = shoal.build(name, spec, net={"identity": False})
    plain = plain.nets["agent"]
    randomised(plain)
    assert not torch.allclose(plain(swapped(obs, parts, "landmark")), plain(obs), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_some_agents_weights_are_their_own(kind: Pooling) -> None:
    blocks = (Block((columns(PARTS),), parts=PARTS),)
    net = AgentNet(3, (columns(PARTS), 8, 2), shared=False, generator=generator(), blocks=blocks, pool=kind)
    x = torch.randn(6, 3, columns(PARTS))
    assert torch.allclose(net(x[:, 1:2], slice(1, 2)), net(x)[:, :, 1:2], atol=1e-6)
    assert not torch.allclose(net(x[:, 1:2].expand(-1, 3, -1))[:, :, 0], net(x)[:, :, 1], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_central_value_does_not_tell_agents_apart(kind: Pooling) -> None:
    spec = shoal.make("mpe/simple_tag", num_good=2).spec
    algorithm: Any = shoal.build("mappo", spec, net={"pool": kind, "memory": 5})
    randomised(algorithm.critics["team"])
    obs = {n: torch.randn(6, g.num_agents, g.obs_size) for n, g in spec.groups.items()}
    memory = {n: torch.randn(6, g.num_agents, 5) for n, g in spec.groups.items()}
    value = algorithm._value(obs, memory, torch.zeros(6, spec.state_size))
    turned = [{n: x.flip(1) if n == "adversary" else x for n, x in rows.items()} for rows in (obs, memory)]
    assert torch.allclose(algorithm._value(*turned, torch.zeros(6, spec.state_size)), value, atol=1e-4)
    obs["adversary"][:, 0] += 1.0
    assert not torch.allclose(algorithm._value(obs, memory, torch.zeros(6, spec.state_size)), value, atol=1e-3)


ANY_NUMBER = [
    ("ippo", {}),
    ("ippo", {"net": {"memory": 4, "comm": "attention"}}),
    ("mappo", {"net": {"memory": 4}}),
    ("mappo", {"value": "agent", "reward": "own"}),
    ("iql", {"net": {"identity": False}}),
    ("vdn", {"net": {"identity": False, "memory": 4}}),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "settings"), ANY_NUMBER)
def test_what_is_learned_carries_over_to_any_number(name: str, settings: dict[str, Any], kind: Pooling) -> None:
    def built(n: int, seed: int) -> Any:
        spec = shoal.make("mpe/simple_tag", num_good=n, num_adversaries=2 * n).spec
        return shoal.build(name, spec, seed=seed, **settings | {"net": settings.get("net", {}) | {"pool": kind}})

    one, four = built(1, 0), built(4, 1)
    assert not one.tied()
    optimizer = one.critic_optimizer if name.endswith("ppo") else one.optimizer
    optimizer.mean += 3.0
    one.env_steps = 77
    carry_over(one, four)
    known, found = (
        {k: x for tensors in a.state_dict()["nets"] for k, x in tensors.items() if x.numel()} for a in (one, four)
    )
    assert known.keys() == found.keys()
    assert all(torch.equal(known[k], found[k]) for k in known)
    assert four.env_steps == 77
    optimizer = four.critic_optimizer if name.endswith("ppo") else four.optimizer
    assert (optimizer.mean == 3).all()
    spec = four.spec
    obs = {n: torch.randn(2, g.num_agents, g.obs_size) for n, g in spec.groups.items()}
    legal = {n: torch.zeros(2, g.num_agents, 0, dtype=torch.bool) for n, g in spec.groups.items()}
    actions, _ = four.act(View(obs, legal, torch.zeros(2, spec.state_size)), four.initial_memory(2), explore=True)
    assert actions["adversary"].shape == (2, 8)


SPREAD = {"pool": "mean", "identity": False}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ippo", {}, "set net.pool to mean or attention"),
        ("vdn", {"net": {"pool": "mean"}}, "set net.identity to False"),
        ("vdn", {"net": {"pool": "mean", "shared": False}}, "set net.shared to True"),
        ("mappo", {"reward": "own", "net": {"pool": "mean"}}, "set reward to sum or mean"),
        ("qmix", {"net": SPREAD}, "set mixer to sum or none"),
        ("wqmix", {"net": SPREAD}, "set mixer to sum or none, weight to 1"),
        ("iddpg", {}, "DDPG cannot go on with more or fewer agents"),
        ("feudal", {}, "Hierarchy cannot go on with more or fewer agents"),
    ],
)
def test_settings_that_tie_weights_to_a_number_are_named(name: str, settings: dict[str, Any], message: str) -> None:
    two, three = (
        shoal.build(name, shoal.make("tutorial/drift", n_agents=n).spec, **settings)
        if name == "iddpg"
        else shoal.build(name, shoal.make("lbf/8x8-2p-2f", players=n, max_num_food=2).spec, **settings)
        for n in (2, 3)
    )
    with pytest.raises(ShoalError, match=message):
        carry_over(two, three)
    carry_over(two, two)  # among the same agents everything goes on


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": Discrete(3)}, "actions of a are Discrete"),
        ({"masked": True}, "masks of a are True, and not False"),
        ({"parts": (Part("self", 2), Part("wall", 3, 2))}, r"observations of a are .*'wall', 3.*, and not .*'food', 3"),
        ({"parts": ()}, r"observations of a are \(8,\)"),
    ],
)
def test_other_agents_are_told_apart(change: dict[str, Any], message: str) -> None:
    group = GroupSpec(("x", "y"), (8,), Discrete(2), parts=(Part("self", 2), Part("food", 3, 2)))
    other = replace(group, **change)
    one, two = (shoal.build("ippo", EnvSpec({"a": g}), net={"pool": "mean"}) for g in (group, other))
    with pytest.raises(ShoalError, match=message):
        carry_over(one, two)
    with pytest.raises(ShoalError, match="b, and not a"):
        carry_over(one, shoal.build("ippo", EnvSpec({"b": group}), net={"pool": "mean"}))


def test_parts_must_make_the_observation() -> None:
    with pytest.raises(ShoalError, match=r"parts of 7 columns do not make an observation \(8,\)"):
        GroupSpec(("x",), (8,), Discrete(2), parts=(Part("self", 1), Part("food", 3, 2)))
    with pytest.raises(ShoalError, match="'food' have 2 and 1 things"):
        GroupSpec(("x",), (9,), Discrete(2), parts=(Part("food", 3, 2), Part("food", 3, 1)))
    with pytest.raises(ShoalError, match="'self' have 2 and 1 things"):
        GroupSpec(("x",), (8,), Discrete(2), parts=(Part("self", 4, 2),))


# What environments say of themselves


def seen(env: Any, view: View, group: str, agent: int = 0) -> dict[str, Tensor]:
    """What an agent sees of the things of each kind, `[thing, size]`."""
    parts, found = env.spec.groups[group].parts, {}
    for part, x in zip(parts, view.obs[group][0, agent].split([p.size * p.count for p in parts]), strict=True):
        found[part.name] = torch.cat([found.get(part.name, x.new_zeros(part.count, 0)), x.view(part.count, -1)], -1)
    return found


def entities(env: Any, start: int, count: int) -> tuple[Tensor, Tensor]:
    world = env.world_of(0)
    pos = torch.from_numpy(world.pos).float()
    speed = torch.zeros_like(pos)
    speed[: len(world.vel)] = torch.from_numpy(world.vel)
    return pos[start : start + count], speed[start : start + count]


def moved(env: Any) -> View:
    """A few steps on: velocities are no longer 0."""
    env.reset(1)
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        choices = {
            n: torch.randint(g.action.size, (1, g.num_agents), generator=random) for n, g in env.spec.groups.items()
        }
        step = env.step(choices)
    return step.view


def test_parts_of_tag_are_where_others_are_and_how_fast() -> None:
    env = shoal.make("mpe/simple_tag", num_good=3, num_adversaries=4, num_obstacles=5)
    view = moved(env)
    for group, me, rows in (("adversary", 0, [1, 2, 3, 4, 5, 6]), ("agent", 4, [0, 1, 2, 3, 5, 6])):
        found, (pos, speed) = seen(env, view, group), entities(env, 0, 7)
        adversaries, good = [r for r in rows if r < 4], [r for r in rows if r >= 4]
        assert torch.allclose(found["self"][0], torch.cat([speed[me], pos[me]]))
        assert torch.allclose(found["adversary"], pos[adversaries] - pos[me])
        assert torch.allclose(found["agent"], torch.cat([pos[good] - pos[me], speed[good]], -1))
        assert torch.allclose(found["obstacle"], entities(env, 7, 5)[0] - pos[me])


def test_parts_of_world_comm_are_forests_and_who_is_in_them() -> None:
    env = shoal.make("mpe/simple_world_comm", num_good=3, num_adversaries=4, num_forests=3, num_food=2)
    view = moved(env)
    pos, speed = entities(env, 0, 7)
    for group, me in (("leadadversary", 0), ("adversary", 1), ("agent", 4)):
        found = seen(env, view, group)
        assert torch.allclose(found["obstacle"], entities(env, 7, 1)[0] - pos[me])
        assert torch.allclose(found["food"], entities(env, 8, 2)[0] - pos[me])
        assert torch.allclose(found["forest"][:, :2], entities(env, 10, 3)[0] - pos[me])
        assert set(found["forest"][:, 2].tolist()) <= {1.0, -1.0}
        assert len(found["agent"]) == 3 - (group == "agent")
    found = seen(env, view, "leadadversary")  # who sees everyone
    assert torch.allclose(found["adversary"], pos[1:4] - pos[0])
    assert torch.allclose(found["agent"], torch.cat([pos[4:] - pos[0], speed[4:]], -1))


@pytest.mark.parametrize("nearest", [0, 2])
def test_parts_of_spread_and_adversary(nearest: int) -> None:
    limits = {"num_agent_neighbors": nearest, "num_landmark_neighbors": nearest}
    env = shoal.make("mpe/simple_spread", N=4, **limits)
    found, (pos, _) = seen(env, moved(env), "agent", 1), entities(env, 0, 4)
    wanted = pos[[0, 2, 3]] - pos[1]
    wanted = wanted[wanted.norm(dim=-1).argsort()[:nearest]] if nearest else wanted
    assert torch.allclose(found["other"], torch.cat([wanted, torch.zeros_like(wanted)], -1))
    assert len(found["landmark"]) == (nearest or 4)
    env = shoal.make("mpe/simple_adversary", N=3, **limits)
    view, (pos, _) = moved(env), entities(env, 0, 4)
    assert len(seen(env, view, "adversary")["other" if nearest else "agent"]) == (nearest or 3)
    found = seen(env, view, "agent", 1)
    goal = env.world_of(0).goal[0]
    assert torch.allclose(found["self"][0], entities(env, int(goal), 1)[0][0] - pos[2])
    if not nearest:
        assert torch.allclose(found["agent"], pos[[1, 3]] - pos[2])
        assert torch.allclose(found["adversary"], pos[:1] - pos[2])


@pytest.mark.parametrize("levels", [True, False])
def test_parts_of_lbf_are_food_and_players(levels: bool) -> None:
    env: Any = shoal.make("lbf/8x8-3p-2f", observe_agent_levels=levels)
    found = seen(env, env.reset(3), "agent", 1)
    player, food = (torch.from_numpy(x[0]).float() for x in (env.world.player, env.world.food))
    assert torch.equal(found["food"], food)
    assert torch.equal(found["self"], player[[1], : 2 + levels])
    assert torch.equal(found["player"], player[[0, 2], : 2 + levels])
    assert shoal.make("lbf/Foraging-grid-8x8-3p-2f").spec.groups["agent"].parts == ()


def test_entries_of_things_in_a_dict_space_are_parts() -> None:
    def box(*shape: int) -> spaces.Box:
        return spaces.Box(-1, 1, shape, np.float32)

    space = spaces.Dict({"goal": box(2), "mates": box(3, 4), "phase": spaces.Discrete(5), "self": box(1, 2)})
    adapter = AgentAdapter("walker_0", space, spaces.Discrete(2))
    assert adapter.parts == (Part("self", 2), Part("mates", 4, 3), Part("self", 5), Part("self", 2))
    value = {"goal": np.zeros(2), "mates": np.arange(12.0).reshape(3, 4), "phase": 1, "self": np.ones((1, 2))}
    assert adapter.read(value)[2:14].tolist() == list(range(12))
    assert AgentAdapter("walker_0", spaces.Dict({"goal": box(2)}), spaces.Discrete(2)).parts == ()
    assert AgentAdapter("walker_0", box(3, 4), spaces.Discrete(2)).parts == ()


# Values' units


def test_columns_share_statistics() -> None:
    norm, values = ValueNorm(0.5, (0, 0, 1)), torch.tensor([[1.0, 3.0, 10.0], [5.0, 7.0, 30.0]])
    norm.update(values, torch.full_like(values, 1 / 6))
    mean, std = norm.scale()
    assert torch.allclose(mean, torch.tensor([4.0, 4.0, 20.0]))
    assert torch.allclose(std, torch.tensor([5.0, 5.0, 100.0]).sqrt())


# The loop


@pytest.mark.parametrize("name", ["ippo", "vdn"])
def test_training_goes_on_among_more_agents(name: str) -> None:
    few, many = (shoal.make("mpe/simple_spread", 4, N=n, max_cycles=5) for n in (2, 3))
    settings: dict[str, Any] = {"net": SPREAD | {"hidden": (8,)}}
    settings |= {"batch_steps": 40} if name == "ippo" else {"warmup": 64}
    algorithm = shoal.build(name, few.spec, **settings)
    for progress in shoal.train(algorithm, few, 400):
        if progress.env is few and progress.env_steps >= 200:
            with pytest.raises(ShoalError, match="Give move_to an algorithm"):
                progress.move_to(many)
            updates = progress.updates
            assert updates
            progress.move_to(many, shoal.build(name, many.spec, **settings))
            assert progress.algorithm.spec == many.spec
            assert getattr(progress.experience, "written", 0) == 0  # no transition of fewer agents is left
    assert progress.updates > updates
    assert math.isfinite(progress.drain()["train_agent_return"])  # of episodes of two and of three
