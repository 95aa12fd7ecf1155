"""The warehouse: the package `rware`, played beside it from the same seeds, is the judge."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import shoal
from shoal import presets
from shoal.envs import rware
from shoal.envs.common import pcg64
from shoal.envs.common.kernel_env import KernelEnv
from shoal.envs.rware import kernel
from shoal.envs.rware.draw import CELL
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
    play_both(env, others, 100 if env.spec.num_agents < 10 else 50)


def stack(env: KernelEnv, e: int, other: Any, cells: list[tuple[int, int]], directions: list[int]) -> None:
    """Put the agents of both at (x, y), looking somewhere, with nothing in hand; shelves stay where they are."""
    p, w = env.params, env.world
    w.look[e] &= 255 - 7 - 32
    w.agent[e] = 0
    margin = max(p.reach, 1)
    for i, ((x, y), d) in enumerate(zip(cells, directions, strict=True)):
        cell = (y + margin) * p.stride + x + margin
        w.cell[e, i], w.direction[e, i], w.load[e, i] = cell, d, 0
        w.look[e, cell] |= d + 1
        w.agent[e, cell] = i + 1
        agent = other.agents[i]
        agent.x, agent.y, agent.dir, agent.carrying_shelf = x, y, package.Direction(d), None
    other._recalc_grid()


@pytest.mark.parametrize(
    ("cells", "directions", "moved"),
    [
        ([(0, 0), (1, 0), (1, 1), (0, 1)], [3, 1, 2, 0], [True] * 4),  # a circle turns
        ([(0, 0), (1, 0), (2, 0), (3, 0)], [3, 2, 2, 2], [False] * 4),  # two face each other: all wait
        ([(0, 0), (1, 0), (2, 0), (5, 5)], [3, 3, 3, 0], [True] * 4),  # a chain
        ([(2, 1), (1, 1), (4, 1), (5, 1)], [3, 3, 2, 2], None),  # two chains, equally long
        ([(2, 1), (1, 1), (4, 1), (3, 0)], [3, 3, 2, 1], [True, True, False, False]),  # the longer one
        ([(1, 0), (0, 1), (1, 2), (2, 1)], [1, 3, 0, 2], None),  # all to one cell
        ([(0, 0), (1, 0), (6, 6), (2, 0)], [2, 2, 0, 2], [False, False, True, False]),  # behind one at the wall
    ],
)
def test_who_may_move(cells: list[tuple[int, int]], directions: list[int], moved: list[bool] | None) -> None:
    layout = "\n".join(["." * 8] * 7 + ["xxxxxxxg"])
    env, others = both("tiny-4ag", 1, layout=layout)
    env.reset(0)
    others[0].reset(seed=0)
    stack(env, 0, others[0], cells, directions)
    before = env.world.cell[0].copy()
    env.step({"agent": torch.ones(1, 4, dtype=torch.int64)})
    others[0].step([1] * 4)
    assert_same_state(env, 0, others[0])
    assert moved in (None, (env.world.cell[0] != before).tolist())


@pytest.mark.parametrize("reward", ["GLOBAL", "INDIVIDUAL", "TWO_STAGE"])
def test_deliveries_and_their_rewards(reward: str) -> None:
    """A short way from many requested shelves to many goals, so that random play delivers."""
    env, others = both(
        "tiny-3ag", 4, layout="xgx\ngxg\nxgx\n...", request_queue_size=4, reward_type=reward, max_inactivity_steps=90
    )
    assert play_both(env, others, 300) > 10


def test_two_layers_are_where_the_agents_are() -> None:
    """The package writes directions and loads with x and y swapped; in a square, the tests can swap them back."""
    layers = ("AGENT_DIRECTION", "AGENT_LOAD", "AGENTS")
    env, others = both(
        "rware-img-tiny-5ag", 2, layout="xx.xx\nxx.xx\n.....\nxx.gx\nxxxxx", image_observation_layers=layers,
        image_observation_directional=False,
    )  # fmt: skip
    random = np.random.default_rng(0)
    env.reset(0)
    for e, other in enumerate(others):
        other.reset(seed=e)
    for _ in range(60):
        chosen = acts(random, (2, 5), 5)
        step = env.step({"agent": torch.from_numpy(chosen)})
        for e, other in enumerate(others):
            other.step(chosen[e])
            swapped = [np.pad(layer[1:-1, 1:-1].T, 1) for layer in other.global_layers[:2]]
            for i, agent in enumerate(other.agents):
                window = np.s_[agent.y : agent.y + 3, agent.x : agent.x + 3]
                seen = step.successor.obs["agent"][e, i].numpy()
                assert np.array_equal(seen, np.stack([*(s[window] for s in swapped), other.global_layers[2][window]]))


def test_many_episodes_are_the_packages() -> None:
    """Ends are truncations, and what follows them is drawn from the same stream."""
    env, others = both("small-3ag-easy", 5, max_steps=7)
    play_both(env, others, 80)


@pytest.mark.parametrize(("population", "size"), [(1, 1), (32, 5), (110, 110), (12000, 200), (12000, 300)])
def test_different_numbers_are_numpys(population: int, size: int) -> None:
    rng, drawn = pcg64.streams([7])[0], np.zeros(population, np.int64)
    kernel._distinct(rng, population, size, drawn)
    assert drawn[:size].tolist() == np.random.default_rng(7).choice(population, size, replace=False).tolist()


def record(num_envs: int, threads: int) -> list[torch.Tensor]:
    """Three environments, among others."""
    env = rware.make("tiny-4ag", num_envs, threads=threads, max_steps=20, layout=CROWD)
    shown = [env.reset(5).obs["agent"][:3].clone()]
    random = np.random.default_rng(0)
    for _ in range(50):
        mine = torch.from_numpy(acts(random, (3, 4), 5))
        step = env.step({"agent": torch.cat([mine, torch.ones(num_envs - 3, 4, dtype=torch.int64)])})
        shown += [step.view.obs["agent"][:3].clone(), step.reward["agent"][:3].clone()]
    env.close()
    return shown


def test_an_environment_does_not_depend_on_those_beside_it() -> None:
    alone = record(3, 1)
    for other in (record(50, 1), record(50, 3)):
        assert all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))


def test_state_dict_plays_on() -> None:
    env, other = (rware.make("tiny-6ag", 4, msg_bits=1, max_steps=40, reward_type="TWO_STAGE") for _ in range(2))
    random = np.random.default_rng(0)
    chosen = torch.from_numpy(acts(random, (100, 4, 6), 10))
    env.reset(3)
    for row in chosen[:30]:
        env.step({"agent": row})
    other.load_state_dict({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in env.state_dict().items()})
    for row in chosen[30:]:
        one, two = env.step({"agent": row}), other.step({"agent": row})
        assert torch.equal(one.view.obs["agent"], two.view.obs["agent"])
        assert torch.equal(one.reward["agent"], two.reward["agent"])
        assert torch.equal(one.ended, two.ended)


@pytest.mark.parametrize("limit", ["max_steps", "max_inactivity_steps"])
def test_limits_truncate(limit: str) -> None:
    env = rware.make("tiny-2ag", 2, **{"max_steps": 0, limit: 3})
    env.reset(0)
    for k in range(7):
        step = env.step({"agent": torch.zeros(2, 2, dtype=torch.int64)})
        assert step.ended.tolist() == [k % 3 == 2] * 2
        assert not step.terminated["agent"].any()
        assert step.alive["agent"].all()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("tiny-2ag", {}), ("imgdict-tiny-2ag", {"max_steps": 9}), ("img-2s-tiny-2ag", {}), ("tiny-2ag", {"msg_bits": 2})],
)
def test_it_keeps_the_contract_and_trains(name: str, arguments: dict[str, Any]) -> None:
    env = shoal.make(f"rware/{name}", 4, **arguments)
    shoal.check_env(env)
    learner = shoal.build("mappo", env.spec, batch_steps=80)
    for _ in shoal.train(learner, env, total_steps=240):
        pass


def test_settings_are_found_by_every_name() -> None:
    known = presets.task("mappo", "rware/rware-tiny-2ag")
    assert known
    assert known == presets.task("mappo", "rware/tiny-2ag-v2") == presets.task("ippo", "rware/tiny-2ag")
    assert presets.task("mappo", "rware/rware-tiny-2ag-hard") == {}


def test_names() -> None:
    for name in rware.names():
        assert rware.canonical(name) == name
        assert rware.make(name, 1).spec.num_agents == rware.defaults(name)["n_agents"]
    for same in ("tiny-2ag", "rware-tiny-2ag-v2", "tiny-2ag-v2"):
        assert rware.canonical(same) == "rware-tiny-2ag"
    for wrong in ("tiny", "rware-huge-2ag", "rware-tiny-2ag-v1", "tiny-2ag-medium", "small-0ag"):
        with pytest.raises(ShoalError, match=r"rware-SIZE-Nag|n_agents must be"):
            shoal.make(f"rware/{wrong}")


def test_registered_ids_mean_the_same_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments that an id stands for, against those the package registers; of its millions, some hundreds."""
    registered = {name: spec.kwargs for name, spec in gymnasium.registry.items() if name.startswith("rware-")}
    packages = importlib.import_module("rware")
    count = itertools.count()

    def note(id: str, entry_point: str, kwargs: dict[str, Any]) -> None:
        number = next(count)
        if number % 997 == 0:
            registered[id] = kwargs
        if number > 300_000:
            raise StopIteration

    monkeypatch.setattr(packages, "register", note)
    packages.image_registration()
    with pytest.raises(StopIteration):
        packages.full_registration()
    assert any("req" in name for name in registered)
    for name, theirs in registered.items():
        ours = {key: p.default for key, p in rware.parameters(name).items()}
        for key, value in theirs.items():
            assert ours[key] == (getattr(value, "name", value) or 0), (name, key)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sensor_rang": 2}, "sensor_range"),
        ({"sensor_range": -1}, "sensor_range must be at least 0"),
        ({"n_agents": 0}, "n_agents must be at least 1"),
        ({"n_agents": 111}, "do not fit into 11 x 10"),
        ({"shelf_columns": 4}, "must be odd"),
        ({"column_height": 0}, "must be positive"),
        ({"msg_bits": 9}, "msg_bits must be at most"),
        ({"request_queue_size": 32}, "less than the 32 shelves"),
        ({"reward_type": "TEAM"}, "GLOBAL, INDIVIDUAL, TWO_STAGE"),
        ({"observation_type": "DICT"}, "use FLATTENED"),
        ({"observation_type": "IMAGE", "image_observation_layers": ("WALLS",)}, "ACCESSIBLE"),
        ({"observation_type": "IMAGE", "image_observation_layers": ()}, "at least one"),
        ({"layout": "x.g\nx."}, "equal length"),
        ({"layout": "x.?g"}, "g a goal"),
        ({"layout": "x..x"}, "must have a goal"),
        ({"layout": "\n".join(["xg" * 100] * 200)}, "too large"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ShoalError, match=message):
        shoal.make("rware/rware-tiny-2ag", **arguments)


