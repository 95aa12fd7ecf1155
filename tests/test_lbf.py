"""Level-based foraging beside the package `lbforaging` 2.0.0, from the same seeds and from the same states."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium
import lbforaging
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from lbforaging.foraging.environment import Action, ForagingEnv

import shoal
from shoal import presets
from shoal.envs import lbf
from shoal.envs.common.kernel_env import KernelEnv
from shoal.types import ShoalError

OWN = ("masks", "threads")  # arguments the package does not have
CASES: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in lbf.names()],
    ("Foraging-2s-5x5-4p-2f-pen", {"max_episode_steps": 20}),
    ("Foraging-5x5-4p-4f", {"penalty": 0.3, "normalize_reward": False}),  # more food than finds a place
    ("Foraging-6x6-3p-2f", {"observe_agent_levels": False, "sight": 1}),
    ("Foraging-6x6-1p-1f-ind", {}),
    ("Foraging-grid-2s-6x6-3p-2f-coop", {}),
    ("Foraging-grid-5x5-5p-2f", {"observe_agent_levels": False}),
    ("Foraging-4x4-10p-1f", {"max_episode_steps": 9}),  # crowded: nobody starts where others still stand
    ("Foraging-6x9-3p-3f", {"min_player_level": [1, 2, 4], "max_player_level": [3, 2, 5], "sight": 3}),
    ("Foraging-7x7-3p-3f", {"min_food_level": [1, 2, 3], "max_food_level": [1, 4, 6]}),
    ("Foraging-7x7-3p-3f-coop", {"max_food_level": [1, 4, 6]}),
]


def make(name: str, num_envs: int = 1, **arguments: Any) -> KernelEnv:
    env = shoal.make(f"lbf/{name}", num_envs, **arguments)
    assert isinstance(env, KernelEnv)
    return env


class Theirs(ForagingEnv):
    """The package's environment without its own idea of bounds, which fails for grids and for most oblong fields."""

    def _get_observation_space(self) -> Box:
        width = 3 * self.max_num_food + (2 + self._observe_agent_levels) * len(self.players)
        side = 2 * self.sight + 1
        return Box(-np.inf, np.inf, (3, side, side) if self._grid_observation else (width,))

    def observed(self) -> np.ndarray:
        """`[agent, *obs_shape]`."""
        return np.stack(self._make_gym_obs())

    @property
    def legal(self) -> list[list[bool]]:
        return [[action in self._valid_actions[player] for action in Action] for player in self.players]


def package(name: str, **arguments: Any) -> Theirs:
    """The package's environment of an id, with the arguments that shoal derives from it."""
    derived = {key: p.default for key, p in lbf.parameters(name).items() if key not in OWN}
    return Theirs(**{**derived, **arguments})


def pull(env: KernelEnv, index: int, their: ForagingEnv) -> None:
    """Put the package's environment into the state of one of shoal's."""
    their.reset()
    for player, (row, col, level) in zip(their.players, env.world.player[index].tolist(), strict=True):
        player.position, player.level = (row, col), level
    their.field[:] = 0
    for row, col, level in env.world.food[index].tolist():
        their.field[row, col] += level
    their._food_spawned = env.world.spawned[index]
    their.current_step = int(env.buffers.steps[index])
    their._gen_valid_moves()


def eager(env: KernelEnv, random: np.random.Generator) -> torch.Tensor:
    """Random actions, most of which load where food is near and walk to it elsewhere, so that something happens."""
    world, envs = env.world, env.num_envs
    actions = random.integers(0, 6, world.player.shape[:2])
    for e in range(envs):
        food = world.food[e][world.food[e, :, 2] > 0].astype(int)
        for i, (row, col, _) in enumerate(world.player[e].tolist()):
            if len(food) == 0 or random.random() < 0.3:
                continue
            down, right = (food - [row, col, 0])[np.abs(food[:, :2] - [row, col]).sum(1).argmin(), :2]
            if abs(down) + abs(right) == 1:
                actions[e, i] = lbf.LOAD
            elif abs(down) > abs(right):
                actions[e, i] = lbf.SOUTH if down > 0 else lbf.NORTH
            else:
                actions[e, i] = lbf.EAST if right > 0 else lbf.WEST
    return torch.from_numpy(actions)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{n}{'*' * bool(a)}" for n, a in CASES])
