"""The particle worlds against the package `mpe2`, step by step; their random streams, their state, their pictures."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import shoal
from shoal import actions, tree
from shoal.envs import mpe
from shoal.envs.check import check_env
from shoal.envs.common import pcg64
from shoal.envs.mpe.env import ParticleEnv
from shoal.types import Discrete, Groups, ShoalError, Step, View

NAMES = [
    "simple",
    "simple_adversary",
    "simple_crypto",
    "simple_push",
    "simple_reference",
    "simple_speaker_listener",
    "simple_spread",
    "simple_tag",
    "simple_world_comm",
]

ENVS, MAX_CYCLES, EPISODES = 3, 8, 4

TOUCH, TAG = {"agents touch"}, {"agents touch", "caught", "top speed"}
CASES: list[tuple[str, dict[str, Any], set[str]]] = [  # scenario, arguments, what must be seen to happen
    ("simple", {}, set()),
    ("simple_adversary", {}, set()),
    ("simple_adversary", {"N": 4, "num_agent_neighbors": 2, "num_landmark_neighbors": 3}, set()),
    ("simple_adversary", {"N": 1, "num_agent_neighbors": 3, "num_landmark_neighbors": 2}, set()),
    ("simple_crypto", {}, set()),
    ("simple_push", {}, TOUCH),
    ("simple_reference", {}, set()),
    ("simple_reference", {"local_ratio": 0.2}, set()),
    ("simple_speaker_listener", {}, set()),
    ("simple_spread", {}, TOUCH | {"paid for touching"}),
    ("simple_spread", {"N": 1}, set()),
    ("simple_spread", {"N": 5, "local_ratio": 0.8, "num_agent_neighbors": 2, "num_landmark_neighbors": 3}, TOUCH),
    ("simple_spread", {"N": 2, "num_agent_neighbors": 4, "num_landmark_neighbors": 6}, TOUCH),
    ("simple_spread", {"curriculum": True}, TOUCH),
    ("simple_spread", {"curriculum": True, "curriculum_stage": 1}, TOUCH | {"paid for touching"}),
    ("simple_spread", {"N": 2, "terminate_on_success": True}, TOUCH | {"terminated"}),
    ("simple_tag", {}, TAG | {"obstacle hit", "near the edge", "outside", "far outside"}),
    ("simple_tag", {"num_good": 3, "num_adversaries": 2, "num_obstacles": 0, "num_agent_neighbors": 2}, TAG),
    ("simple_tag", {"num_obstacles": 0, "num_landmark_neighbors": 1}, TAG),
    ("simple_tag", {"num_good": 2, "num_obstacles": 3, "num_agent_neighbors": 9, "num_landmark_neighbors": 2}, TAG),
    ("simple_tag", {"curriculum": True}, TAG),
    ("simple_tag", {"curriculum": True, "curriculum_stage": 1}, TAG),
    ("simple_tag", {"curriculum": True, "curriculum_stage": 2, "num_good": 2}, TAG),
    ("simple_tag", {"num_good": 2, "terminate_on_success": True}, TAG | {"terminated"}),
    ("simple_tag", {"num_adversaries": 5, "terminate_on_success": True}, TAG | {"terminated"}),
    ("simple_world_comm", {}, TAG | {"obstacle hit", "near the edge", "outside", "some in a forest, some not", "ate"}),
    ("simple_world_comm", {"num_good": 1, "num_adversaries": 1, "num_obstacles": 0, "num_forests": 0}, TAG | {"ate"}),
    ("simple_world_comm", {"num_good": 3, "num_obstacles": 2, "num_food": 1, "num_forests": 3}, TAG | {"ate"}),
]


def reference(name: str, arguments: dict[str, Any], continuous: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package's environment, its arguments spelled as ours."""
    module = importlib.import_module(f"mpe2.{name}.{name}")
    if "curriculum_stage" in arguments:  # its base class has a property of that name, which swallows what is assigned
        monkeypatch.setattr(module.Scenario, "curriculum_stage", 0)
    own = {k: v for k, v in arguments.items() if k != "curriculum_stage"}
    env = module.parallel_env(continuous_actions=continuous, max_cycles=MAX_CYCLES, **own)
    if "curriculum_stage" in arguments:
        env.unwrapped.set_curriculum_stage(arguments["curriculum_stage"])
        assert env.unwrapped.curriculum_stage == arguments["curriculum_stage"]
    return env


