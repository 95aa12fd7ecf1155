"""Suites of other packages: what their adapters promise, against the packages themselves."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import shoal
from shoal import actions, checkpoint, registry
from shoal.envs.check import problems
from shoal.types import Box, Discrete, Groups, ShoalError, VecEnv, View

SUITES = {"vmas": "vmas", "mamujoco": "gymnasium_robotics", "magent": "magent2", "openspiel": "pyspiel",
          "lbf_py": "lbforaging", "rware_py": "rware"}  # fmt: skip


def legal(env: VecEnv, view: View, seed: int) -> Groups:
    generator = torch.Generator().manual_seed(seed)
    return {n: actions.random(g.action, view.legal[n], generator) for n, g in env.spec.groups.items()}


def observations(env: VecEnv, seed: int | None, steps: int) -> torch.Tensor:
    """Of all groups and steps, one after the other, with rewards."""
    view = env.reset(seed)
    shown = [x.flatten() for x in view.obs.values()]
    for k in range(steps):
        step = env.step(legal(env, view, k))
        view = step.view
        shown += [x.flatten().clone() for values in (view.obs, step.reward) for x in values.values()]
    return torch.cat(shown)


def test_names_import_nothing() -> None:
    code = (
        "import sys; from shoal import registry\n"
        f"for suite in {list(SUITES)}: assert registry.environments(suite), suite\n"
        f"loaded = set(sys.modules) & {set(SUITES.values()) | {'torch.utils.tensorboard', 'pyglet', 'mujoco'}}\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("suite", SUITES)
def test_a_missing_package_names_the_extra(suite: str, monkeypatch: Any) -> None:
    extras = {"lbf_py": "lbf", "rware_py": "rware"}
    for name in [n for n in sys.modules if n.split(".")[0] == SUITES[suite]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, SUITES[suite], None)
    name = registry.environments(suite)[0]
    with pytest.raises(ShoalError, match=rf"pip install 'shoal\[{extras.get(suite, suite)}\]'"):
        shoal.make(name)


@pytest.mark.parametrize(
    "name",
    ["vmas/simple_tag", "mamujoco/Hopper-3x1", "magent/battle", "openspiel/leduc_poker", "openspiel/goofspiel",
     "lbf_py/Foraging-8x8-2p-2f-coop", "rware_py/rware-tiny-2ag"],
)  # fmt: skip
def test_the_contract_holds_and_seeds_decide_everything(name: str) -> None:
    arguments = {"map_size": 16} if name.startswith("magent") else {}
    env, other = (shoal.make(name, 2, **arguments) for _ in range(2))
    assert not problems(env, 60)
    assert not problems(getattr(env, "envs", [env])[0], 30)
    torch.manual_seed(0)
    state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    one = observations(env, 3, 30)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    torch.manual_seed(1)
    assert torch.equal(one, observations(other, 3, 30))
    if not name.startswith("magent"):  # its armies always stand the same, and nothing is random but the actions
        assert not torch.equal(one, observations(env, 4, 30))


@pytest.mark.parametrize("suite", ["vmas", "mamujoco", "openspiel", "lbf_py", "rware_py"])
def test_an_unknown_name_is_told_with_the_nearest(suite: str) -> None:
    name = registry.environments(suite)[0]
    with pytest.raises(ShoalError, match=name.split("/")[1].split("-")[0]):
        shoal.make(name[:-1] + "q")


# VMAS


def test_vmas_is_the_package(monkeypatch: Any) -> None:
    """The same seed and forces: the package's own observations and rewards, through a time limit."""
    import vmas

    env = shoal.make("vmas/balance", 4, max_steps=10, n_agents=2)
    raw = vmas.make_env("balance", 4, max_steps=10, seed=0, n_agents=2, terminated_truncated=True)
    ours, theirs = env.reset(5).obs["agent"], torch.stack(raw.reset(seed=5), 1)
    assert torch.equal(ours, theirs)
    for k in range(9):
        chosen = legal(env, View({}, {"agent": torch.zeros(4, 2, 0)}, torch.zeros(0)), k)
        step = env.step(chosen)
        shown, rewards, terminated, truncated, _ = raw.step([chosen["agent"][:, j] for j in range(2)])
        assert torch.equal(step.successor.obs["agent"], torch.stack(shown, 1))
        assert torch.equal(step.reward["agent"], torch.stack(rewards, 1))
        assert torch.equal(step.ended, terminated | truncated)
        if step.ended.any():
            break
    env.close()