def test_it_plays_the_packages_episodes(name: str, arguments: dict[str, Any]) -> None:
    """From the same seeds, through many episodes: observations, rewards, ends, and which actions do nothing."""
    envs = 3
    env = make(name, envs, masks=True, **arguments)
    theirs = [package(name, **arguments) for _ in range(envs)]
    for i, their in enumerate(theirs):
        their.reset(seed=11 + i)
    limit = theirs[0]._max_episode_steps
    view = env.reset(11)
    random = np.random.default_rng(0)
    paid = eaten = late = 0
    for _ in range(200):
        for i, their in enumerate(theirs):
            if their.current_step == 0:
                assert np.array_equal(view.obs["agent"][i], their.observed())
            assert view.legal["agent"][i].tolist() == their.legal
        actions = eager(env, random)
        step = env.step({"agent": actions})
        view = step.view
        for i, their in enumerate(theirs):
            obs, rewards, over, _, _ = their.step(actions[i].tolist())
            assert np.array_equal(step.successor.obs["agent"][i], np.stack(obs))
            assert np.array_equal(step.reward["agent"][i], np.asarray(rewards, np.float32))
            assert bool(step.ended[i]) == over
            assert step.terminated["agent"][i].tolist() == [their.field.sum() == 0] * len(rewards)
            paid += sum(r > 0 for r in rewards)
            eaten += their.field.sum() == 0
            late += over and their.current_step == limit
            if over:
                their.reset()
    assert paid
    assert eaten or late


@pytest.mark.parametrize(("name", "arguments"), CASES[::3])
def test_it_plays_on_from_any_state_as_the_package(name: str, arguments: dict[str, Any]) -> None:
    """Players anywhere, in one cell even; food where it may lie, partly eaten."""
    env = make(name, 1, **arguments)
    their = package(name, **arguments)
    random = np.random.default_rng(1)
    env.reset(3)
    for _ in range(100):
        food = env.world.food[0]
        taken = {(row, col) for row, col, level in food.tolist() if level > 0}
        for player in env.world.player[0]:
            row, col = random.integers(env.params.rows), random.integers(env.params.cols)
            if (row, col) not in taken:
                player[:2] = row, col
        pull(env, 0, their)
        actions = eager(env, random)
        step = env.step({"agent": actions})
        _, rewards, over, _, _ = their.step(actions[0].tolist())
        assert np.array_equal(step.successor.obs["agent"][0], their.observed())
        assert np.array_equal(step.reward["agent"][0], np.asarray(rewards, np.float32))
        assert bool(step.ended[0]) == over


def test_who_follows_a_blocked_player_shares_its_cell() -> None:
    """As in the package: only those who want the same cell block each other, not those who stay against their will."""
    env = make("Foraging-8x8-3p-1f")
    env.reset(0)
    env.world.player[0, :, :2] = [[2, 1], [2, 2], [2, 4]]
    env.world.food[0, 0] = [6, 6, 3]
    env.step({"agent": torch.tensor([[lbf.EAST, lbf.EAST, lbf.WEST]])})
    assert env.world.player[0, :, :2].tolist() == [[2, 2], [2, 2], [2, 4]]


def test_rewards_by_hand() -> None:
    """Levels 1 and 2 at food of level 3, of 5 in all: 3/5, divided 1 to 2. Too weak alone: the penalty."""
    env = make("Foraging-8x8-2p-2f", penalty=0.5)
    env.reset(0)
    env.world.player[0] = [[2, 3, 1], [4, 3, 2]]
    env.world.food[0] = [[3, 3, 3], [6, 6, 2]]
    env.world.spawned[0] = 5
    alone = env.step({"agent": torch.tensor([[lbf.LOAD, lbf.NONE]])})
    assert alone.reward["agent"].tolist() == [[-0.5, 0.0]]
    together = env.step({"agent": torch.tensor([[lbf.LOAD, lbf.LOAD]])})
    torch.testing.assert_close(together.reward["agent"], torch.tensor([[0.2, 0.4]]))
    assert not together.terminated["agent"].any()
    env.world.player[0, 1, :2] = 6, 5
    last = env.step({"agent": torch.tensor([[lbf.LOAD, lbf.LOAD]])})  # the first one has nothing to load any more
    torch.testing.assert_close(last.reward["agent"], torch.tensor([[0.0, 0.4]]))
    assert last.terminated["agent"].all()
    assert last.ended.all()


