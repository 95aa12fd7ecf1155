"""Turn-based (AEC) environments: who acts and waits, what arrives later, who leaves; opponents agent by agent."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo import AECEnv

import shoal
from shoal import actions, checkpoint, cli
from shoal.algorithms.ppo import PPO
from shoal.algorithms.ppo import Config as PPOConfig
from shoal.algorithms.value_decomposition import Config as QConfig
from shoal.algorithms.value_decomposition import ValueDecomposition
from shoal.collect import LocalCollector
from shoal.envs import pettingzoo as suite
from shoal.envs.check import problems
from shoal.envs.common.serial import SerialEnvs
from shoal.log import read_evaluations
from shoal.registry import Environment
from shoal.teams.scripted import Scripted
from shoal.teams.team import Against, Seats, seat
from shoal.types import Discrete, Groups, ShoalError, Step, View


@dataclass
class Turn:
    """Whose turn it is, and what comes of it, whatever is done."""

    agent: int
    rewards: dict[int, float] = field(default_factory=dict)
    terminated: tuple[int, ...] = ()
    truncated: tuple[int, ...] = ()


class Told(AECEnv):
    """A game that goes as a list of turns says. An agent observes the time and its number."""

    metadata: ClassVar[dict[str, Any]] = {"name": "told"}

    def __init__(self, turns: list[Turn], linger: bool = False, blind: bool = False) -> None:
        self.turns, self.linger, self.blind = turns, linger, blind
        self.possible_agents = [f"a_{k}" for k in range(3)]
        self.taken: list[tuple[str, int]] = []
        self._skip_agent_selection = None

    def observation_space(self, agent: str) -> Any:
        return spaces.Dict({"observation": spaces.Box(-1, 99, (2,)), "action_mask": spaces.MultiBinary(3)})

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.time, self.agents = 0, list(self.possible_agents)
        self.rewards, self._cumulative_rewards = (dict.fromkeys(self.agents, 0.0) for _ in "ab")
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in "ab")
        self.infos: dict[str, Any] = {a: {} for a in self.agents}
        self.agent_selection = f"a_{self.turns[0].agent}"

    def observe(self, agent: str) -> Any:
        if self.blind and agent != self.agent_selection:
            return None
        mask = np.array([0, 1, 1], np.int8) if agent == self.agent_selection else np.zeros(3, np.int8)
        return {"observation": np.array([self.time, agent[-1]], np.float32), "action_mask": mask}

    def step(self, action: int | None) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            if self.linger and self.time + 1 < len(self.turns):
                self.time += 1
                self.agent_selection = f"a_{self.turns[self.time].agent}"
            return
        self.taken.append((agent, action))
        turn = self.turns[self.time]
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        self.rewards |= {f"a_{k}": reward for k, reward in turn.rewards.items()}
        self.terminations |= {f"a_{k}": True for k in turn.terminated}
        self.truncations |= {f"a_{k}": True for k in turn.truncated}
        self.time += 1
        if self.time < len(self.turns):
            self.agent_selection = f"a_{self.turns[self.time].agent}"
        self._accumulate_rewards()
        if not self.linger:
            self._deads_step_first()


def play(env: SerialEnvs, count: int, action: int = 1) -> list[Step]:
    """Everybody does `action`, or the one thing that waiting is; what the steps were, copied."""
    steps = []
    for _ in range(count):
        chosen = {n: torch.where(env.view.legal[n][..., action], action, 0) for n in env.spec.groups}
        steps.append(shoal.tree.map(torch.clone, env.step(chosen)))
    return steps


def column(steps: list[Step], name: str) -> list[list[Any]]:
    """A field of the group `a` in environment 0, by step and agent."""
    return [getattr(step, name)["a"][0].tolist() for step in steps]


def test_one_row_is_one_turn() -> None:
    game = [Turn(0, {0: 1.0}), Turn(2, {0: 2.0, 1: -1.0}), Turn(1, {1: 5.0}, terminated=(0, 1, 2))]
    env = SerialEnvs(lambda: Told(game), 1)
    view = env.reset(0)
    assert env.spec.groups["a"].masked
    assert view.legal["a"][0].tolist() == [[False, True, True], [True, False, False], [True, False, False]]
    steps = play(env, 4)
    assert env.envs[0].taken == [("a_0", 1), ("a_2", 1), ("a_1", 1), ("a_0", 1)]
    assert column(steps, "alive") == [
        [True, False, False],
        [False, False, True],
        [False, True, False],
        [True, False, False],
    ]
    assert column(steps, "reward") == [[1.0, 0.0, 0.0], [2.0, -1.0, 0.0], [0.0, 5.0, 0.0], [1.0, 0.0, 0.0]]
    assert column(steps, "terminated") == [[False] * 3, [False] * 3, [True] * 3, [False] * 3]
    assert [bool(s.ended) for s in steps] == [False, False, True, False]
    assert steps[2].successor.obs["a"][0].tolist() == [[3.0, 0.0], [3.0, 1.0], [3.0, 2.0]]
    assert steps[2].view.obs["a"][0, :, 0].tolist() == [0.0, 0.0, 0.0]
    assert steps[0].view.legal["a"][0, :, 0].tolist() == [True, True, False]  # a_2 acts next


def test_a_time_limit_is_no_termination() -> None:
    env = SerialEnvs(lambda: Told([Turn(0), Turn(1, truncated=(0, 1, 2))]), 1)
    env.reset(0)
    steps = play(env, 2)
    assert column(steps, "terminated") == [[False] * 3] * 2
    assert [bool(s.ended) for s in steps] == [False, True]
    assert steps[1].successor.obs["a"][0, :, 0].tolist() == [2.0, 2.0, 2.0]


def test_agents_that_die_leave_and_the_others_go_on() -> None:
    game = [Turn(0), Turn(1, {0: -3.0}, terminated=(0,)), Turn(2, {1: 1.0}), Turn(1, terminated=(1, 2))]
    env = SerialEnvs(lambda: Told(game), 1)
    env.reset(0)
    steps = play(env, 4)
    assert column(steps, "terminated") == [[False] * 3, [True, False, False], [True, False, False], [True] * 3]
    assert column(steps, "alive") == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
        [False, True, False],
    ]
    assert column(steps, "reward")[1] == [-3.0, 0.0, 0.0]
    assert steps[1].successor.obs["a"][0, 0].tolist() == [2.0, 0.0]  # what it saw last
    assert steps[1].view.obs["a"][0, 0].tolist() == [0.0, 0.0]
    assert steps[1].view.legal["a"][0].tolist() == [[True, False, False], [True, False, False], [False, True, True]]
    env.reset(0)
    rows = LocalCollector(Scripted(env.spec, "still"), env, 4, 0).collect().groups["a"]
    assert rows.present[:, 0].tolist() == [[True] * 3, [True] * 3, [False, True, True], [False, True, True]]


def test_who_is_out_but_has_not_been_asked_to_leave_is_still_paid() -> None:
    """PettingZoo's `last()` would tell it so at its empty step."""
    game = [Turn(0, terminated=(0,)), Turn(1, {0: 7.0}), Turn(0), Turn(2, terminated=(1, 2)), Turn(1), Turn(2)]
    env = SerialEnvs(lambda: Told(game, linger=True), 1)
    env.reset(0)
    steps = play(env, 3)
    assert column(steps, "reward")[1] == [7.0, 0.0, 0.0]
    assert column(steps, "terminated") == [[False] * 3, [True, False, False], [True] * 3]
    assert [bool(s.ended) for s in steps] == [False, False, True]


