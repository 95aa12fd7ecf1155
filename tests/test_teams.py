"""Teams, opponents, scripts and cross-play."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shoal
from shoal import cli, experiment
from shoal.teams.crossplay import CrossPlay, cross_play
from shoal.teams.scripted import Scripted
from shoal.teams.team import Against, Team, by_agent
from shoal.types import Groups, ShoalError, View

SMALL = ["--warmup", "100", "--batch-size", "16", "--net.hidden", "8", "--eval-episodes", "10", "--no-tensorboard"]


class Constant:
    """Always the same action; counts its steps in memory and its calls."""

    def __init__(self, action: int) -> None:
        self.action, self.calls = action, 0

    def initial_memory(self, num_envs: int) -> Groups:
        return {name: torch.zeros(num_envs, 1, 1) for name in ("player_0", "player_1")}

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        self.calls += 1
        chosen = {name: torch.full(obs.shape[:2], self.action) for name, obs in view.obs.items()}
        return chosen, {name: m + 1 for name, m in memory.items()}


def payoffs() -> shoal.VecEnv:
    """Two groups; reward 10 a + b for both."""
    return shoal.make("matrix/custom", 3, payoffs=[[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]], max_steps=4)


def test_team_plays_each_group_with_its_own_policy() -> None:
    env = payoffs()
    assert (shoal.evaluate(Team({"player_0": Constant(1), "player_1": Constant(2)}), env, 3).agent_return == 48).all()
    both = Constant(1)
    shoal.evaluate(Team({"player_0": both, "player_1": both}), env, 3)
    assert both.calls == 4  # once a step, for both groups


def test_a_team_is_afterwards_what_it_was_before() -> None:
    env = shoal.make("mpe/simple_tag", 4)
    learner = shoal.build("iql", env.spec, epsilon_steps=200)
    team = Team({"adversary": learner, "agent": Scripted(env.spec, "random")})
    once, again = (shoal.evaluate(team, env, 8, sampled=True).agent_return for _ in range(2))
    assert learner.epsilon == 1  # type: ignore[attr-defined]
    assert (once == again).all()


def test_against_leaves_the_learner_its_own_groups() -> None:
    opponent = Constant(2)
    env = Against(payoffs(), {"player_1": opponent})
    assert set(env.spec.groups) == {"player_0"}
    shoal.check_env(env, steps=20)
    env.reset(0)
    step = env.step({"player_0": torch.ones(3, 1, dtype=torch.int64)})
    assert set(step.reward) == {"player_0"}
    assert (step.reward["player_0"] == 12).all()
    for _ in range(3):
        step = env.step({"player_0": torch.zeros(3, 1, dtype=torch.int64)})
    assert step.ended.all()
    assert (env.memory["player_1"] == 0).all()  # the opponent's memory starts anew too


def test_against_continues_from_its_state() -> None:
    envs = [
        Against(shoal.make("mpe/simple_tag", 3), {"agent": Scripted(shoal.make("mpe/simple_tag").spec, "flee")})
        for _ in "ab"
    ]
    chase = {"adversary": torch.full((3, 3), 2)}
    envs[0].reset(4)
    for _ in range(7):
        envs[0].step(chase)
    envs[1].load_state_dict(envs[0].state_dict())
    for _ in range(20):
        one, two = (env.step(chase) for env in envs)
        assert torch.equal(one.view.obs["adversary"], two.view.obs["adversary"])


def test_wrong_groups_are_named() -> None:
    with pytest.raises(ShoalError, match="no group or agent 'ghost'; known: player_0, player_1"):
        Against(payoffs(), {"ghost": Constant(0)})
    with pytest.raises(ShoalError, match="nobody is left"):
        Against(payoffs(), {"player_0": Constant(0), "player_1": Constant(0)})


@pytest.mark.parametrize("continuous", [False, True])
def test_scripts_are_the_yardsticks_they_should_be(continuous: bool) -> None:
    env = shoal.make("mpe/simple_spread", 300, continuous_actions=continuous)
    returns = {
        n: shoal.evaluate(Scripted(env.spec, n), env, 300).agent_return.mean() for n in ("random", "still", "greedy")
    }
    assert returns["random"] == pytest.approx(-26.5, abs=1.5)  # -26.1 measured with mpe2
    assert returns["greedy"] == pytest.approx(-8.4 if not continuous else -6.9, abs=0.5)  # -8.3 with mpe2, discrete
    tag = shoal.make("mpe/simple_tag", 300, continuous_actions=continuous)
    catches = {}
    for chaser, runner in (("random", "random"), ("pursue", "random"), ("pursue", "flee")):
        team = Team({"adversary": Scripted(tag.spec, chaser), "agent": Scripted(tag.spec, runner)})
        catches[chaser, runner] = shoal.evaluate(team, tag, 300).group_return("adversary").mean()
    assert catches["pursue", "random"] > 5 * catches["random", "random"]
    assert catches["pursue", "flee"] < 0.7 * catches["pursue", "random"]


def test_scripts_refuse_what_they_cannot_play() -> None:
    env = shoal.make("tutorial/drift", 2)
    view = env.reset(0)
    for name, message in (("greedy", "simple_spread"), ("pursue", "adversaries of"), ("flee", "simple_tag")):
        with pytest.raises(ShoalError, match=message):
            Scripted(env.spec, name).act(view, {}, explore=False)
    with pytest.raises(ShoalError, match="no script 'fly'"):
        Scripted(env.spec, "fly")
    still, _ = Scripted(env.spec, "still").act(view, {}, explore=False)
    assert (still["agent"] == 0).all()


def test_train_against_scripts_and_runs_then_compare(tmp_path: Path, capsys: Any) -> None:
    runs = [tmp_path / name for name in ("a0", "a1", "b0")]
    for run, algorithm, seed in zip(runs, ("maddpg", "maddpg", "iddpg"), ("0", "1", "0"), strict=True):
        arguments = [algorithm, "mpe/simple_tag", *SMALL, "--total-steps", "300", "--seed", seed, "--out", str(run)]
        assert cli.main(["train", *arguments]) == 0
    frozen = tmp_path / "frozen"
    arguments = ["maddpg", "mpe/simple_tag", *SMALL, "--total-steps", "300", "--eval-every", "150"]
    assert cli.main(["train", *arguments, "--opponents", f"agent={runs[0]}", "--out", str(frozen)]) == 0
    assert set(experiment.load_policy(frozen, "last", shoal.make("mpe/simple_tag").spec).spec.groups) == {"adversary"}
    assert cli.main(["train", "--resume", str(frozen), "--total-steps", "400"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", str(frozen), "--episodes", "20", "--json"]) == 0
    against_run = json.loads(capsys.readouterr().out)
    assert set(against_run["group_return"]) == {"adversary", "agent"}
    assert (
        cli.main(["eval", str(frozen), "--episodes", "20", "--opponents", "agent=flee", "adversary=pursue", "--json"])
        == 0
    )
    scripted = json.loads(capsys.readouterr().out)
    assert scripted["group_return"]["adversary"]["mean"] > against_run["group_return"]["adversary"]["mean"]
    out = tmp_path / "table.json"
    assert cli.main(["crossplay", *map(str, runs), "--episodes", "20", "--out", str(out)]) == 0
    assert "| maddpg |" in capsys.readouterr().out
    cells = json.loads(out.read_text())["cells"]
    pairs = {(c["row"], c["column"]): c["adversary"]["pairs"] for c in cells}
    assert pairs == {("maddpg", "maddpg"): 4, ("maddpg", "iddpg"): 2, ("iddpg", "maddpg"): 2, ("iddpg", "iddpg"): 1}


def test_what_a_run_did_not_learn_it_cannot_play_in_pairs(tmp_path: Path, capsys: Any) -> None:
    arguments = ["train", "iddpg", "mpe/simple_tag", "--total-steps", "200", "--env.max-cycles", "5", *SMALL]
    assert cli.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    assert cli.main([*arguments, "--lr", "1e-4", "--out", str(tmp_path / "two")]) == 0
    assert cli.main([*arguments, "--opponents", "agent=flee", "--out", str(tmp_path / "flee")]) == 0
    assert cli.main(["crossplay", str(tmp_path / "one"), str(tmp_path / "two"), "--episodes", "4"]) == 0
    assert "| iddpg (lr 0.0001) |" in capsys.readouterr().out
    assert cli.main(["crossplay", str(tmp_path / "one"), str(tmp_path / "flee")]) == 2
    assert "learned one side only, against agent=flee" in capsys.readouterr().err


def test_cross_play_by_hand() -> None:
    players = {"low": [Constant(0)], "high": [Constant(1), Constant(1)]}
    result = cross_play(players, payoffs(), ("player_0", "player_1"), episodes=3, seed=0)
    assert result.cell("high", "low")["mean"] == 40
    assert result.cell("low", "high")["mean"] == 4
    assert result.cell("high", "high") == {"mean": 44.0, "ci95": [44.0, 44.0], "pairs": 4}


def test_cross_play_intervals_resample_the_seeds_of_either_side() -> None:
    values = np.zeros((3, 3, 2))
    values[..., 0] = np.array([0.0, 1.0, 2.0])[:, None]  # all of the spread is between row seeds
    cell = CrossPlay(("a", "b"), ["x"], {("x", "x"): values}).cell("x", "x")
    assert cell["mean"] == 1.0
    assert cell["ci95"] == [0.0, 2.0]


def test_mistakes(tmp_path: Path, capsys: Any) -> None:
    for option, message in (
        ("agent", "WHO=POLICY"),
        ("agent=fleee", "did you mean 'flee'"),
        ("prey=still", "no group or agent 'prey'"),
    ):
        arguments = ["maddpg", "mpe/simple_tag", *SMALL, "--out", str(tmp_path / "run"), "--opponents", option]
        assert cli.main(["train", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Told(Constant):
    explored = False

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        self.explored |= explore
        return super().act(view, memory, explore=explore)


def test_opponents_do_not_explore() -> None:
    env, opponent = payoffs(), Told(2)
    against = Against(env, {"player_1": opponent})
    for _ in shoal.train(shoal.build("iql", against.spec), against, 30):
        pass
    assert opponent.calls >= 10
    assert not opponent.explored


def test_an_agents_own_name_counts_more_than_its_groups() -> None:
    spec = shoal.make("mpe/simple_tag").spec
    for named in ({"adversary": 1, "adversary_1": 2}, {"adversary_1": 2, "adversary": 1}):
        assert by_agent(spec, named) == {"adversary_0": 1, "adversary_1": 2, "adversary_2": 1}


def test_a_seed_fixes_what_random_opponents_do() -> None:
    env = Against(shoal.make("mpe/simple_tag", 3), {"agent": Scripted(shoal.make("mpe/simple_tag").spec, "random")})
    ends = []
    for _ in range(2):
        env.reset(4)
        for _ in range(5):
            step = env.step({"adversary": torch.zeros(3, 3, dtype=torch.int64)})
        ends.append(step.successor.obs["adversary"].clone())
    assert torch.equal(*ends)