def test_a_time_limit_is_no_termination() -> None:
    env = make("Foraging-8x8-2p-1f", 3, max_episode_steps=4)
    env.reset(0)
    still = {"agent": torch.zeros(3, 2, dtype=torch.int64)}
    steps = [(s.ended.tolist(), s.terminated["agent"].any().item()) for s in (env.step(still) for _ in range(9))]
    assert [ended for ended, _ in steps] == [[(k % 4) == 3] * 3 for k in range(9)]
    assert not any(terminated for _, terminated in steps)


def test_starts_are_valid_and_varied() -> None:
    env = make("Foraging-8x8-3p-3f", 2000)
    env.reset(0)
    player, food = env.world.player.astype(int), env.world.food.astype(int)
    assert set(player[..., 2].ravel()) == {1, 2}
    assert np.array_equal(np.unique(player[..., :2]), np.arange(8))
    assert np.array_equal(np.unique(food[..., :2]), np.arange(1, 7))  # not at the edge
    assert (food[..., 2] <= player[..., 2].sum(1, keepdims=True)).all()
    assert np.array_equal(env.world.spawned, food[..., 2].sum(1))
    for a in range(3):
        for b in range(a):
            assert (np.abs(food[:, a, :2] - food[:, b, :2]).sum(1) > 2).all()
            assert np.abs(player[:, a, :2] - player[:, b, :2]).sum(1).all()
        for b in range(3):
            assert np.abs(food[:, a, :2] - player[:, b, :2]).sum(1).all()
    places = np.bincount(player[..., 0].ravel() * 8 + player[..., 1].ravel(), minlength=64)
    expected = 6000 / 64
    assert ((places - expected) ** 2 / expected).sum() < 110  # chi-square with 63 degrees, 1 in 5000


def test_an_environment_does_not_depend_on_those_beside_it() -> None:
    def play(num_envs: int, threads: int) -> list[torch.Tensor]:
        env = make("Foraging-8x8-2p-2f-coop", num_envs, threads=threads)
        seen = [env.reset(5).obs["agent"][:3].clone()]
        random = torch.Generator().manual_seed(0)
        for _ in range(120):
            first = torch.randint(0, 6, (3, 2), generator=random)
            rest = torch.zeros(num_envs - 3, 2, dtype=torch.int64)
            step = env.step({"agent": torch.cat([first, rest])})
            seen += [step.view.obs["agent"][:3].clone(), step.reward["agent"][:3].clone()]
        env.close()
        return seen

    alone = play(3, 1)
    for other in (play(50, 1), play(50, 3)):
        assert all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))


def test_state_dict_plays_on() -> None:
    env, other = make("Foraging-2s-6x6-3p-2f", 5, masks=True), make("Foraging-2s-6x6-3p-2f", 5, masks=True)
    env.reset(1)
    actions = torch.randint(0, 6, (130, 5, 3), generator=torch.Generator().manual_seed(0))
    for a in actions[:30]:
        env.step({"agent": a})
    other.load_state_dict({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in env.state_dict().items()})
    assert torch.equal(env._view.obs["agent"], other._view.obs["agent"])
    assert torch.equal(env._view.legal["agent"], other._view.legal["agent"])
    for a in actions[30:]:
        one, two = env.step({"agent": a}), other.step({"agent": a})
        assert torch.equal(one.view.obs["agent"], two.view.obs["agent"])
        assert torch.equal(one.reward["agent"], two.reward["agent"])
        assert torch.equal(one.ended, two.ended)


@pytest.mark.parametrize("name", ["Foraging-8x8-2p-2f-coop", "Foraging-grid-2s-6x6-3p-2f"])
@pytest.mark.parametrize("masks", [False, True])
def test_it_keeps_the_contract_and_trains(name: str, masks: bool) -> None:
    env = make(name, 4, masks=masks)
    shoal.check_env(env)
    for algorithm, settings in (("mappo", {"batch_steps": 80}), ("qmix", {"warmup": 50, "batch_size": 8})):
        learner = shoal.build(algorithm, env.spec, **settings)
        for _ in shoal.train(learner, env, total_steps=240):
            pass


def test_ids() -> None:
    assert {f"lbf/{n}" for n in lbf.names()} <= set(shoal.registry.environments("lbf"))
    for same in ("8x8-2p-2f-2s-coop", "Foraging-2s-8x8-2p-2f-coop-v3", "2s-8x8-2p-2f-coop"):
        assert lbf.parse(same) == lbf.Rules(2, (8, 8), 2, 2, force_coop=True)
        assert lbf.canonical(same) == "Foraging-2s-8x8-2p-2f-coop"
    assert lbf.parse("Foraging-grid-5x6-3p-1f-ind-pen") == lbf.Rules(
        3, (5, 6), 1, 6, max_food_level=1, penalty=0.1, grid_observation=True
    )
    for wrong in ("Foraging-8x8-2p", "Foraging-8x8-2p-2f-v2", "8x8-2p-2f-coop-2s", "2s-8x8-2p-2f-2s", "spread"):
        with pytest.raises(ShoalError, match="an id is Foraging"):
            make(wrong)


