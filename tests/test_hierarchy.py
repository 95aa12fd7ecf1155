from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import shoal
from shoal import checkpoint, cli, tree
from shoal.algorithms.hierarchy import MANAGER, Hierarchy
from shoal.collect import LocalCollector
from shoal.teams.scripted import Scripted
from shoal.types import Batch, Discrete, EnvSpec, GroupSpec, ShoalError


def build(**settings: Any) -> tuple[Hierarchy, shoal.VecEnv]:
    env = shoal.make("sparse/expedition", 3, n_agents=4, n_teams=2, max_steps=7, speed=0.1)
    settings = {"teams": 2, "k": 3, "goal_bins": 3, **settings}
    algorithm = shoal.build("feudal", env.spec, **settings)
    assert isinstance(algorithm, Hierarchy)
    return algorithm, env


def divided(algorithm: Hierarchy, env: shoal.VecEnv, steps: int = 12) -> tuple[Batch, Batch, Batch]:
    rollout = LocalCollector(algorithm, env, steps, seed=0).collect()
    return rollout, *algorithm.divide(rollout)


def test_random_play_never_gets_there_and_walking_there_does() -> None:
    env = shoal.make("sparse/expedition", 500)
    assert shoal.evaluate(Scripted(env.spec, "random"), env, 500).agent_return.max() == 0.0
    shoal.check_env(env)
    view, paid = env.reset(0), torch.zeros(500, 2)
    for _ in range(60):
        apart = view.obs["agent"][..., 2:4] - view.obs["agent"][..., :2]
        sideways = apart[..., 0].abs() > apart[..., 1].abs()
        move = torch.where(sideways, 1 + (apart[..., 0] > 0).long(), 3 + (apart[..., 1] > 0).long())
        step = env.step({"agent": torch.where(apart.norm(dim=-1) < 0.15, 0, move)})
        paid += step.reward["agent"]
        view = step.view
    assert (paid >= 1).all()


@pytest.mark.parametrize("goal", ["place", "change"])
def test_goals_hold_for_k_steps_and_are_new_in_every_episode(goal: str) -> None:
    algorithm, env = build(goal=goal)
    view, memory = env.reset(0), algorithm.initial_memory(3)
    goals, left, ended = [], [], []
    for _ in range(14):
        actions, memory = algorithm.act(view, memory, explore=True)
        now = algorithm.played[-1]["agent"]
        goals.append(now.goal)
        left.append(now.left[:, 0, 0].tolist())
        step = env.step(actions)
        view = step.view
        memory["agent"] = memory["agent"] * ~step.ended.view(-1, 1, 1)
        ended.append(bool(step.ended[0]))
    assert [row[0] for row in left] == [3, 2, 1, 3, 2, 1, 3] * 2  # seven steps an episode
    assert ended == [False] * 6 + [True] + [False] * 6 + [True]
    for t in range(13):
        same = torch.equal(goals[t], goals[t + 1])
        assert same == (left[t + 1][0] != 3)
    if goal == "place":
        assert set(torch.stack(goals).flatten().tolist()) == {-1.0, 0.0, 1.0}


def test_workers_are_paid_for_coming_closer_and_a_goal_is_an_episode() -> None:
    algorithm, env = build(alpha=0.5)
    rollout, _, workers = divided(algorithm, env)
    own, a = workers.groups["agent"], rollout.groups["agent"]
    goal = own.obs[..., -2:] + a.obs[..., :2]
    assert torch.allclose(own.next_obs[..., -2:] + a.next_obs[..., :2], goal, atol=1e-6)  # the same to the last step
    before, after = own.obs[..., -2:].norm(dim=-1), own.next_obs[..., -2:].norm(dim=-1)
    assert torch.allclose(own.reward, before - after + 0.5 * a.reward, atol=1e-6)
    assert workers.ended[:, 0].nonzero().flatten().tolist() == [2, 5, 6, 9]  # episodes have seven steps


