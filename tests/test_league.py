"""Self-play: who plays where, what is learned from, opponents, ratings, and runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shoal
import shoal.replay
import shoal.teams.league
from shoal import checkpoint, cli, experiment, tree
from shoal.teams.league import League, Member, Seat, arrange, ranks, thin
from shoal.teams.ratings import Matrix, bradley_terry, elo, play, strategies
from shoal.train import train
from shoal.types import Algorithm, Batch, EnvSpec, ShoalError, View

RPS = "matrix/rock_paper_scissors"
TINY = ["--batch-steps", "64", "--epochs", "1", "--net.hidden", "8", "--num-envs", "8", "--eval-episodes", "8"]
SETTINGS: dict[str, Any] = {"self_play": "uniform", "sides": (), "snapshot_every": 100, "pool": 5, "latest_share": 0.25}


class Counting:
    """Plays the number of updates it has made, so that one sees who acted where; counts its steps in memory."""

    def __init__(self, spec: EnvSpec, seed: int) -> None:
        self.spec, self.config, self.level, self.batches = spec, None, torch.tensor(0), []

    def initial_memory(self, num_envs: int) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(num_envs, g.num_agents, 1) for name, g in self.spec.groups.items()}

    def act(self, view: View, memory: dict[str, torch.Tensor], *, explore: bool) -> Any:
        assert view.state.shape[1] == self.spec.state_size
        chosen = {name: self.level.expand(obs.shape[:2]).clone() for name, obs in view.obs.items()}
        return chosen, {name: m + 1 for name, m in memory.items()}

    def experience(self, num_envs: int) -> Any:
        return shoal.replay.Fresh(self.spec, num_envs, 4, 1)

    def update(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.batches.append(tree.map(torch.clone, batch))
        self.level = self.level + 1
        return {"level": self.level}

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level = state["level"]


def game(sizes: tuple[int, int], num_envs: int = 8, max_steps: int = 4) -> shoal.VecEnv:
    """Zero-sum: the player with the higher action earns the difference."""
    a, b = torch.arange(sizes[0]), torch.arange(sizes[1])
    first = (a[:, None] - b[None, :]).float()
    return shoal.make("matrix/custom", num_envs, payoffs=torch.stack([first, -first]).numpy(), max_steps=max_steps)


def league(env: shoal.VecEnv, **changes: Any) -> League:
    return League(env.spec, Counting, **{**SETTINGS, **changes})  # type: ignore[arg-type]


def test_sides() -> None:
    tag = shoal.make("mpe/simple_world_comm").spec
    assert list(arrange(tag)) == ["leadadversary", "adversary", "agent"]
    sides = arrange(tag, ("leadadversary+adversary", "agent"))
    assert [list(seats[0].groups) for seats in sides.values()] == [["leadadversary", "adversary"], ["agent"]]
    rps = shoal.make(RPS).spec
    assert [len(seats) for seats in arrange(rps).values()] == [2]
    assert list(arrange(rps, ("player_0", "player_1"))) == ["player_0", "player_1"]
    for spec, names, message in (
        (tag, ("prey", "agent"), "no group 'prey'"),
        (tag, ("adversary", "agent"), "each of leadadversary, adversary, agent once"),
        (rps, ("player_0",), "two or more"),
        (rps, ("player_0", "agent"), "no agent 'agent'"),
        (shoal.make("mpe/simple_push", 1).spec, ("agent", "agent"), "once"),
    ):
        with pytest.raises(ShoalError, match=message):
            arrange(spec, names)


def test_environments_are_divided_and_each_learner_gets_its_part() -> None:
    """Two groups: 2 of 8 environments together, 3 for either side."""
    env = game((50, 60))
    algorithm = league(env)
    for progress in train(algorithm, env, 8 * 4 * 5):
        if progress.env_steps == 32:
            assert [row.tolist() for row in algorithm.rows] == [[0, 1, 2, 3, 4], [0, 1, 5, 6, 7]]
    first, second = (side.learner for side in algorithm.sides)
    assert isinstance(first, Counting)
    assert isinstance(second, Counting)
    assert [len(learner.batches) for learner in (first, second)] == [5, 5]
    last = first.batches[4]
    assert set(last.groups) == {"player_0"}
    assert last.groups["player_0"].action.shape == (4, 5, 1)
    assert (last.groups["player_0"].action == 4).all()  # the learner itself acts wherever it learns
    assert (last.groups["player_0"].memory[0] == 0).all()  # an episode is a rollout here: memory began anew
    assert (last.groups["player_0"].memory[3] == 3).all()
    faced = 4 - last.groups["player_0"].reward[0, :, 0]
    assert faced[:2].tolist() == [4, 4]  # the other learner as it is
    steps = {member.step: member.weights["level"] for member in algorithm.sides[1].pool}
    assert set(faced[2:].tolist()) <= {float(level) for level in steps.values()}


def test_one_learner_plays_every_seat_of_players_that_are_alike() -> None:
    env = game((50, 50))
    algorithm = league(env)
    for _ in train(algorithm, env, 8 * 4 * 3):
        pass
    (side,) = algorithm.sides
    learner = side.learner
    assert isinstance(learner, Counting)
    assert learner.spec.groups["player"].agents == ("player_0",)
    assert learner.spec.state_size == 0  # it does not tell which seat is one's own
    assert len(learner.batches) == 3
    batch = learner.batches[2].groups["player"]
    assert batch.action.shape == (4, 10, 1)  # 2 environments with both seats, 3 with either
    assert (batch.action == 2).all()
    together = batch.reward[0, [0, 1, 5, 6], 0]
    assert (together == 0).all()
    assert (batch.reward[0, [2, 3, 4, 7, 8, 9], 0] >= 0).all()


def test_newest_learners_play_when_nobody_learns() -> None:
    env = game((50, 50))
    algorithm = league(env)
    for _ in train(algorithm, env, 8 * 4 * 3):
        pass
    result = shoal.evaluate(algorithm, game((50, 50), 3), 3)
    assert (result.returns["player"] == 0).all()
    part = View({}, {}, torch.zeros(3, 1))
    assert algorithm.act(part, {}, explore=False) == ({}, {})  # other policies play those groups


def test_latest_uses_every_environment_for_every_learner() -> None:
    env = game((50, 60), num_envs=1)
    algorithm = league(env, self_play="latest")
    for _ in train(algorithm, env, 12):
        pass
    assert [row.tolist() for row in algorithm.rows] == [[0], [0]]
    assert not algorithm.slots
    with pytest.raises(ShoalError, match="set num_envs to 3 or more"):
        league(env).experience(1)


def test_outcomes_count_whole_episodes_against_one_opponent() -> None:
    env = game((50, 50), max_steps=6)  # rollouts of 4 steps end within episodes
    algorithm = league(env, snapshot_every=8)
    for _ in train(algorithm, env, 8 * 4 * 12):
        pass
    (side,) = algorithm.sides
    played = [member.results["player"] for member in side.pool if member.results]
    assert sum(episodes for _, episodes in played) > 10
    # the learner's level only grows, so it loses no episode; only those in which both were level are drawn
    assert all(won >= episodes / 2 for won, episodes in played)
    first = side.pool[0]
    assert first.results["player"][0] > 0.9 * first.results["player"][1]
    algorithm.whole.fill_(False)
    before = json.dumps([member.results for member in side.pool])
    algorithm._finish(torch.ones(8, dtype=torch.bool))
    assert json.dumps([member.results for member in side.pool]) == before
    assert algorithm.whole.all()


def test_of_three_sides_both_opponents_are_replaced() -> None:
    sizes = (3, 20, 20, 20)
    env = shoal.make("matrix/custom", 8, payoffs=np.zeros(sizes).tolist(), max_steps=4)
    algorithm = league(env, sides=("player_0", "player_1", "player_2"), snapshot_every=32)
    met: list[set[int]] = [set() for _ in range(3 * 2 * 2)]
    for _ in train(algorithm, env, 8 * 4 * 15):
        for steps, slot in zip(met, algorithm.slots, strict=True):
            steps.add(slot.step)
    assert all(len(steps) > 2 for steps in met)


def test_prioritised_choice_meets_those_who_win() -> None:
    env = game((50, 50))
    algorithm = league(env, self_play="pfsp")
    algorithm.experience(8)
    side = algorithm.sides[0]
    side.pool[:] = [Member(step, {"level": torch.tensor(0)}) for step in (0, 100, 200)]
    for member, won in zip(side.pool, (1.0, 0.5, 0.0), strict=True):
        member.record("player", torch.full((2000,), won))
    rates = [member.win_rate("player") for member in side.pool]
    assert rates == pytest.approx([0.99, 0.5, 0.01], abs=0.01)
    drawn = Counter(algorithm._draw(algorithm.slots[0]).step for _ in range(2000))
    assert drawn[0] < 10
    assert drawn[100] / 2000 == pytest.approx(0.25 / (0.25 + 0.98), abs=0.04)  # (1 - x)^2


def test_opponents_explore_as_when_they_were_kept() -> None:
    def learner(spec: EnvSpec, seed: int) -> Algorithm:
        return shoal.build("iql", spec, seed=seed, epsilon_steps=1000, warmup=10**6)

    env = shoal.make(RPS, 8, max_steps=4)
    algorithm = League(env.spec, learner, **{**SETTINGS, "snapshot_every": 10**6})
    for _ in train(algorithm, env, 4000):
        pass
    assert algorithm.sides[0].learner.epsilon < 0.1
    assert all(slot.policy.epsilon > 0.95 for slot in algorithm.slots)  # the untrained member's is 1


def test_members_are_rated_as_they_were_kept_in_every_pair() -> None:
    """Four copies of one version that explores fully: none has explored less after its first pairs."""

    def learner(spec: EnvSpec, seed: int) -> Algorithm:
        return shoal.build("iql", spec, seed=seed, epsilon_steps=200, epsilon_end=0.0)

    env = shoal.make(RPS, 8, max_steps=4)
    algorithm = League(env.spec, learner, **SETTINGS)
    pool = algorithm.sides[0].pool
    pool += [Member(step, pool[0].weights) for step in (1, 2, 3)]
    made: list[Any] = []
    revive = algorithm.revive
    algorithm.revive = lambda *given: made.append(revive(*given)) or made[-1]  # type: ignore[method-assign]
    play(algorithm, env, 4, 50, 0, sampled=True)
    assert len(made) >= 8
    assert all(player.epsilon == 1 for player in made)


def test_ranks_and_thinning() -> None:
    assert ranks(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([3.0, 1.0, 1.0, 0.0])).tolist() == [0.125, 0.5, 0.875]
    pool = [Member(step, {}) for step in (0, 10, 20, 30, 40)]
    for step in (50, 60, 70, 80):
        pool.append(Member(step, {}))
        thin(pool, 5)
    assert [pool[0].step, pool[-1].step, len(pool)] == [0, 80, 5]
    gaps = np.diff([member.step for member in pool])
    assert gaps.max() <= 2 * gaps.min() + 10


def test_bradley_terry_finds_the_strengths_that_made_the_results() -> None:
    strength = np.array([1.0, 2.0, 4.0, 0.5])
    won = 100_000 * strength[:, None] / (strength[:, None] + strength)
    np.fill_diagonal(won, 0)
    found = np.exp(bradley_terry(won))
    assert found / found[0] == pytest.approx(strength, rel=1e-2)
    ratings = elo(won)
    assert ratings.mean() == pytest.approx(1000)
    assert ratings[2] - ratings[1] == pytest.approx(400 * np.log10(2), abs=1)
    assert np.isfinite(elo(np.array([[0.0, 9.0], [0.0, 0.0]]))).all()  # one that never loses


def test_matrix_of_unlike_sides_by_hand() -> None:
    """Returns of very different scale; the second row and the first column are the stronger ones."""
    chasers = np.array([[[1.0, 2.0], [5.0, 6.0]], [[3.0, 4.0], [7.0, 8.0]]])  # [row, column, episode]
    matrix = Matrix(("chaser", "runner"), ([0, 10], [0, 10]), np.stack([chasers, -100 * chasers], -1), False)
    assert matrix.outcomes().tolist() == [[[0, 0], [1, 1]], [[0, 0], [1, 1]]]  # above 4.5, the median
    standings = {(s.side, s.step): s for s in matrix.standings()}
    assert standings["runner", 0].elo > standings["runner", 10].elo
    assert standings["chaser", 0].elo == pytest.approx(standings["chaser", 10].elo)
    assert standings["chaser", 10].mean_return == 5.5
    assert standings["runner", 0].mean_return == -250


def test_matrix_of_one_pool_changes_seats() -> None:
    env = game((50, 50))
    algorithm = league(env, snapshot_every=32)
    for _ in train(algorithm, env, 8 * 4 * 3):
        pass
    matrix = play(algorithm, game((50, 50), 3), 4, 3, 0, sampled=False)
    assert matrix.steps[0] == [0, 32, 64, 96]
    rows, columns = matrix.returns()
    assert rows[3].tolist() == [12, 8, 4, 0]  # 4 rounds, levels 0 to 3
    assert (columns == -rows).all()
    standings = matrix.standings()
    assert [s.step for s in standings] == [96, 64, 32, 0]
    assert standings[0].low > standings[-1].high


def test_average_strategy_is_what_versions_do_at_first() -> None:
    env = game((5, 5))
    algorithm = league(env, snapshot_every=32)
    for _ in train(algorithm, env, 8 * 4 * 2):
        pass
    shares = strategies(algorithm, algorithm.sides[0], env)
    assert shares == {0: [1, 0, 0, 0, 0], 32: [0, 1, 0, 0, 0], 64: [0, 0, 1, 0, 0]}
    tag = shoal.make("mpe/simple_tag", 2)
    assert strategies(league(tag), league(tag).sides[0], tag) == {}


def build(name: str, env: shoal.VecEnv, **changes: Any) -> League:
    """With learners that learn."""

    def learner(spec: EnvSpec, seed: int) -> Algorithm:
        return shoal.build(name, spec, seed=seed, **settings)

    settings: dict[str, Any] = {"net": {"hidden": (8,)}}
    settings |= {"warmup": 50, "batch_size": 8} if name in ("maddpg", "vdn") else {"batch_steps": 48, "epochs": 1}
    if name == "feudal":
        settings = {f"{role}_options": ("batch_steps=48",) for role in ("manager", "worker")}
    return League(env.spec, learner, **{**SETTINGS, **changes})


@pytest.mark.parametrize("name", ["maddpg", "vdn", "mappo", "feudal"])
def test_algorithms_learn_in_a_league(name: str) -> None:
    """On-policy and replay, with and without memory; every learner's weights move, and frozen ones do not."""
    env = shoal.make("mpe/simple_tag", 8)
    algorithm = build(name, env, latest_share=0.0)
    kept = [tree.map(torch.clone, side.pool[0].weights) for side in algorithm.sides]
    for progress in train(algorithm, env, 400):
        last = progress
    metrics = last.drain()
    assert any(key.startswith("adversary_") for key in metrics)
    for side, before in zip(algorithm.sides, kept, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(tree.leaves(before), tree.leaves(side.pool[0].weights), strict=True)
        )
        learner = side.learner.state_dict()
        parts = [(before[role], learner[role]) for role in ("manager", "worker") if role in before]
        for then, now in parts or [(before, learner)]:
            assert not {"optimizers", "optimizer", "generators", "sampler"} & then.keys()
            pairs = zip(tree.leaves(then["nets"]), tree.leaves(now["nets"]), strict=True)
            assert not all(torch.equal(a, b) for a, b in pairs)
        assert 3 <= len(side.pool) <= 5