def choose(env: ParticleEnv, generator: np.random.Generator) -> Groups:
    """Random actions; in 128ths, so that both sides scale them exactly. Sometimes an agent neither moves nor speaks."""
    chosen = {}
    for name, group in env.spec.groups.items():
        shape = (env.num_envs, group.num_agents)
        if isinstance(group.action, Discrete):
            chosen[name] = torch.from_numpy(generator.integers(group.action.size, size=shape))
        else:
            numbers = generator.integers(-128, 129, size=(*shape, group.action.size)) / 128
            numbers[generator.random(shape) < 0.2] = -1.0
            chosen[name] = torch.from_numpy(numbers.astype(np.float32))
    return chosen


def of_agents(env: ParticleEnv, values: Groups, row: int) -> dict[str, Any]:
    """One environment's values by agent."""
    return {
        agent: values[name][row, j].numpy()
        for name, group in env.spec.groups.items()
        for j, agent in enumerate(group.agents)
    }


def arrange(ours: ParticleEnv, row: int, theirs: Any, generator: np.random.Generator, kind: str) -> None:
    """Puts both worlds into the same state, in which things happen."""
    world, other = ours.world_of(row), theirs.unwrapped.world
    agents, span = len(world.vel), 0.04 if kind == "heap" else 0.3
    world.pos[:] = generator.uniform(-span, span, world.pos.shape)
    world.vel[:] = generator.uniform(-2, 2, world.vel.shape) * (kind == "crowd") * world.movable[:, None]
    if kind == "edge":
        world.pos[:agents] = generator.uniform(-0.03, 0.03, (agents, 2))
        world.pos[:agents, row % 2] += (0.95, -1.4, 2.3)[row]
    for i, entity in enumerate(other.entities):
        entity.state.p_pos = world.pos[i].copy()
        if i < len(world.vel):
            entity.state.p_vel = world.vel[i].copy()


def touch(a: Any, b: Any) -> bool:
    return bool(np.linalg.norm(a.state.p_pos - b.state.p_pos) < a.size + b.size)


def events(name: str, theirs: Any, rewards: dict[str, float]) -> set[str]:
    """What happened in the reference's last step."""
    world, scenario = theirs.unwrapped.world, theirs.unwrapped.scenario
    seen = set()
    hidden = {any(touch(a, forest) for forest in getattr(world, "forests", [])) for a in world.agents}
    seen |= {"some in a forest, some not"} if len(hidden) == 2 else set()
    for i, a in enumerate(world.agents):
        if a.collide and any(touch(a, b) for b in world.agents[:i]):
            seen.add("agents touch")
        if any(touch(a, b) for b in world.landmarks if b.collide):
            seen.add("obstacle hit")
        if a.max_speed is not None and abs(np.linalg.norm(a.state.p_vel) - a.max_speed) < 1e-9:
            seen.add("top speed")
        reach = np.abs(a.state.p_pos).max()
        if a.name.startswith("agent"):
            seen |= {"near the edge"} if 0.9 < reach < 1 else {"outside"} if 1 < reach < 2.15 else set()
            seen |= {"far outside"} if reach > 2.16 else set()
        if a.name.startswith("agent") and any(touch(a, food) for food in getattr(world, "food", [])):
            seen.add("ate")
        if name == "simple_spread" and scenario.reward(a, world) < 0:
            seen.add("paid for touching")
        if name in ("simple_tag", "simple_world_comm") and "adversary" in a.name and rewards[a.name] > 1:
            seen.add("caught")
    return seen