def test_managers_are_paid_for_their_team_and_alive_where_they_choose() -> None:
    algorithm, env = build()
    rollout = LocalCollector(algorithm, env, 12, seed=0).collect()
    a = rollout.groups["agent"]
    a.reward.copy_(torch.tensor([1.0, 2.0, 10.0, 20.0]).expand_as(a.reward))
    managers, _ = algorithm.divide(rollout)
    own = managers.groups["agent" + MANAGER]
    assert own.reward[0, 0].tolist() == [1.5, 1.5, 15.0, 15.0]
    assert own.alive[:, 0, 0].tolist() == [t % 7 in (0, 3, 6) for t in range(12)]
    assert torch.equal(own.present, a.present)
    assert torch.equal(managers.ended, rollout.ended)
    waits = ~own.alive[:, :, 0]
    assert (own.legal[waits].sum(-1) == 1).all()  # the goal in force
    assert own.legal[waits].gather(-1, own.action[waits].unsqueeze(-1)).all()
    assert own.legal[~waits].all()
    within = ~rollout.ended[:-1]
    assert torch.allclose(own.next_obs[:-1][within], own.obs[1:][within])
    assert torch.equal(own.next_legal[:-1][within], own.legal[1:][within])


def test_the_global_state_tells_the_goals() -> None:
    """Else a central value, or a mixer, would not know what workers are paid for, nor what managers have chosen."""
    algorithm, env = build(manager="mappo", worker="mappo", manager_options=("batch_steps=36",))
    rollout, managers, workers = divided(algorithm, env)
    size = rollout.state.shape[-1]
    goals = workers.groups["agent"].obs[..., -2:] + rollout.groups["agent"].obs[..., :2]
    assert torch.allclose(workers.state[..., size:], goals.flatten(-2), atol=1e-6)
    for share in (managers, workers):
        assert torch.equal(share.state[..., :size], rollout.state)
        within = ~share.ended[:-1]
        assert torch.equal(share.next_state[:-1][within], share.state[1:][within])
    in_force = managers.groups["agent" + MANAGER].obs[..., -3:]  # what each manager knows of its own
    assert torch.allclose(managers.state[..., size:-1], in_force[..., :-1].flatten(-2), atol=1e-6)
    assert torch.equal(managers.state[..., -1], in_force[..., 0, -1])
    shown = env.reset(0)
    algorithm.act(shown, algorithm.initial_memory(3), explore=False)


def test_a_manager_sees_its_own_team_only() -> None:
    algorithm, env = build()
    view, memory = env.reset(0), algorithm.initial_memory(3)
    seen = {}

    def watch(asked: shoal.View, *rest: Any, **options: Any) -> Any:
        seen["obs"] = asked.obs["agent" + MANAGER].clone()
        return act(asked, *rest, **options)

    act, algorithm.manager.act = algorithm.manager.act, watch  # type: ignore[method-assign]
    algorithm.act(view, memory, explore=False)
    before = seen["obs"]
    view.obs["agent"][:, 3] += 1.0
    algorithm.act(view, memory, explore=False)
    changed = (seen["obs"] != before).flatten(2).any(-1)
    assert changed.tolist() == [[False, False, True, True]] * 3


SMALL = ["sparse/expedition", "--num-envs", "4", "--env.max-steps", "11", "--k", "4", "--eval-episodes", "4"]
PPO = ["batch_steps=64", "epochs=1", "net.memory=4"]
Q = ["batch_size=8", "warmup=50", "update_every=8"]


