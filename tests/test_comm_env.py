"""Predator-prey and traffic junction: their rules one by one, and what is seen and heard when."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import shoal
from shoal.envs.comm import names, traffic_junction
from shoal.envs.common.kernel_env import KernelEnv
from shoal.types import ShoalError, Step


def game(name: str, num_envs: int = 1, **arguments: Any) -> KernelEnv:
    env = shoal.make(f"comm/{name}", num_envs, **arguments)
    assert isinstance(env, KernelEnv)
    env.reset(0)
    return env


def act(env: KernelEnv, *actions: int) -> Step:
    return env.step({env.name: torch.tensor(actions).expand(env.num_envs, -1)})


def random(env: KernelEnv, generator: torch.Generator) -> Step:
    return env.step({env.name: torch.randint(env.size, env.buffers.reward.shape, generator=generator)})


# Predator-prey


def placed(*cells: tuple[int, int], prey: tuple[int, int], **arguments: Any) -> KernelEnv:
    env = game("predator_prey-easy", **arguments)
    env.world.place[0], env.world.prey[0], env.world.found[0] = cells, prey, False
    return env


def test_predators_move_and_walls_stop_them() -> None:
    env = placed((0, 2), (2, 4), (4, 0), prey=(2, 2))
    act(env, 0, 1, 2)
    assert env.world.place[0].tolist() == [[0, 2], [2, 4], [4, 0]]
    act(env, 3, 0, 1)
    assert env.world.place[0].tolist() == [[0, 1], [1, 4], [4, 1]]
    act(env, 4, 4, 3)
    assert env.world.place[0].tolist() == [[0, 1], [1, 4], [4, 0]]


@pytest.mark.parametrize(
    ("mode", "one", "three"), [("mixed", 0.0, 0.0), ("cooperative", 0.05, 0.15), ("competitive", 0.05, 0.05 / 3)]
)
def test_what_is_earned_on_the_prey_and_who_has_found_it_stays(mode: str, one: float, three: float) -> None:
    env = placed((0, 1), (1, 0), (0, 2), prey=(0, 0), mode=mode)
    step = act(env, 3, 4, 3)
    assert step.reward["predator"][0].tolist() == pytest.approx([one, -0.05, -0.05])
    assert step.alive["predator"].all()
    step = act(env, 2, 0, 3)  # the first does not get away
    assert step.alive["predator"][0].tolist() == [False, True, True]
    assert step.reward["predator"][0].tolist() == pytest.approx([three] * 3)
    over = mode == "mixed"
    assert step.ended.tolist() == [over]
    assert step.terminated["predator"][0].tolist() == [over] * 3


def test_predators_see_their_own_cell_only() -> None:
    env = placed((1, 3), (1, 3), (4, 4), prey=(2, 0))
    seen = act(env, 4, 4, 4).view.obs["predator"][0]
    one_hot = torch.eye(5)
    assert torch.equal(seen[0], torch.cat([one_hot[1], one_hot[3], torch.tensor([0.0, 0.0, 2.0])]))
    assert torch.equal(seen[2], torch.cat([one_hot[4], one_hot[4], torch.tensor([0.0, 0.0, 1.0])]))
    env = placed((1, 3), (1, 3), (4, 4), prey=(1, 3), mode="cooperative")
    assert act(env, 4, 4, 4).successor.obs["predator"][0, 0, -3:].tolist() == [0.0, 1.0, 2.0]


def test_vision_shows_cells_around_row_by_row() -> None:
    env = placed((0, 0), (0, 1), (4, 4), prey=(1, 1), vision=1)
    cells = act(env, 4, 4, 4).view.obs["predator"][0, 0, 10:].view(3, 3, 3)
    assert cells[..., 0].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]  # outside
    assert cells[..., 1].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]  # prey
    assert cells[..., 2].tolist() == [[0, 0, 0], [0, 1, 1], [0, 0, 0]]  # predators


def test_everybody_starts_on_a_cell_of_its_own() -> None:
    world = game("predator_prey-easy", 200).world
    for place, prey in zip(world.place, world.prey, strict=True):
        assert len({tuple(cell) for cell in (*place, prey)}) == 4
    assert len(np.unique(world.prey, axis=0)) == 25


# Traffic junction


def on_road(*cars: tuple[int, int], task: str = "easy", **arguments: Any) -> KernelEnv:
    """(route, steps along it) of the first cars; `rate` 1e-12: nobody else comes."""
    env = game(f"traffic_junction-{task}", **{"rate": 1e-12, **arguments})
    for k, (route, at) in enumerate(cars):
        env.world.route[0, k], env.world.at[0, k] = route, at
    return env


def test_cars_go_brake_wait_and_leave() -> None:
    env = on_road((0, 5), (1, 0))
    step = act(env, 0, 1, 0, 0, 0)
    assert env.world.at[0, :2].tolist() == [6, 0]
    assert step.alive["car"][0].tolist() == [True, True, False, False, False]
    assert step.reward["car"][0].tolist() == pytest.approx([-0.01, -0.01, 0, 0, 0])
    step = act(env, 0, 0, 0, 0, 0)  # the first leaves
    assert step.reward["car"][0, :2].tolist() == pytest.approx([0.0, -0.02])
    assert step.view.hears[0, 0].tolist() == [False, True, False, False, False]
    assert not step.view.obs["car"][0, 0].any()
    assert not step.terminated["car"].any()


def test_cars_in_one_cell_pay_ten_each() -> None:
    env = on_road((0, 2), (1, 2))
    step = act(env, 0, 0, 0, 0, 0)
    assert step.reward["car"][0].tolist() == pytest.approx([-10.01, -10.01, 0, 0, 0])
    assert step.view.obs["car"][0, 0, -1] == 2.0
    assert act(env, 0, 1, 0, 0, 0).reward["car"][0, :2].tolist() == pytest.approx([-0.02, -0.02])


def test_a_car_sees_its_last_action_route_and_place() -> None:
    env = on_road((1, 1))
    seen = act(env, 1, 0, 0, 0, 0).view.obs["car"][0, 0]
    wanted = [torch.tensor([1.0, 0.0, 1.0]), torch.eye(7)[3], torch.eye(7)[1], torch.tensor([0.0, 1.0])]
    assert torch.equal(seen, torch.cat(wanted))


@pytest.mark.parametrize(("task", "entrances", "each"), [("easy", 2, 1), ("medium", 4, 3), ("hard", 8, 7)])
def test_routes_lead_from_edge_to_edge_cell_by_cell(task: str, entrances: int, each: int) -> None:
    plan, road = traffic_junction.plan(task)
    dim = len(road)
    assert [len(routes) for routes in plan] == [each] * entrances
    for routes in plan:
        assert len({route[0] for route in routes}) == 1
        assert len({route[-1] for route in routes}) == (each if each < 7 else 7)
        for route in routes:
            assert all(road[cell] for cell in route)
            assert len(set(route)) == len(route)
            assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a, b in itertools.pairwise(route))
            assert not {0, dim - 1}.isdisjoint(route[0])
            assert not {0, dim - 1}.isdisjoint(route[-1])


def test_oncoming_cars_have_lanes_of_their_own() -> None:
    """No two routes go through a cell outside of junctions in different directions."""
    for task in ("medium", "hard"):
        plan, road = traffic_junction.plan(task)
        crossing = road & np.roll(road, 1, 0) & np.roll(road, 1, 1)
        headings: dict[Any, set[Any]] = {}
        for route in (route for routes in plan for route in routes):
            for a, b in itertools.pairwise(route):
                headings.setdefault(a, set()).add((b[0] - a[0], b[1] - a[1]))
        lanes = [cell for cell in headings if road[cell[0]].sum() < len(road) or road[:, cell[1]].sum() < len(road)]
        assert crossing.any()
        assert len(lanes) > 40
        assert all(len(headings[cell]) == 1 for cell in lanes)


def test_cars_enter_as_often_as_the_rate_says_and_never_more_than_there_are_seats() -> None:
    env = game("traffic_junction-medium", 200, rate=0.2)
    first = act(env, *[0] * 10)
    assert float(first.view.hears.sum(-1).float().mean()) == pytest.approx(4 * 0.2, abs=0.15)
    full = game("traffic_junction-easy", 50, rate=1.0)
    for _ in range(6):
        step = act(full, *[1] * 5)
    assert step.view.hears.all()


# Both


@pytest.mark.parametrize("name", names())
def test_contract(name: str) -> None:
    """Views chain, episodes end at the limit, the same seed gives the same episodes on any number of threads."""
    envs = [game(name, 7, threads=k) for k in (1, 3)]
    generators = [torch.Generator().manual_seed(1) for _ in envs]
    limit = envs[0].params.limit
    seen: list[Tensor] = []
    for t in range(2 * limit + 3):
        one, two = (random(env, g) for env, g in zip(envs, generators, strict=True))
        for a, b in ((one.view, two.view), (one.successor, two.successor)):
            assert torch.equal(a.obs[envs[0].name], b.obs[envs[1].name])
            assert torch.equal(a.state, b.state)
        on = ~one.ended
        assert torch.equal(one.view.obs[envs[0].name][on], one.successor.obs[envs[0].name][on])
        assert torch.equal(one.view.hears[on], one.successor.hears[on])
        seen.append(one.ended.clone())
        if name.startswith("traffic"):
            assert bool(one.ended.all()) == ((t + 1) % limit == 0)
            there = one.view.obs[envs[0].name].any(-1)
            assert torch.equal(there, one.view.hears[:, 0])
    assert torch.stack(seen).sum() >= 14


@pytest.mark.parametrize("name", ["predator_prey-easy", "traffic_junction-easy"])
def test_goes_on_from_a_checkpoint(name: str) -> None:
    env, other = game(name, 3), game(name, 3)
    generator = torch.Generator().manual_seed(2)
    for _ in range(7):
        random(env, generator)
    other.load_state_dict(env.state_dict())
    assert torch.equal(env._view.hears, other._view.hears)
    before = generator.get_state()
    one = random(env, generator)
    generator.set_state(before)
    two = random(other, generator)
    assert torch.equal(one.view.obs[env.name], two.view.obs[env.name])
    assert torch.equal(one.reward[env.name], two.reward[env.name])
    assert env.render(1).shape[2] == 3


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("predator_prey-easy", {"mode": "selfish"}),
        ("predator_prey-easy", {"vision": 5}),
        ("traffic_junction-easy", {"rate": 2.0}),
    ],
)
def test_impossible_arguments(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ShoalError):
        game(name, **arguments)


@pytest.mark.parametrize("algorithm", ["mappo", "qmix"])
def test_cars_talk_while_they_come_and_go(algorithm: str) -> None:
    env = game("traffic_junction-easy", 8)
    settings: dict[str, Any] = {"batch_steps": 160} if algorithm == "mappo" else {"warmup": 100, "batch_size": 16}
    learner = shoal.build(algorithm, env.spec, net={"comm": "attention", "memory": 8}, **settings)
    progress = [step.updates for step in shoal.train(learner, env, 400)]
    assert progress[-1] >= 1