def test_vmas_tells_the_time_limit_from_an_end() -> None:
    env = shoal.make("vmas/balance", 6, max_steps=40)
    view, cut, stopped = env.reset(0), 0, 0
    for k in range(120):
        step = env.step(legal(env, view, k))
        ended, terminated = step.ended, step.terminated["agent"].all(1)
        assert not (terminated & ~ended).any()
        cut, stopped = cut + int((ended & ~terminated).sum()), stopped + int(terminated.sum())
        for row in ended.nonzero().flatten():
            assert not torch.equal(step.successor.obs["agent"][row], step.view.obs["agent"][row])
        assert torch.equal(step.successor.obs["agent"][~ended], step.view.obs["agent"][~ended])
        view = step.view
    assert cut
    assert stopped


def test_vmas_environments_do_not_disturb_each_other() -> None:
    alone, one, other = (shoal.make("vmas/navigation", 2, max_steps=5) for _ in range(3))
    expected = observations(alone, 1, 12)
    view = one.reset(1)
    shown = [view.obs["agent"].flatten()]
    other.reset(7)
    for k in range(12):
        other.step(legal(other, view, k))
        step = one.step(legal(one, view, k))
        view = step.view
        shown += [view.obs["agent"].flatten(), step.reward["agent"].flatten()]
    assert torch.equal(torch.cat(shown), expected)


def test_vmas_groups_actions_and_pictures() -> None:
    spec = shoal.make("vmas/simple_world_comm").spec
    assert {n: g.action for n, g in spec.groups.items()} == {
        "lead_adversary": Box(6),  # two forces, four words
        "adversary": Box(2),
        "agent": Box(2),
    }
    env = shoal.make("vmas/simple_world_comm", 2, continuous_actions=False)
    assert env.spec.groups["lead_adversary"].action == Discrete(36)
    view = env.reset(0)
    env.step(legal(env, view, 0))
    picture = env.render(1)
    assert picture.shape[2] == 3
    assert picture.std() > 0
    env.close()
    with pytest.raises(ShoalError, match="n_agnts"):
        shoal.make("vmas/balance", n_agnts=3)


# MaMuJoCo