def close(ours: Any, theirs: Any, what: str) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=what)


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize(("name", "arguments", "expected"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_agrees_with_mpe2(
    name: str, arguments: dict[str, Any], expected: set[str], continuous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mpe2")
    seed = 100 * len(str(arguments)) + continuous
    generator = np.random.default_rng(seed)
    ours = mpe.make(name, ENVS, continuous_actions=continuous, max_cycles=MAX_CYCLES, **arguments)
    theirs = [reference(name, arguments, continuous, monkeypatch) for _ in range(ENVS)]
    agents = [agent for group in ours.spec.groups.values() for agent in group.agents]
    assert agents == theirs[0].possible_agents
    kinds = ["", "heap", "crowd", "edge"]  # by episode; the first is as `reset` left it
    episode = [0] * ENVS
    happened: set[str] = set()

    def begin(view: View, row: int, seed: int | None) -> None:
        obs, _ = theirs[row].reset(seed=seed)
        shown = of_agents(ours, view.obs, row)
        for agent in agents:
            close(shown[agent], obs[agent], f"first observation of {agent}, environment {row}, episode {episode[row]}")
        for color, entity in zip(ours.colors(row), theirs[row].unwrapped.world.entities, strict=True):
            close(color, entity.color[:3], f"color of {entity.name}")
        if kind := kinds[episode[row] % len(kinds)]:
            arrange(ours, row, theirs[row], generator, kind)

    view = ours.reset(seed)
    for row in range(ENVS):
        begin(view, row, seed + row)
    while min(episode) < EPISODES:
        chosen = choose(ours, generator)
        step = ours.step(chosen)
        for row, env in enumerate(theirs):
            place = f"environment {row}, episode {episode[row]}"
            given = of_agents(ours, chosen, row)
            obs, rewards, terminated, truncated, _ = env.step(
                {agent: (a + 1) / 2 if continuous else int(a) for agent, a in given.items()}
            )
            after, gained = of_agents(ours, step.successor.obs, row), of_agents(ours, step.reward, row)
            stopped, ended = of_agents(ours, step.terminated, row), bool(step.ended[row])
            for agent in agents:
                close(after[agent], obs[agent], f"observation of {agent}, {place}")
                close(gained[agent], rewards[agent], f"reward of {agent}, {place}")
                assert bool(stopped[agent]) == terminated[agent]
                assert (ended and not stopped[agent]) == truncated[agent]
            close(step.successor.state[row], env.state(), f"state, {place}")
            happened |= events(name, env, rewards)
            if ended:
                happened |= {"terminated"} if terminated[agents[0]] else set()
                episode[row] += 1
                begin(step.view, row, None)
    assert expected <= happened


def test_every_scenario_is_tested() -> None:
    assert mpe.names() == NAMES == sorted({name for name, _, _ in CASES})
    for name in NAMES:
        assert {"max_cycles", "continuous_actions"} <= set(mpe.parameters(name)) <= set(mpe.hints(name))


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_contract_and_draws(name: str, continuous: bool) -> None:
    env = mpe.make(name, 2, continuous_actions=continuous, max_cycles=7)
    check_env(env, steps=20)
    picture = env.render(1)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert 0.001 < (picture < 250).any(2).mean() < 0.9  # something on a ground


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_streams_are_numpys(seed: int) -> None:
    expected, stream = np.random.default_rng(seed), pcg64.streams([seed])[0]
    dice = np.random.default_rng(seed + 1)
    counts = [1, 2, 3, 10, 1000, 2**31 + 1, 3_000_000_000]  # many draws of the last two are thrown back
    for _ in range(4000):
        if dice.random() < 0.5:
            assert pcg64.uniform(stream, -0.9, 0.9) == expected.uniform(-0.9, 0.9)
        else:
            count = int(dice.choice(counts))
            assert pcg64.integer(stream, count) == expected.integers(count)


def played(env: ParticleEnv, steps: int, rows: slice, seed: int = 3) -> list[Step]:
    """Steps with the same actions in environment i whatever else there is."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(steps):
        chosen = {}
        for name, group in env.spec.groups.items():
            legal = torch.zeros(8, group.num_agents, 0, dtype=torch.bool)
            chosen[name] = actions.random(group.action, legal, generator)[rows]
        found.append(tree.map(torch.clone, env.step(chosen)))
    return found


def same(first: Any, second: Any) -> None:
    for a, b in zip(tree.leaves(first), tree.leaves(second), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["simple_adversary", "simple_world_comm"])
def test_an_environment_does_not_depend_on_those_beside_it(name: str) -> None:
    many, threaded = mpe.make(name, 8, max_cycles=6), mpe.make(name, 8, max_cycles=6, threads=2)
    same(many.reset(40), threaded.reset(40))
    together = played(many, 20, slice(None))
    same(together, played(threaded, 20, slice(None)))
    threaded.close()
    for i in (0, 5):
        alone = mpe.make(name, 1, max_cycles=6)
        alone.reset(40 + i)
        same(played(alone, 20, slice(i, i + 1)), tree.map(lambda t, i=i: t[i : i + 1], together))


def test_reset_without_a_seed_goes_on() -> None:
    env, again = mpe.make("simple_adversary", 2), mpe.make("simple_adversary", 2)
    first = env.reset(5).state.clone()
    second = env.reset().state.clone()
    assert not torch.equal(first, second)
    assert torch.equal(again.reset(5).state, first)
    assert torch.equal(again.reset().state, second)
    with pytest.raises(ShoalError, match="reset"):
        mpe.make("simple", 1).step({"agent": torch.zeros(1, 1, dtype=torch.int64)})


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize("name", ["simple_reference", "simple_tag"])
def test_continues_from_its_state(name: str, continuous: bool) -> None:
    env, other = (mpe.make(name, 8, continuous_actions=continuous, max_cycles=6) for _ in range(2))
    env.reset(1)
    played(env, 9, slice(None))  # to the middle of the second episode
    kept = tree.map(torch.clone, env.state_dict())
    expected = played(env, 15, slice(None), seed=8)
    other.load_state_dict(kept)
    assert torch.equal(other.state_dict()["obs"], kept["obs"])
    same(played(other, 15, slice(None), seed=8), expected)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("simple", {"N": 3}, "no N"),
        ("simple", {"max_cycles": 0}, "max_cycles"),
        ("simple", {"num_envs": 0}, "num_envs"),
        ("simple_crypto", {"local_ratio": 0.5}, "local_ratio"),
        ("simple_adversary", {"N": 0}, "N >= 1"),
        ("simple_adversary", {"num_agent_neighbors": -1}, "at least 1, or 0"),
        ("simple_spread", {"n": 3}, "its own arguments: N, local_ratio"),
        ("simple_spread", {"N": 0}, "N >= 1"),
        ("simple_spread", {"local_ratio": 1.5}, "0..1"),
        ("simple_spread", {"num_landmark_neighbors": -2}, "at least 1, or 0"),
        ("simple_spread", {"curriculum": True, "curriculum_stage": 2}, "0 or 1"),
        ("simple_reference", {"local_ratio": -0.1}, "0..1"),
        ("simple_tag", {"num_good": 0}, "num_good >= 1"),
        ("simple_tag", {"num_obstacles": -1}, "num_obstacles >= 0"),
        ("simple_tag", {"curriculum": True, "curriculum_stage": 3}, "0, 1 or 2"),
        ("simple_tag", {"num_agent_neighbors": -1}, "at least 1, or 0"),
        ("simple_world_comm", {"num_food": 0}, "num_food >= 1"),
        ("simple_world_comm", {"num_forests": -1}, "num_forests >= 0"),
    ],
)
def test_wrong_arguments(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ShoalError, match=said):
        mpe.make(name, **{"num_envs": 1, **arguments})


OWN = '''
"""A scenario of a user's own: two agents want to be far apart, for as long as they stay inside."""

from typing import Any, NamedTuple

from shoal.jit import compiled
from shoal.envs.mpe.world import Agent, Layout, World, distance, edge_cost, scatter, write_relative


class Params(NamedTuple):
    bonus: float = 1.0


def layout(p: Params) -> Layout:
    return Layout([Agent("left_0", obs_size=2), Agent("right_0", obs_size=2)])


@compiled
def reset(p: Params, w: World) -> None:
    scatter(w, 0, 2, 0.5)


@compiled
def reward(p: Params, w: World, out: Any) -> None:
    for i in range(2):
        out[i] = p.bonus * distance(w.pos, 0, 1) - edge_cost(w.pos, i)


@compiled
def observe(p: Params, w: World, i: int, out: Any) -> None:
    write_relative(w.pos, i, 1 - i, out, 0)


@compiled
def terminal(p: Params, w: World) -> bool:
    return distance(w.pos, 0, 1) > 1.0
'''


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_a_scenario_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "apart.py"
    path.write_text(OWN)
    monkeypatch.delitem(sys.modules, "apart_for_test", raising=False)
    env = ParticleEnv(load(path, "apart_for_test"), 4, bonus=2.0)
    check_env(env, steps=10)
    env.reset(0)
    away = {"left": torch.full((4, 1), 1), "right": torch.full((4, 1), 2)}
    for row in range(4):
        env.world_of(row).pos[:] = [[-0.2, 0.0], [0.2, 0.0]]
    for _ in range(25):
        step = env.step(away)
        gap = step.successor.obs["left"][:, 0, 0]
        torch.testing.assert_close(step.reward["left"][:, 0], 2 * gap)
        if step.ended.any():
            break
    assert step.terminated["right"].all()
    assert (gap > 1).all()
    assert env.render().shape[2] == 3
    # What was compiled for it must not be in the way of a process that knows nothing of it
    code = "from shoal.envs import mpe; mpe.make('simple', 1).reset(0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_incomplete_scenario_is_named() -> None:
    module = ModuleType("half_a_scenario")
    module.Params = ParticleEnv  # type: ignore[attr-defined]
    with pytest.raises(ShoalError, match="half_a_scenario has no layout"):
        ParticleEnv(module, 1)


def test_the_example_scenario_keeps_its_contract() -> None:
    path = Path(__file__).parent.parent / "examples" / "own_scenario.py"
    env = load(path, "own_scenario_for_test").make(num_envs=3, N=4)
    assert set(env.spec.groups) == {"guide", "follower"}
    check_env(env, steps=60)


def test_dynamic_rescaling_decides_whether_discs_shrink_with_a_wider_view() -> None:
    inked = []
    for rescaling in (True, False):
        env = mpe.make("simple_spread", 1, dynamic_rescaling=rescaling)
        env.reset(0)
        env.world_of(0).pos[:] = 0.0
        env.world_of(0).pos[0] = [4.0, 4.0]
        inked.append(int((env.render().min(2) < 200).sum()))
    assert inked[1] > 3 * inked[0]


@pytest.mark.parametrize(
    ("covered", "max_cycles", "terminated", "ended"), [(2, 9, True, True), (1, 9, False, False), (2, 1, False, True)]
)
def test_success_is_every_landmark_covered_before_the_time_is_up(
    covered: int, max_cycles: int, terminated: bool, ended: bool
) -> None:
    """In the last step it is a truncation, as in mpe2."""
    env = shoal.make("mpe/simple_spread", 1, N=2, terminate_on_success=True, max_cycles=max_cycles)
    env.reset(0)
    places = np.array([[-0.5, 0.0], [0.5, 0.0]])
    env.world_of(0).pos[:] = np.concatenate([places, places])  # type: ignore[attr-defined]
    env.world_of(0).pos[2 + covered :] += 0.4  # type: ignore[attr-defined]
    step = env.step({"agent": torch.zeros(1, 2, dtype=torch.int64)})
    assert step.terminated["agent"].tolist() == [[terminated, terminated]]
    assert step.ended.tolist() == [ended]