def test_wrong_actions() -> None:
    env = rware.make("tiny-2ag", 1)
    env.reset()
    for wrong in (torch.tensor([[0, 5]]), torch.tensor([[-1, 0]])):
        with pytest.raises(ShoalError, match="actions of agent"):
            env.step({"agent": wrong})


def test_a_picture_shows_where_everything_is() -> None:
    env, others = both("tiny-2ag", 1)
    env.reset(0)
    others[0].reset(seed=0)
    stack(env, 0, others[0], [(0, 0), (1, 5)], [3, 0])
    picture = env.render(0)
    assert picture.shape == (11 * CELL, 10 * CELL, 3)

    def cell(x: int, y: int, shown: np.ndarray = picture) -> np.ndarray:
        return shown[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]

    requested = others[0].request_queue[0]
    standing = next(s for s in others[0].shelfs if s not in others[0].request_queue and (s.x, s.y) != (1, 5))
    different = [
        cell(*place) for place in ((3, 0), (0, 0), (4, 10), (standing.x, standing.y), (requested.x, requested.y))
    ]
    for one, two in itertools.combinations(different, 2):
        assert not np.array_equal(one, two)
    env.step({"agent": torch.tensor([[2, 4]])})
    assert not np.array_equal(cell(0, 0, env.render(0)), cell(0, 0))  # it has turned
    assert not np.array_equal(cell(1, 5, env.render(0)), cell(1, 5))  # it has taken up the shelf