@pytest.mark.parametrize(
    "options",
    [
        ["--manager-options", *PPO, "--worker-options", *PPO],
        ["--manager", "qmix", "--worker", "vdn", "--goal-bins", "2", "--manager-options", *Q, "--worker-options", *Q],
        ["--manager", "maddpg", "--worker", "iql", "--goal-bins", "2", "--manager-options", *Q, "--worker-options", *Q],
    ],
)
def test_train_stop_resume_is_train_through(tmp_path: Path, options: list[str]) -> None:
    for name, steps in (("through", "512"), ("parts", "256")):
        arguments = ["train", "feudal", *SMALL, *options, "--eval-every", "256", "--no-tensorboard"]
        assert cli.main([*arguments, "--total-steps", steps, "--out", str(tmp_path / name)]) == 0
    assert cli.main(["train", "--resume", str(tmp_path / "parts"), "--total-steps", "512"]) == 0
    one, two = (tree.leaves(checkpoint.load(tmp_path / n / "checkpoint")["algorithm"]) for n in ("through", "parts"))
    assert len(one) == len(two) > 20
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert cli.main(["eval", str(tmp_path / "parts"), "--episodes", "4"]) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teams": 3}, "do not divide into 3 teams"),
        ({"goal_columns": (9,)}, "not all columns"),
        ({"k": 0}, "at least 1"),
        ({"goal_bins": 1}, "at least 2"),
        ({"manager": "qmxi"}, "did you mean 'qmix'"),
        ({"manager": "qmix", "goal_bins": 0}, "iscrete"),
        ({"manager": "matd3", "goal_bins": 0}, "set goal_bins"),
        ({"worker_options": ("lrr=1",)}, "did you mean 'lr'"),
        ({"worker_options": ("net.memry=1",)}, "did you mean 'memory'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ShoalError, match=message):
        build(**settings)


def test_pictures_have_no_columns_to_come_closer_in() -> None:
    group = GroupSpec(("a",), (6, 6, 3), Discrete(3), image=True)
    with pytest.raises(ShoalError, match="a observes pictures"):
        shoal.build("feudal", EnvSpec({"a": group}))


def test_workers_start_anew_with_every_goal() -> None:
    algorithm, env = build(worker_options=("net.memory=4",))
    _, _, workers = divided(algorithm, env)
    remembers = workers.groups["agent"].memory.flatten(1).any(1)  # 3 steps a goal, 7 an episode
    assert remembers.tolist() == [t % 7 not in (0, 3, 6) for t in range(12)]


def test_workers_are_not_paid_for_the_step_that_ends_them() -> None:
    """What is seen after a termination may be anywhere."""
    algorithm, env = build(alpha=0.5)
    rollout = LocalCollector(algorithm, env, 12, seed=0).collect()
    agents = rollout.groups["agent"]
    agents.terminated[2], agents.alive[4] = True, False
    _, workers = algorithm.divide(rollout)
    own = workers.groups["agent"].reward - 0.5 * agents.reward
    assert not own[[2, 4]].any()
    assert own[[0, 1, 3, 5]].any(-1).any(-1).all()


@pytest.mark.parametrize("bins", [0, 3])
@pytest.mark.parametrize("goal", ["place", "change"])
def test_goals_lie_within_their_scale_of_nothing_or_of_where_one_is(bins: int, goal: str) -> None:
    algorithm, env = build(goal=goal, goal_bins=bins, goal_scale=2.0)
    view = env.reset(0)
    algorithm.act(view, algorithm.initial_memory(3), explore=True)
    now = algorithm.played[-1]["agent"]
    said = now.goal - (view.obs["agent"][..., :2] if goal == "change" else 0)
    if bins:
        assert torch.allclose(said, said.round(), atol=1e-5)
        assert set(said.round().unique().tolist()) == {-2.0, 0.0, 2.0}
    else:
        assert torch.allclose(said, 2 * now.choice, atol=1e-5)


def test_managers_and_workers_draw_differently() -> None:
    algorithm, _ = build()
    assert not torch.equal(algorithm.manager.sampler.get_state(), algorithm.worker.sampler.get_state())


def test_managers_memory_is_that_before_each_step() -> None:
    """None at an episode's start, and what the network makes of a step at the next."""
    algorithm, env = build(manager_options=("net.memory=4",))
    _, managers, _ = divided(algorithm, env)
    own = managers.groups["agent" + MANAGER]
    remembers = own.memory.flatten(1).any(1)  # seven steps an episode
    assert remembers.tolist() == [t % 7 != 0 for t in range(12)]
    with torch.no_grad():
        after = algorithm.manager.nets["agent" + MANAGER].step(own.obs[0], own.memory[0])[1]  # type: ignore[attr-defined]
    assert torch.allclose(own.memory[1], after, atol=1e-5)
