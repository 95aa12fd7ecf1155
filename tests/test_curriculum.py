from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shoal
from shoal import checkpoint, cli, experiment, log, tree
from shoal.experiment import load_policy
from shoal.replay import Replay
from shoal.teams import curriculum
from shoal.teams.curriculum import Course, LearningProgress, Settings, Stages
from shoal.types import ShoalError

TASKS = ("delay=1", "delay=2", "delay=3")


def test_stages_go_on_after_their_steps_or_at_a_return() -> None:
    by_steps = curriculum.build(Settings("stages", TASKS, steps=100), 0)
    seen = []
    for _ in range(6):
        by_steps.record(np.zeros(1), 50)
        seen.append(by_steps.next())
    assert seen == [0, 1, 1, 2, 2, 2]
    by_return = curriculum.build(Settings("stages", TASKS, advance_at=0.8, episodes=4), 0)
    by_return.record(np.ones(3), 10)
    assert by_return.next() == 0  # three episodes say nothing yet
    by_return.record(np.ones(1), 10)
    assert by_return.next() == 1
    by_return.record(np.array([1.0, 1.0, 0.0, 1.0]), 10)
    assert by_return.next() == 1  # 0.75, and the episodes of the task before do not count
    by_return.record(np.ones(1), 10)
    assert by_return.next() == 1
    by_return.record(np.ones(2), 10)
    assert by_return.next() == 2


def test_threshold_goes_back_where_a_task_is_too_hard() -> None:
    settings = Settings("threshold", TASKS, advance_at=0.8, retreat_at=0.2, episodes=2)
    found = curriculum.build(settings, 0)
    seen = []
    for returns in (0.0, 0.9, 0.5, 0.1, 0.9, 0.9, 0.9):
        found.record(np.full(2, returns), 1)
        seen.append(found.next())
    assert seen == [0, 1, 1, 0, 1, 2, 2]  # never below the first or beyond the last


def test_learning_progress_prefers_what_changes() -> None:
    found = curriculum.build(Settings("learning_progress", TASKS, steps=1, explore=0.0), 0)
    random, skill, visits = np.random.default_rng(0), 0.0, [0, 0, 0]
    for _ in range(600):
        task = found.next()
        visits[task] += 1
        skill += 0.001 * (task == 1)  # task 0 is known, task 2 hopeless
        found.record(random.normal([1.0, skill, 0.0][task], 0.05, 20), 1)
    assert visits[1] > 2 * max(visits[0], visits[2])
    assert min(visits) > 0


@pytest.mark.parametrize("episodes", [1, 20])
def test_learning_progress_does_not_take_luck_for_progress(episodes: int) -> None:
    """However many episodes end in a rollout."""
    found = LearningProgress(Settings("learning_progress", TASKS), 3, 0)
    random = np.random.default_rng(0)
    for _ in range(500):
        found.record(random.normal(5.0, 2.0, episodes), 1)
    assert found.variance[0] == pytest.approx(4.0, rel=0.5)
    assert found.progress[0] < 1.0


@pytest.mark.parametrize("kind", [Stages, LearningProgress])
def test_a_curriculum_goes_on_from_its_state(kind: type[Stages | LearningProgress]) -> None:
    settings = Settings("stages" if kind is Stages else "learning_progress", TASKS, steps=3, episodes=3)
    one, two = curriculum.build(settings, 0), curriculum.build(settings, 1)
    random = np.random.default_rng(0)
    for _ in range(10):
        one.record(random.normal(size=2), 1)
        one.next()
    two.load_state_dict(one.state_dict())
    for _ in range(20):
        returns = random.normal(size=2)
        one.record(returns, 1)
        two.record(returns, 1)
        assert one.next() == two.next()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings("stages", ("delay=1",), steps=10), "needs two tasks or more"),
        (Settings("stages", TASKS), "--curriculum.steps or at --curriculum.advance-at"),
        (Settings("threshold", TASKS, advance_at=0.5), "--curriculum.retreat-at below it"),
        (Settings("threshold", TASKS, advance_at=0.5, retreat_at=0.6), "below it"),
        (Settings("stages", TASKS, advance_at=0.5, retreat_at=0.1), "never back"),
        (Settings("threshold", TASKS, steps=100, advance_at=0.5, retreat_at=0.1), "steps out, or use stages"),
        (Settings("learning_progress", TASKS, advance_at=0.5), "leave advance_at"),
    ],
)
def test_a_curriculum_that_leads_nowhere_is_refused(settings: Settings, message: str) -> None:
    with pytest.raises(ShoalError, match=message):
        curriculum.build(settings, 0)


def test_tasks_are_arguments() -> None:
    assert curriculum.arguments("delay=8,max-cycles=25,layout=a|b") == {"delay": 8, "max_cycles": 25, "layout": "a|b"}
    with pytest.raises(ShoalError, match="KEY=VALUE"):
        curriculum.arguments("delay")