@pytest.mark.parametrize(
    ("algorithm", "env", "options"),
    [
        ("ippo", RPS, ["--self-play", "pfsp", "--env.max-steps", "3"]),
        ("ippo", "mpe/simple_tag", ["--self-play", "uniform", "--net.memory", "4"]),
    ],
)
def test_stop_and_resume_is_train_through(tmp_path: Path, algorithm: str, env: str, options: list[str]) -> None:
    """Bit for bit: learners, pools, opponents in their slots, outcomes; also where the stop falls inside an episode."""
    through, parts = tmp_path / "through", tmp_path / "parts"
    arguments = [algorithm, env, *TINY, *options, "--snapshot-every", "150", "--pool", "4", "--no-tensorboard"]
    arguments += ["--eval-every", "400"]
    assert cli.main(["train", *arguments, "--total-steps", "1200", "--out", str(through)]) == 0
    assert cli.main(["train", *arguments, "--total-steps", "550", "--out", str(parts)]) == 0
    assert cli.main(["train", "--resume", str(parts), "--total-steps", "1200"]) == 0
    one, two = (checkpoint.load(d / "checkpoint")["algorithm"] for d in (through, parts))
    for a, b in zip(tree.leaves(one), tree.leaves(two), strict=True):
        assert torch.equal(a, b)
    for side in one["sides"]:
        pools = [[(m["step"], m["results"]) for m in state["sides"][side]["pool"]] for state in (one, two)]
        assert pools[0] == pools[1]
        assert len(pools[0]) == 4
        assert any(results for _, results in pools[0])