def test_mamujoco_groups_state_and_what_it_prints(capfd: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    env = shoal.make("mamujoco/Humanoid-9|8", 1)
    assert {n: (g.obs_shape, g.action) for n, g in env.spec.groups.items()} == {
        "agent": ((242,), Box(9)),
        "agent_2": ((170,), Box(8)),
    }
    assert env.spec.state_size == 348
    view = env.reset(0)
    assert view.obs["agent"].dtype == torch.float32
    env.step(legal(env, view, 0))
    env.close()
    assert not any(capfd.readouterr())
    assert not list(tmp_path.iterdir())


def test_mamujoco_hands_arguments_on() -> None:
    near, far = (shoal.make("mamujoco/HalfCheetah-6x1", agent_obsk=k) for k in (0, 1))
    assert near.spec.groups["agent"].obs_shape < far.spec.groups["agent"].obs_shape
    whole = shoal.make("mamujoco/HalfCheetah")
    assert whole.spec.groups["agent"].action == Box(6)
    with pytest.raises(ShoalError, match="HalfCheetah-2x3"):
        shoal.make("mamujoco/HalfCheetah-7x7")
    with pytest.raises(ShoalError, match="nonsense"):
        shoal.make("mamujoco/HalfCheetah-2x3", nonsense=1)


# MAgent2


def test_magent_teams_and_deaths() -> None:
    env = shoal.make("magent/combined_arms", 1, map_size=16, max_cycles=100)
    assert list(env.spec.groups) == ["redmelee", "redranged", "bluemelee", "blueranged"]
    assert env.spec.state_size == 16 * 16 * 9
    view, before = env.reset(0), {}
    deaths = 0
    for k in range(120):
        step = env.step(legal(env, view, k))
        for name, alive in step.alive.items():
            if name in before:
                left = before[name][0]
                assert not alive[0, left].any()  # who died does not act, and stays terminated
                assert step.terminated[name][0, left].all()
                deaths += int(left.sum())
        view = step.view
        before = {} if step.ended else {n: t.clone() for n, t in step.terminated.items()}
    assert deaths


def test_magent_goes_on_when_a_kind_has_died_out() -> None:
    env: Any = shoal.make("magent/tiger_deer", 1)
    env.reset(0)
    idle = {n: torch.zeros(1, g.num_agents, dtype=torch.int64) for n, g in env.spec.groups.items()}
    ends = []
    for _ in range(105):  # tigers starve, which ends the game
        step = env.step(idle)
        if step.ended:
            ends.append(step.terminated["tiger"].all() and step.successor.state.any())
    assert ends
    assert all(ends)


# The Python packages of LBF and RWARE


@pytest.mark.parametrize(
    ("name", "package", "id"),
    [
        ("lbf_py/Foraging-8x8-2p-2f-coop", "lbforaging", "Foraging-8x8-2p-2f-coop-v3"),
        ("lbf_py/Foraging-2s-10x10-3p-3f", "lbforaging", "Foraging-2s-10x10-3p-3f-v3"),
        ("rware_py/rware-tiny-2ag", "rware", "rware-tiny-2ag-v2"),
    ],
)
def test_tuples_are_the_packages_games(name: str, package: str, id: str) -> None:
    """Same seed and actions: the package's observations and rewards; its time limit is a truncation here."""
    __import__(package)
    env = shoal.make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw: Any = gymnasium.make(id, disable_env_checker=True).unwrapped
    seed = np.random.SeedSequence([4, 0, 0]).generate_state(1)[0]
    ours, (theirs, _) = env.reset(4).obs["agent"][0], raw.reset(seed=int(seed) % 2**31)
    assert np.array_equal(ours, np.stack(theirs))
    random = np.random.default_rng(0)
    for _ in range(500):
        chosen = random.integers(0, 5, len(raw.action_space))
        step = env.step({"agent": torch.from_numpy(chosen).unsqueeze(0)})
        theirs, rewards, ended, _, _ = raw.step(tuple(chosen.tolist()))
        assert np.array_equal(step.successor.obs["agent"][0], np.stack(theirs))
        assert np.allclose(step.reward["agent"][0], rewards)
        assert bool(step.ended) == ended
        if ended:
            break
    assert ended
    assert not step.terminated["agent"].any()


def test_all_food_eaten_terminates() -> None:
    env: Any = shoal.make("lbf_py/Foraging-5x5-2p-1f", max_episode_steps=400)
    view = env.reset(0)
    for k in range(2000):
        step = env.step(legal(env, view, k))
        eaten = bool(step.reward["agent"].sum() > 0)
        assert step.terminated["agent"].tolist() == [[eaten, eaten]]  # the only food
        assert step.ended or not eaten
        if eaten:
            return
    raise AssertionError("nobody ever ate")


def test_tuples_take_the_packages_arguments_and_draw() -> None:
    env: Any = shoal.make("lbf_py/Foraging-15x15-4p-5f", max_episode_steps=3)
    assert env.envs[0].env.max_num_food == 5
    view = env.reset(0)
    ends = [bool(env.step(legal(env, view, k)).ended) for k in range(6)]
    assert ends == [False, False, True] * 2
    assert env.render().std() > 0
    env.close()
    env = shoal.make("rware_py/rware-tiny-2ag", reward_type="global", max_steps=5)
    assert env.envs[0].env.reward_type.name == "GLOBAL"
    env.reset(0)
    assert env.render().std() > 0
    env.close()
    with pytest.raises(ShoalError, match="two_stage"):
        shoal.make("rware_py/rware-tiny-2ag", reward_type="twostage")
    with pytest.raises(ShoalError, match="nonsense"):
        shoal.make("lbf_py/Foraging-8x8-2p-2f", nonsense=1)


# OpenSpiel


def test_kuhn_poker_by_hand() -> None:
    """One decision a step; who waits has one action, is present, and sees its own card."""
    env: Any = shoal.make("openspiel/kuhn_poker", 1)
    group = env.spec.groups["player"]
    assert (group.agents, group.obs_shape, group.action, group.masked) == (
        ("player_0", "player_1"), (11,), Discrete(2), True,
    )  # fmt: skip
    view = env.reset(3)
    cards = view.obs["player"][0, :, 2:5].argmax(-1)
    assert cards[0] != cards[1]
    assert view.legal["player"].tolist() == [[[True, True], [True, False]]]
    step = env.step({"player": torch.tensor([[1, 0]])})  # player_0 bets
    assert step.alive["player"].tolist() == [[True, False]]
    assert not step.terminated["player"].any()
    assert step.view.legal["player"].tolist() == [[[True, False], [True, True]]]
    step = env.step({"player": torch.tensor([[0, 1]])})  # player_1 calls
    assert step.alive["player"].tolist() == [[False, True]]
    assert step.terminated["player"].all()
    assert step.ended.all()
    better = int(cards.argmax())
    assert step.reward["player"][0, better] == 2
    assert step.reward["player"][0, 1 - better] == -2
    with pytest.raises(ShoalError, match="player_0 is illegal"):
        env.step({"player": torch.tensor([[2, 0]])})


def test_cards_are_dealt_uniformly_and_an_environment_does_not_depend_on_the_others() -> None:
    env = shoal.make("openspiel/kuhn_poker", 3000)
    cards = env.reset(0).obs["player"][..., 2:5].argmax(-1)
    counts = torch.bincount(cards[:, 0] * 3 + cards[:, 1], minlength=9)
    assert counts[[0, 4, 8]].eq(0).all()
    assert (counts[[1, 2, 3, 5, 6, 7]] - 500).abs().max() < 100  # standard deviation 20
    few = shoal.make("openspiel/kuhn_poker", 2)
    assert torch.equal(few.reset(0).obs["player"], env.reset(0).obs["player"][:2])


def test_rewards_are_what_returns_grew_by() -> None:
    env: Any = shoal.make("openspiel/leduc_poker", 3, players=3)
    view, total = env.reset(0), torch.zeros(3, 3)
    for k in range(60):
        before = [state.clone() for state in env.states]
        chosen = legal(env, view, k)
        step = env.step(chosen)
        view, total = step.view, total + step.reward["player"]
        for i in step.ended.nonzero().flatten().tolist():
            last = before[i]
            last.apply_action(int(chosen["player"][i, last.current_player()]))
            assert last.is_terminal()
            assert total[i].tolist() == last.returns()
            total[i] = 0


def test_simultaneous_games() -> None:
    env = shoal.make("openspiel/goofspiel", 2, num_cards=4, returns_type="point_difference")
    view = env.reset(0)
    for k in range(3):
        assert view.legal["player"].sum(-1).tolist() == [[4 - k, 4 - k]] * 2
        step = env.step(legal(env, view, k))
        assert step.alive["player"].all()
        view = step.view
    assert step.ended.all()  # the last card is played by itself


def test_games_that_do_not_fit_say_why() -> None:
    for name, why in (("mfg_garnet", "mean-field"), ("cribbage", "no tensors"), ("stones_and_gems", "random numbers")):
        with pytest.raises(ShoalError, match=why):
            shoal.make(f"openspiel/{name}")
    with pytest.raises(ShoalError, match="players"):
        shoal.make("openspiel/kuhn_poker", plyers=3)


def test_a_game_goes_on_after_a_checkpoint(tmp_path: Path) -> None:
    env, resumed = (shoal.make("openspiel/leduc_poker", 4) for _ in range(2))
    view = env.reset(1)
    for k in range(7):
        view = env.step(legal(env, view, k)).view
    checkpoint.save(tmp_path, env.state_dict(), 0)
    resumed.reset(2)
    resumed.load_state_dict(checkpoint.load(tmp_path))
    for k in range(20):
        chosen = legal(env, view, k)
        one, two = env.step(chosen), resumed.step(chosen)
        assert torch.equal(one.view.obs["player"], two.view.obs["player"])
        assert torch.equal(one.reward["player"], two.reward["player"])
        view = one.view
    picture = env.render()
    assert picture.shape == (480, 480, 3)
    assert picture.std() > 0


def test_the_tables_rows_are_written_and_read_again(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "docs"))
    import environments_table as table

    page = tmp_path / "all.md"
    page.write_text(f"before\n{table.BEGIN}\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(table, "everything", lambda: ["matrix/climbing", "mamujoco/Humanoid-9|8", "no/such"])
    assert table.missing() == table.everything()
    table.write({name: table.line(name, row) for name, row in table.tried(["matrix/climbing", "no/such"])})
    assert table.missing() == ["mamujoco/Humanoid-9|8"]
    text = page.read_text()
    assert "| `matrix/climbing` | player 2 | 1 | 3 choices | no | 1 | works |" in text
    assert "making it: ShoalError: there is no suite" in text
    assert text.endswith("after\n")