def test_what_a_game_does_not_show_is_zeros() -> None:
    env = SerialEnvs(lambda: Told([Turn(1), Turn(2), Turn(0, terminated=(0, 1, 2))], blind=True), 1)
    assert env.reset(0).obs["a"][0].tolist() == [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert play(env, 1)[0].view.obs["a"][0].tolist() == [[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]]


class Later(AECEnv):
    """The first player picks a door, the second waves; then the first is paid for its door, in the second's turn.

    Who is first is drawn. Both see the time, whether they are first, and the door.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "later"}

    def __init__(self) -> None:
        self.possible_agents = ["player_0", "player_1"]
        self.random = np.random.default_rng()

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(0, 2, (4,), np.float64)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.rewards, self._cumulative_rewards = (dict.fromkeys(self.agents, 0.0) for _ in "ab")
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in "ab")
        self.infos: dict[str, Any] = {a: {} for a in self.agents}
        self.first = self.agent_selection = str(self.random.choice(self.agents))
        self.door, self.time = 0, 0

    def observe(self, agent: str) -> Any:
        return np.array([self.time == 0, self.time == 1, agent == self.first, self.time * self.door], np.float64)

    def step(self, action: int | None) -> None:
        agent = self.agent_selection
        if self.terminations[agent]:
            return self._was_dead_step(action)
        assert action is not None
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        self.time += 1
        if self.time == 1:
            self.door = action
            self.agent_selection = next(a for a in self.agents if a != agent)
        else:
            self.rewards[self.first] = float(self.door)
            self.terminations = dict.fromkeys(self.agents, True)
        self._accumulate_rewards()
        return None


@pytest.fixture
def later() -> SerialEnvs:
    return SerialEnvs(Later, 4)


def test_the_first_player_is_drawn_from_the_seed(later: SerialEnvs) -> None:
    assert {tuple(later.reset(seed).obs["player"][0, :, 2].tolist()) for seed in range(9)} == {(1.0, 0.0), (0.0, 1.0)}


def test_q_learning_credits_the_action_that_earned_what_came_later(later: SerialEnvs) -> None:
    config = QConfig(
        reward="own", gamma=0.5, lr=3e-3, warmup=64, update_every=8, target_every=20, tau=1.0, epsilon_end=1.0
    )
    algorithm = ValueDecomposition(later.spec, config, seed=0)
    for _ in shoal.train(algorithm, later, 3000, seed=0):
        pass
    first, second = torch.tensor([1.0, 0, 1, 0]), torch.tensor([1.0, 0, 0, 0])
    waits = torch.tensor([0.0, 1, 1, 1])
    net = algorithm.nets["player"]
    with torch.no_grad():
        q = net.step(torch.stack([first, second, waits]).unsqueeze(1).expand(-1, 2, -1), torch.zeros(3, 2, 0))[0]
    q = algorithm.norm.restore(q)[:, 0]
    assert q[0].tolist() == pytest.approx([0.0, 0.5], abs=0.07)  # gamma times what the other's turn pays
    assert q[2, 0].item() == pytest.approx(1.0, abs=0.07)  # to wait, having picked door 1
    assert q[1, 0].item() == pytest.approx(0.0, abs=0.07)


def test_policy_gradients_credit_it_too(later: SerialEnvs) -> None:
    config = PPOConfig(
        value="own", reward="own", batch_steps=256, gamma=0.5, lam=1.0, lr=5e-3, normalise_value=False, minibatches=2
    )
    algorithm = PPO(later.spec, config, seed=0)
    batch = LocalCollector(algorithm, later, 64, 0).collect()
    rows = batch.groups["player"]
    target = algorithm._study(batch).target  # with lambda 1 the return itself, where the episode ends in the rollout
    acted = rows.alive[:-1, ..., :] & rows.obs[:-1, ..., 0].bool()
    assert acted.sum() == 32 * 4
    assert torch.allclose(target[:-1][acted], 0.5 * rows.action[:-1][acted].float(), atol=1e-5)
    assert (rows.present).all()
    for _ in shoal.train(algorithm, later, 256 * 8, seed=0):
        pass
    first = View(
        {"player": torch.tensor([[[1.0, 0, 1, 0]] * 2] * 100)},
        {"player": torch.ones(100, 2, 2, dtype=torch.bool)},
        torch.zeros(100, 0),
    )
    drawn = algorithm.act(first, algorithm.initial_memory(100), explore=True)[0]["player"]
    assert drawn.float().mean() > 0.9


GAMES = (
    "tictactoe", "connect_four", "leduc_holdem", "texas_holdem", "texas_holdem_no_limit", "hanabi", "rps", "chess",
    "go",
)  # fmt: skip


@pytest.mark.parametrize("game", GAMES)
def test_classic_games_play_by_their_rules(game: str) -> None:
    env = suite.make(f"classic/{game}", 2)
    generator = torch.Generator().manual_seed(0)
    env.reset(0)
    for _ in range(60):
        step = env.step(suite.random_actions(env, generator))
        acted = torch.cat(list(step.alive.values()), 1)
        assert (acted.sum(1) == (2 if game == "rps" else 1)).all()
        for name, legal in step.view.legal.items():
            if env.spec.groups[name].masked:
                assert legal.any(-1).all()
    env.close()


def test_connect_four_pays_both_players_in_the_winners_turn() -> None:
    env = suite.make("classic/connect_four-v3", 1)
    view = env.reset(0)
    assert env.spec.groups["player"].obs_shape == (6, 7, 2)
    for number, place in enumerate((0, 1, 0, 1, 0, 1, 0)):
        moves = torch.zeros(1, 2, dtype=torch.int64)
        moves[0, number % 2] = place
        assert view.legal["player"][0, number % 2].all()
        assert view.legal["player"][0, 1 - number % 2].tolist() == [True] + [False] * 6
        step = env.step({"player": moves})
        view = step.view
    assert step.ended.all()
    assert step.reward["player"].tolist() == [[1.0, -1.0]]
    assert step.alive["player"].tolist() == [[True, False]]
    assert step.terminated["player"].all()
    assert step.successor.obs["player"][0, 1, :, :, 1].sum() == 4  # the loser sees how it ended
    assert view.obs["player"].sum() == 0


def test_an_illegal_move_is_the_wrappers_business(capsys: Any) -> None:
    env = suite.make("classic/tictactoe", 1)
    env.reset(0)
    for move in (0, 0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step = env.step({"player": torch.full((1, 2), move)})
    assert step.ended.all()
    assert step.reward["player"].tolist() == [[0.0, -1.0]]
    assert step.terminated["player"].all()


@pytest.mark.parametrize("game", ["classic/connect_four", "classic/leduc_holdem"])
def test_a_game_continues_from_its_state(game: str) -> None:
    one, two = suite.make(game, 2), suite.make(game, 2)
    generator = torch.Generator().manual_seed(0)
    one.reset(5)
    for _ in range(21):
        one.step(suite.random_actions(one, generator))
    two.load_state_dict(one.state_dict())
    for _ in range(20):
        moves = suite.random_actions(one, generator)
        a, b = one.step(moves), two.step(moves)
        for x, y in zip(shoal.tree.leaves(a), shoal.tree.leaves(b), strict=True):
            assert torch.equal(x, y)


def test_modules_and_names_without_and_with_version() -> None:
    assert suite.make("pettingzoo.classic.tictactoe_v3", 1).turn_based
    assert suite.make("classic/tictactoe_v3", 1).turn_based
    assert not suite.make("classic/rps", 1).turn_based
    assert suite.note("classic/tictactoe-v3") == "turn-based"
    assert suite.note("classic/rps-v2") == ""
    with pytest.raises(ShoalError, match=r"did you mean 'classic/connect_four-v3'"):
        suite.make("classic/conect_four", 1)
    with pytest.raises(ShoalError, match="unexpected keyword argument 'size'"):
        suite.make("classic/tictactoe", 1, size=4)


def told(what: str) -> Any:
    """A game with one fault."""

    class Faulty(Told):
        def observe(self, agent: str) -> Any:
            seen = super().observe(agent)
            if what == "nan" and self.time == 1:
                seen["observation"][0] = np.nan
            if what == "mask":
                seen["action_mask"][:] = 0
            if what == "hidden":
                return None
            return seen

        def _clear_rewards(self) -> None:
            if what != "stale":
                super()._clear_rewards()

        def step(self, action: Any) -> None:
            if what == "stays" and self.terminations[self.agent_selection]:
                return
            super().step(action)
            if what == "missing" and self.time == 1:
                del self.rewards["a_1"]
            if what == "joins" and self.time == 1:
                self.agents.append("a_9")
                for entries in (self.rewards, self.terminations, self.truncations, self.infos):
                    entries["a_9"] = 0

        def _accumulate_rewards(self) -> None:
            if what != "stale" or self.time < 2:
                super()._accumulate_rewards()

    game = [Turn(0, {0: 1.0}), Turn(2, {0: 2.0, 1: -1.0}), Turn(0), Turn(1, {1: 5.0}, terminated=(0, 1, 2))]
    return Faulty(game)


FAULTS = {
    "nan": "step 1: the observation of a_0 holds NaN or infinity",
    "mask": "the action mask of a_0 allows nothing",
    "hidden": "shows nothing, and it is its turn",
    "stale": r"last\(\) says that a_0 earned 1 since its last turn, `rewards` said 3",
    "stays": r"is out of the game, and step\(None\) does not remove it",
    "missing": "no reward of a_1, who has not left",
    "joins": "a_9",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_env_names_the_fault_of_a_turn_based_game(fault: str) -> None:
    with pytest.raises(ShoalError, match=FAULTS[fault]):
        shoal.check_env(told(fault), steps=30)


def test_check_env_accepts_games_in_turns() -> None:
    shoal.check_env(told(""), steps=60)
    shoal.check_env(SerialEnvs(Later, 2), steps=60)
    assert not problems(Later())
    shoal.check_env(shoal.make(str(Path(__file__).parents[1] / "examples/own_game.py") + ":make").envs[0])


def test_opponents_play_single_agents_of_a_group(later: SerialEnvs) -> None:
    env = Against(later, {"player_1": Scripted(later.spec, "random")})
    assert env.spec.groups["player"].agents == ("player_0",)
    view = env.reset(0)
    assert view.obs["player"].shape == (4, 1, 4)
    shoal.check_env(env, steps=20)
    algorithm = ValueDecomposition(env.spec, QConfig(reward="own", warmup=32, batch_size=8), seed=0)
    for _ in shoal.train(algorithm, env, 200, seed=0):
        pass
    team = seat(later.spec, {"player_0": algorithm, "player_1": Scripted(later.spec, "random")})
    result = shoal.evaluate(team, later, 20)
    assert set(result.agent_returns()) == {"player_0", "player_1"}
    with pytest.raises(ShoalError, match="is to play player_1 knows only player_0"):
        seat(later.spec, {"player_1": algorithm})
    with pytest.raises(ShoalError, match=r"no group or agent 'player_2'; did you mean 'player_"):
        Against(later, {"player_2": algorithm})
    with pytest.raises(ShoalError, match="nobody is left to learn"):
        Against(later, {"player": algorithm})


def test_against_an_agent_continues_from_its_state() -> None:
    envs = [
        Against(SerialEnvs(told_three, 2), {"a_1": Scripted(SerialEnvs(told_three, 1).spec, "random")}) for _ in "ab"
    ]
    mine = {"a": torch.ones(2, 2, dtype=torch.int64)}
    envs[0].reset(1)
    for _ in range(5):
        envs[0].step(mine)
    envs[1].load_state_dict(envs[0].state_dict())
    for _ in range(7):
        for env in envs:
            env.step(mine)
        assert envs[0].env.envs[0].taken[-1] == envs[1].env.envs[0].taken[-1]  # type: ignore[attr-defined]


def told_three() -> Told:
    return Told([Turn(0), Turn(1), Turn(2), Turn(1, terminated=(0, 1, 2))])


class Counting:
    """Does its number; remembers how often it acted, in as many columns as its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def initial_memory(self, num_envs: int) -> Groups:
        return {"a": torch.zeros(num_envs, 3, self.number)}

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        return {"a": torch.full(view.obs["a"].shape[:2], self.number)}, {"a": memory["a"] + self.number}


def test_seats_of_a_group_have_memories_of_their_own() -> None:
    spec = SerialEnvs(told_three, 2).spec
    one, two = Counting(1), Counting(2)
    policy = Seats("a", spec.groups["a"], {"a_0": one, "a_1": two, "a_2": one})
    memory = policy.initial_memory(2)
    assert memory["a"].shape == (2, 3, 3)
    view = SerialEnvs(told_three, 2).reset(0)
    for _ in range(2):
        chosen, memory = policy.act(view, memory, explore=False)
    assert chosen["a"].tolist() == [[1, 2, 1]] * 2
    assert memory["a"][0, 1].tolist() == [2.0, 4.0, 4.0]


def test_train_and_evaluate_against_one_agent(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "game.py"
    file.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_turns import Later\n")
    small = ["--batch-steps", "64", "--epochs", "1", "--net.hidden", "8", "--eval-episodes", "4", "--no-tensorboard"]
    run = tmp_path / "run"
    assert cli.main(["train", "ippo", f"{file}:Later", *small, "--total-steps", "128", "--out", str(run)]) == 0
    capsys.readouterr()
    arguments = ["eval", str(run), "--opponents", "player_1=random", "--episodes", "10"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["agent_returns"]) == {"player_0", "player_1"}
    one = found["agent_returns"]["player_0"]
    assert one["positive"] + one["zero"] + one["negative"] == pytest.approx(1)
    assert one["mean"] == pytest.approx(one["positive"])
    assert found["group_return"]["player"]["mean"] * 2 == pytest.approx(found["team_return"]["mean"])
    assert cli.main(arguments) == 0
    assert "positive" in capsys.readouterr().out
    half = tmp_path / "half"  # who learned one agent only can be evaluated as that agent
    options = ["--opponents", f"player_1={run}", "--total-steps", "128", "--out", str(half)]
    assert cli.main(["train", "ippo", f"{file}:Later", *small, *options]) == 0
    assert cli.main(["eval", str(half), "--episodes", "4"]) == 0
    assert cli.main(["crossplay", str(run), str(run), "--episodes", "4"]) == 0
    assert "rows: player_0, columns: player_1" in capsys.readouterr().out
    capsys.readouterr()
    assert cli.main(["train", "ippo", f"{file}:Later", "--opponents", f"player_1={half}"]) == 2
    assert "is to play player_1 knows only player_0" in capsys.readouterr().err
    assert cli.main(["check", f"{file}:Later", "--steps", "50"]) == 0
    assert "a step is one turn of one agent" in capsys.readouterr().out
    film = tmp_path / "film.gif"
    assert cli.main(["watch", str(run), "--out", str(film), "--episodes", "1"]) == 0
    assert film.is_file()


def test_train_stop_resume_is_train_through(tmp_path: Path) -> None:
    """Bit for bit, in the middle of games, against an opponent that draws."""
    small = ["--batch-size", "16", "--warmup", "100", "--net.hidden", "8", "--eval-episodes", "4", "--no-tensorboard"]
    arguments = ["train", "iql", "pettingzoo/classic/connect_four", *small, "--opponents", "player_1=random"]
    arguments += ["--num-envs", "2", "--eval-every", "150"]
    through, parts = tmp_path / "through", tmp_path / "parts"
    assert cli.main([*arguments, "--total-steps", "300", "--out", str(through)]) == 0
    assert cli.main([*arguments, "--total-steps", "150", "--out", str(parts)]) == 0
    assert cli.main(["train", "--resume", str(parts), "--total-steps", "300"]) == 0
    one, two = (checkpoint.load(path / "checkpoint")["algorithm"] for path in (through, parts))
    pairs = list(zip(shoal.tree.leaves(one), shoal.tree.leaves(two), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert read_evaluations(through)[-1]["agent_return"] == read_evaluations(parts)[-1]["agent_return"]


def test_a_factory_may_return_a_turn_based_game(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from pettingzoo.classic.tictactoe.tictactoe import env as make\n")
    env = Environment(f"{tmp_path / 'mine.py'}:make").make(2)
    assert env.spec.groups["player"].action == Discrete(9)
    env.reset(0)
    legal = env.reset(0).legal["player"]
    env.step({"player": actions.random(Discrete(9), legal, torch.Generator().manual_seed(0))})