def test_a_run_its_standings_and_its_mistakes(tmp_path: Path, capsys: Any) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    arguments = ["ippo", "mpe/simple_tag", *TINY, "--total-steps", "600", "--no-tensorboard"]
    assert cli.main(["train", *arguments, "--self-play", "uniform", "--out", str(run)]) == 0
    assert cli.main(["train", *arguments, "--out", str(plain)]) == 0
    assert checkpoint.load(run / "checkpoint", "best")["env_steps"] >= 600  # of a league the newest
    capsys.readouterr()
    assert cli.main(["league", str(run), "--episodes", "8", "--members", "3"]) == 0
    printed = capsys.readouterr().out
    assert "Elo" in printed
    found = json.loads((run / "league.json").read_text())
    assert len(found["standings"]) == 6
    assert {s["side"] for s in found["standings"]} == {"adversary", "agent"}
    assert found["rows"]["steps"][0] == 0
    assert np.shape(found["return_of_rows"]) == (3, 3)
    assert all(s["low"] <= s["elo"] <= s["high"] for s in found["standings"])
    assert (run / "league.png").stat().st_size > 10_000
    assert cli.main(["eval", str(run), "--episodes", "8", "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert cli.main(["eval", str(run), "--episodes", "8", "--opponents", "agent=flee", "--json"]) == 0
    scripted = json.loads(capsys.readouterr().out)
    assert own["group_return"]["agent"] != scripted["group_return"]["agent"]
    assert cli.main(["watch", str(run), "--episodes", "1", "--out", str(tmp_path / "film.gif")]) == 0
    assert cli.main(["train", *arguments, "--opponents", f"agent={run}", "--out", str(tmp_path / "against")]) == 0
    capsys.readouterr()
    assert cli.main(["league", str(plain)]) == 2
    assert "--self-play uniform" in capsys.readouterr().err
    for options, message in (
        (["--opponents", "agent=flee"], "two groups that learn"),
        (["--sides", "adversary"], "two or more"),
        (["--pool", "1"], "pool of 2 or more"),
        (["--num-envs", "1"], "set num_envs to 3 or more"),
    ):
        bad = ["train", *arguments, "--self-play", "uniform", *options, "--out", str(tmp_path / "bad")]
        assert cli.main(bad) == 2
        assert message in capsys.readouterr().err
    spec = shoal.make("mpe/simple_tag").spec
    assert isinstance(experiment.load_policy(run, "last", spec), League)


def test_one_sided_groups_are_refused_where_pairs_are_compared() -> None:
    env = shoal.make("mpe/simple_crypto", 2)
    algorithm = league(env)
    with pytest.raises(ShoalError, match="two sides, and there are 3"):
        play(algorithm, env, 3, 2, 0, sampled=False)
    together = league(env, sides=("eve", "alice+bob"))
    assert play(together, env, 3, 2, 0, sampled=False).scores.shape == (1, 1, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "equilibrium"), [(RPS, 1 / 3), ("matrix/matching_pennies", 1 / 2)])
def test_average_strategy_is_the_equilibrium(tmp_path: Path, name: str, equilibrium: float, seed: int) -> None:
    """From policies that begin far from it."""
    arguments = ["--net.gain", "3", "--seed", str(seed), "--no-tensorboard", "--out", str(tmp_path)]
    assert cli.main(["train", "ippo", name, *arguments]) == 0
    assert cli.main(["league", str(tmp_path), "--sampled", "--members", "2"]) == 0
    sides = json.loads((tmp_path / "league.json").read_text())["strategies"].values()
    assert max(np.abs(np.array(played["by_step"]["0"]) - equilibrium).max() for played in sides) > 0.1
    for played in sides:
        assert played["average"] == pytest.approx([equilibrium] * len(played["average"]), abs=0.05)


def test_matrix_of_one_pool_counts_either_seat() -> None:
    """The first seat is the better one: it earns what the second does not."""
    first = np.array([[[1.0, 1.0], [1.0, 1.0]], [[3.0, 5.0], [1.0, 1.0]]])  # [row, column, episode]
    matrix = Matrix(("player", "player"), ([0, 10], [0, 10]), np.stack([first, 0 * first], -1), True)
    rows, columns = matrix.returns()
    assert rows.tolist() == [[0.5, 0.5], [2.0, 0.5]]
    assert columns.tolist() == [[0.5, 2.0], [0.5, 0.5]]
    won = np.array([[9.0, 2.0], [1.5, 9.0]])  # of two episodes, by the rows
    assert matrix._won(won).tolist() == [[0.0, 2.0 + 0.5], [1.5 + 0.0, 0.0]]


def test_a_seat_is_paid_the_mean_over_its_agents() -> None:
    seat = Seat({"a": ("a", torch.tensor([0, 2])), "b": ("b", torch.tensor([0]))})
    assert seat.score({"a": torch.tensor([[1.0, 9.0, 3.0]]), "b": torch.tensor([[5.0]])}).tolist() == [3.0]


def test_old_outcomes_weigh_less() -> None:
    member = Member(0, {})
    member.record("player", torch.zeros(100))
    member.record("player", torch.ones(100))
    assert member.results["player"] == pytest.approx([100.0, 100 + 100 * 0.99**100])


def test_opponents_stay_for_an_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    env = game((50, 50), max_steps=8)  # two rollouts
    algorithm, draw, drawn = league(env), shoal.teams.league.League._draw, []

    def watch(self: Any, slot: Any) -> Any:
        drawn.append(id(slot))
        return draw(self, slot)

    monkeypatch.setattr(shoal.teams.league.League, "_draw", watch)
    for _ in train(algorithm, env, 8 * 4 * 12):
        pass
    assert [drawn.count(id(slot)) for slot in algorithm.slots] == [6] * len(algorithm.slots)


@pytest.mark.parametrize("ended", [False, True])
def test_an_episode_against_two_opponents_counts_for_neither(ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = league(game((50, 50)))
    algorithm.experience(8)
    side = algorithm.sides[0]
    side.pool.append(Member(10, side.pool[0].weights))
    algorithm.met[:] = True
    monkeypatch.setattr(algorithm, "_draw", lambda slot: side.pool[1])
    algorithm.advance(torch.full((8,), ended))
    assert all((algorithm.whole[slot.rows] == ended).all() for slot in algorithm.slots)


def test_returns_are_ranked_among_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shoal.teams.league, "HISTORY", 12)
    algorithm = league(game((50, 60)))
    algorithm.experience(8)
    for start in (0, 10, 20):
        algorithm.sums = torch.arange(start, start + 8.0).unsqueeze(1).expand(8, 2).clone()
        algorithm._finish(torch.ones(8, dtype=torch.bool))
    assert algorithm.history.tolist() == [[14.0, 15.0, 16.0, 17.0, *range(20, 28)]] * 2


def test_learners_of_different_sides_begin_differently() -> None:
    """Number 0 is what the algorithm would be without a league."""
    env = shoal.make(RPS, 8)
    one, two = (side.learner for side in build("ippo", env, sides=("player_0", "player_1")).sides)
    first, second = (tree.leaves(x.state_dict()["nets"][0]) for x in (one, two))
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