OPTIONS = ["memory/recall", "--env.delay", "3", "--num-envs", "4", "--eval-every", "160", "--log-every", "80"]
PPO = ["train", "ippo", *OPTIONS, "--net.hidden", "8", "--net.memory", "4", "--batch-steps", "40", "--total-steps"]
REPLAY = ["train", "vdn", *OPTIONS, "--net.hidden", "8", "--net.memory", "4", "--warmup", "100", "--total-steps"]


@pytest.mark.parametrize("start", [PPO, REPLAY])
@pytest.mark.parametrize(
    "kind", [["stages", "--curriculum.steps", "200"], ["learning_progress", "--curriculum.steps", "80"]]
)
def test_train_stop_resume_is_train_through(tmp_path: Path, start: list[str], kind: list[str]) -> None:
    chosen = ["--curriculum.kind", *kind, "--curriculum.tasks", *TASKS, "--eval-episodes", "4", "--no-tensorboard"]
    for name, steps in (("through", "640"), ("parts", "320")):
        assert cli.main([*start, steps, *chosen, "--out", str(tmp_path / name)]) == 0
    assert cli.main(["train", "--resume", str(tmp_path / "parts"), "--total-steps", "640"]) == 0
    one, two = (tree.leaves(checkpoint.load(tmp_path / n / "checkpoint")["algorithm"]) for n in ("through", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    tasks = [[row["task"] for row in log.read_metrics(tmp_path / n) if "task" in row] for n in ("through", "parts")]
    assert tasks[0] == tasks[1]
    assert len(set(tasks[0])) == 3


GROWING = ["mpe/simple_spread", "--env.N", "4", "--env.max-cycles", "5", "--num-envs", "4", "--eval-every", "160"]
POOLED = ["--net.hidden", "8", "--net.pool", "attention", "--net.no-identity"]


POLICY = ["mappo", "--batch-steps", "40", "--epochs", "2", "--minibatches", "1"]
VALUES = ["vdn", "--warmup", "40", "--batch-size", "8", "--update-every", "8", "--buffer-size", "1000"]


@pytest.mark.parametrize("learner", [POLICY, VALUES])
def test_a_run_whose_agents_grow_in_number_goes_on_exactly(tmp_path: Path, learner: list[str]) -> None:
    stages = ["--curriculum.kind", "stages", "--curriculum.steps", "160", "--curriculum.tasks", "N=2", "N=3", "N=4"]
    start = ["train", learner[0], *GROWING, *learner[1:], *POOLED, *stages, "--eval-episodes", "4", "--no-tensorboard"]
    start += ["--log-every", "120", "--total-steps"]
    for name, steps in (("through", "600"), ("parts", "240")):  # 240: in the middle of the second stage
        assert cli.main([*start, steps, "--out", str(tmp_path / name)]) == 0
    saved = checkpoint.load(tmp_path / "parts" / "checkpoint")
    assert saved["curriculum"]["task"] == 1
    assert saved["collector"]["present"]["agent"].shape == (4, 3)
    assert cli.main(["train", "--resume", str(tmp_path / "parts"), "--total-steps", "600"]) == 0
    one, two = (tree.leaves(checkpoint.load(tmp_path / n / "checkpoint")["algorithm"]) for n in ("through", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    evaluations = [log.read_evaluations(tmp_path / n) for n in ("through", "parts")]
    for row, other in zip(*([e for e in each if e["env_steps"] > 240] for each in evaluations), strict=True):
        assert row["agent_return"] == other["agent_return"]
        assert row["team_return"]["mean"] == pytest.approx(4 * row["agent_return"]["mean"])  # the run's own four
    assert cli.main(["eval", str(tmp_path / "through"), "--episodes", "2"]) == 0
    larger = shoal.make("mpe/simple_spread", 2, N=5, max_cycles=5)  # and among others than it was trained for
    found = shoal.evaluate(load_policy(tmp_path / "through", "last", larger.spec), larger, 2)
    assert found.returns["agent"].shape == (2, 5)


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (["mappo"], "set net.pool to mean or attention"),
        (["qmix", "--net.pool", "mean", "--net.no-identity"], "set mixer to sum or none"),
        (["maddpg"], "cannot go on with more or fewer agents"),
    ],
)
def test_what_cannot_grow_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], learner: list[str], message: str
) -> None:
    stages = ["--curriculum.kind", "stages", "--curriculum.steps", "9", "--curriculum.tasks", "N=2", "N=4"]
    options = [*GROWING, *learner[1:], *stages, "--out", str(tmp_path / "run")]
    assert cli.main(["train", learner[0], *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_wrong_task_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--curriculum.kind", "stages", "--curriculum.steps", "9", "--curriculum.tasks", "delay=1", "dealy=2"]
    assert cli.main([*PPO, "100", *wrong, "--out", str(tmp_path / "run")]) == 2
    assert "delay" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tasks_without_a_kind_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*PPO, "100", "--curriculum.tasks", *TASKS, "--out", str(tmp_path / "run")]) == 2
    assert "--curriculum.kind" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_other_agents_cannot_take_over() -> None:
    env, larger = shoal.make("memory/recall", 2, cues=3), shoal.make("memory/recall", 2, cues=4)
    algorithm = shoal.build("ippo", env.spec, batch_steps=8)
    progress = next(shoal.train(algorithm, env, 100))
    with pytest.raises(ShoalError, match="other agents"):
        progress.move_to(larger)