def test_registered_ids_mean_the_same_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments that an id stands for, against those the package registers."""
    registered = {name: spec.kwargs for name, spec in gymnasium.registry.items() if name.startswith("Foraging-")}
    monkeypatch.setattr(lbforaging, "register", lambda id, entry_point, kwargs: registered.update({id: kwargs}))
    lbforaging.register_grid_envs()
    assert any("grid" in name for name in registered)
    for name in list(registered)[::61]:
        ours = {key: p.default for key, p in lbf.parameters(name).items()}
        assert {key: ours[key] for key in registered[name]} == registered[name]


def test_arguments_are_the_packages() -> None:
    theirs = set(inspect.signature(ForagingEnv).parameters) - {"render_mode"}
    assert set(lbf.parameters(lbf.names()[0])) == theirs | set(OWN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigth": 2}, "sight"),
        ({"sight": 0}, "sight must be at least 1"),
        ({"players": 0}, "players"),
        ({"players": 65}, "do not fit"),
        ({"field_size": (2, 8)}, "field_size"),
        ({"min_player_level": 3}, "above max_player_level"),
        ({"max_player_level": [1, 2, 3]}, "or 2 of them"),
        ({"max_player_level": 100}, "exceed"),
        ({"min_food_level": 3}, "three weakest"),
        ({"min_food_level": 3, "max_food_level": 2}, "above max_food_level"),
        ({"max_num_food": 128}, "at most 127"),
        ({"max_food_level": 0}, "level from 1"),
        ({"max_food_level": [1.5, 2.0]}, "level from 1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ShoalError, match=message):
        make("Foraging-8x8-2p-2f", **arguments)


def test_wrong_actions_and_no_reset() -> None:
    env = make("Foraging-8x8-2p-2f")
    with pytest.raises(ShoalError, match="reset"):
        env.step({"agent": torch.zeros(1, 2, dtype=torch.int64)})
    env.reset()
    for wrong in (torch.tensor([[0, 6]]), torch.tensor([[0, -1]]), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ShoalError, match="actions of agent"):
            env.step({"agent": wrong})


def test_a_picture_shows_where_everything_is() -> None:
    env = make("Foraging-8x8-2p-1f")
    env.reset(0)
    env.world.player[0] = [[0, 0, 1], [7, 2, 2]]
    env.world.food[0] = [[3, 4, 2]]
    before = env.render(0)
    assert before.shape == (8 * lbf.CELL + 1, 8 * lbf.CELL + 1, 3)
    assert before.dtype == np.uint8

    def cell(picture: np.ndarray, row: int, col: int) -> np.ndarray:
        return picture[row * lbf.CELL + 1 : (row + 1) * lbf.CELL, col * lbf.CELL + 1 : (col + 1) * lbf.CELL]

    empty = cell(before, 5, 5)
    for row, col in ((0, 0), (7, 2), (3, 4)):
        assert not np.array_equal(cell(before, row, col), empty)
    env.world.food[0, 0, 2] = 0
    after = env.render(0)
    assert np.array_equal(cell(after, 3, 4), empty)
    assert np.array_equal(cell(after, 0, 0), cell(before, 0, 0))


def test_settings_are_found_by_every_name() -> None:
    known = presets.task("mappo", "lbf/Foraging-10x10-3p-3f")
    assert known
    assert presets.task("mappo", "lbf/Foraging-10x10-3p-3f-v3") == known
    assert presets.task("mappo", "lbf/10x10-3p-3f") == known
    assert presets.task("mappo", "lbf/Foraging-7x7-3p-3f") == {}


@pytest.mark.parametrize("name", ["lbf/Foraging-8x8-2p-2f", "rware/tiny-2ag", "comm/predator_prey-easy"])
def test_without_a_seed_the_streams_go_on(name: str) -> None:
    env = shoal.make(name, 8)
    (group,) = env.spec.groups
    starts = [env.reset(seed).obs[group].clone() for seed in (5, None, None, 5)]
    assert torch.equal(starts[0], starts[3])
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])