def test_what_was_played_before_a_move_does_not_go_on_after_it() -> None:
    """And starts after a move are not those of an earlier one."""
    env: Any = shoal.make("mpe/simple_spread", 2, max_cycles=1000)
    reset, seeds = env.reset, []

    def watch(seed: int | None = None) -> Any:
        seeds.append(seed)
        return reset(seed)

    env.reset = watch
    algorithm = shoal.build("vdn", env.spec, update_every=8, warmup=10**6)
    for progress in shoal.train(algorithm, env, 64):
        assert isinstance(progress.experience, Replay)
        assert not progress.experience.storage.ended.any() or progress.env_steps > 16
        if progress.env_steps in (16, 32):
            progress.move_to(env)
            assert progress.experience.storage.ended[progress.experience.written - 1].all()
    assert len(seeds) == len(set(seeds)) == 3


def test_a_run_is_evaluated_with_what_it_has_learned_in_other_tasks(tmp_path: Path) -> None:
    stages = ["--curriculum.kind", "stages", "--curriculum.steps", "160", "--curriculum.tasks", "N=2", "N=3", "N=4"]
    start = ["train", POLICY[0], *GROWING, *POLICY[1:], *POOLED, *stages, "--eval-episodes", "4", "--no-tensorboard"]
    assert cli.main([*start, "--total-steps", "240", "--out", str(tmp_path)]) == 0
    env = shoal.make("mpe/simple_spread", 4, N=4, max_cycles=5)
    seed = experiment._seed(experiment.open_run(tmp_path).settings, 1)
    again = shoal.evaluate(load_policy(tmp_path, "last", env.spec), env, 4, seed)
    logged = log.read_evaluations(tmp_path)[-1]
    assert logged["env_steps"] == 240
    assert again.agent_return.mean() == pytest.approx(logged["agent_return"]["mean"], rel=1e-5)


def known(explore: float, *means: float) -> LearningProgress:
    """After returns that begin at 0 and go to `means`."""
    found = LearningProgress(Settings("learning_progress", TASKS, steps=1, explore=explore), 3, 0)
    for task, mean in enumerate(means):
        found.task = task
        for part in (0.0, 0.5, 1.0):
            found.record(np.array([part * mean - 1, part * mean + 1]), 1)
    return found


def test_a_share_of_the_choices_is_uniform() -> None:
    for explore in (0.0, 0.5, 1.0):
        found, visits = known(explore, 9.0, 0.0, 0.0), np.zeros(3)
        for _ in range(2000):
            found.steps = 1
            visits[found.next()] += 1
        assert visits[1:].sum() / 2000 == pytest.approx(explore * 2 / 3, abs=0.05)


def test_what_is_forgotten_is_as_interesting_as_what_is_learned() -> None:
    progress = known(0.0, 5.0, -5.0, 0.0).progress
    assert progress[0] == pytest.approx(progress[1])
    assert progress[2] == pytest.approx(0.0) != progress[0]


def test_returns_are_per_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(arguments: dict[str, Any]) -> shoal.VecEnv:
        return shoal.make("mpe/simple_spread", 2, max_cycles=5, **arguments)

    settings = Settings("stages", ("local_ratio=0.5", "local_ratio=0.4"), steps=10**6)
    course = Course(settings, 0, make, lambda spec: shoal.build("mappo", spec))
    algorithm, seen = shoal.build("mappo", course.env.spec, batch_steps=10), []
    monkeypatch.setattr(course.curriculum, "record", lambda returns, steps: seen.append((returns, steps)))
    for progress in shoal.train(algorithm, course.env, 10):
        ((returns, _),) = progress.collector.latest
        course.follow(progress)
    assert seen[0][0] == pytest.approx(returns["agent"].mean(1).numpy(), rel=1e-5)
    assert seen[0][1] == 10
    assert curriculum.build(settings, 0).task == 0


def test_episodes_of_the_task_before_do_not_count() -> None:
    """Nor do they make up the number."""
    found = curriculum.build(Settings("stages", TASKS, advance_at=0.8, episodes=4), 0)
    found.record(np.ones(4), 10)
    assert found.next() == 1
    for _ in range(3):
        found.record(np.ones(1), 10)
        assert found.next() == 1
    found.record(np.ones(1), 10)
    assert found.next() == 2
