"""Replay, collection, evaluation: what is stored is what happened."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import shoal
from shoal import tree
from shoal.collect import LocalCollector
from shoal.evaluate import Evaluation, evaluate
from shoal.replay import Replay, allocate
from shoal.stats.aggregate import describe
from shoal.types import Discrete, EnvSpec, Groups, GroupSpec, ShoalError, Step, View


def replay(spec: shoal.EnvSpec, num_envs: int = 2, **settings: int) -> Replay:
    options = {"capacity": 10, "batch_size": 4, "update_every": 1, "warmup": 0} | settings
    return Replay(spec, num_envs, generator=torch.Generator().manual_seed(0), **options)


def numbered(spec: shoal.EnvSpec, steps: int, first: int) -> shoal.Batch:
    batch = allocate(spec, (steps, 2), {})
    batch.groups["agent"].reward[:] = torch.arange(first, first + steps)[:, None, None]
    return batch


@pytest.fixture
def spec() -> shoal.EnvSpec:
    return shoal.make("tutorial/drift", 2).spec


def test_replay_keeps_the_newest(spec: shoal.EnvSpec) -> None:
    ring = replay(spec)  # 10 transitions of 2 environments: 5 rows
    for first in (0, 3, 6):
        list(ring.add(numbered(spec, 3, first)))
    assert sorted(ring.storage.groups["agent"].reward[:, 0, 0].tolist()) == [4, 5, 6, 7, 8]
    seen = torch.cat([ring.sample().groups["agent"].reward[:, 0].clone() for _ in range(60)])
    assert set(seen.tolist()) == {4, 5, 6, 7, 8}


def test_replay_samples_only_what_was_written(spec: shoal.EnvSpec) -> None:
    ring = replay(spec, capacity=1000)
    list(ring.add(numbered(spec, 3, 5)))
    seen = torch.cat([ring.sample().groups["agent"].reward[:, 0].clone() for _ in range(60)])
    assert set(seen.tolist()) == {5, 6, 7}


def test_replay_copies(spec: shoal.EnvSpec) -> None:
    ring, batch = replay(spec), numbered(spec, 2, 1)
    list(ring.add(batch))
    batch.groups["agent"].reward.fill_(99)
    assert ring.sample().groups["agent"].reward.max() <= 2


@pytest.mark.parametrize(("every", "warmup", "expected"), [(1, 0, 2 * 30 - 4), (4, 0, 14), (3, 20, 14)])
def test_replay_ratio_of_updates_to_steps(spec: shoal.EnvSpec, every: int, warmup: int, expected: int) -> None:
    ring = replay(spec, capacity=1000, update_every=every, warmup=warmup)
    updates, steps = 0, 0
    while steps < 30:
        updates += len(list(ring.add(numbered(spec, ring.rollout_steps, 0))))
        steps += ring.rollout_steps
    assert updates == pytest.approx(expected, abs=1)


def test_replay_refuses_less_than_a_step(spec: shoal.EnvSpec) -> None:
    with pytest.raises(ShoalError, match="buffer_size 1 holds no step of 2"):
        replay(spec, capacity=1)


def test_replay_state_continues_identically(spec: shoal.EnvSpec) -> None:
    one, two = replay(spec, capacity=20), replay(spec, capacity=20)
    list(one.add(numbered(spec, 4, 0)))
    two.load_state_dict(tree.map(torch.clone, one.state_dict()))
    for ring in (one, two):
        list(ring.add(numbered(spec, 1, 50)))
    for a, b in zip(tree.leaves(one.sample()), tree.leaves(two.sample()), strict=True):
        assert torch.equal(a, b)


class Still:
    """Does nothing."""

    def __init__(self, spec: shoal.EnvSpec) -> None:
        self.spec = spec

    def initial_memory(self, num_envs: int) -> Groups:
        return {name: torch.zeros(num_envs, g.num_agents, 1) for name, g in self.spec.groups.items()}

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        zeros = {name: torch.zeros_like(view.obs[name])[..., :2] for name in self.spec.groups}
        return zeros, {name: m + 1 for name, m in memory.items()}


def test_a_rollout_chains_and_keeps_the_true_successor() -> None:
    env = shoal.make("tutorial/drift", 3, max_steps=5)
    rollout = LocalCollector(Still(env.spec), env, 12, seed=0).collect()
    agents = rollout.groups["agent"]
    assert rollout.ended.nonzero()[:, 0].unique().tolist() == [4, 9]
    for t in range(11):
        if not rollout.ended[t, 0]:
            assert torch.equal(agents.next_obs[t], agents.obs[t + 1])
        else:  # the next row is another episode: a state drawn anew, not one small step away
            assert (agents.next_obs[t] - agents.obs[t]).abs().max() < 0.6
            assert (agents.next_obs[t] - agents.obs[t + 1]).abs().max() > 0.6
    assert not agents.terminated.any()
    assert agents.alive.all()
    # the tutorial's fault: every stored state equal to its own successor
    assert not torch.equal(agents.obs, agents.next_obs)


def test_memory_is_stored_before_the_step_and_starts_anew_with_an_episode() -> None:
    env = shoal.make("tutorial/drift", 2, max_steps=3)
    rollout = LocalCollector(Still(env.spec), env, 7, seed=0).collect()
    assert rollout.groups["agent"].memory[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_evaluation_plays_whole_episodes_shared_out_before_play() -> None:
    env = shoal.make("tutorial/drift", 4, max_steps=6)
    result = evaluate(Still(env.spec), env, episodes=10, seed=3)
    assert result.episodes == 10
    assert result.lengths.tolist() == [6.0] * 10
    again = evaluate(Still(env.spec), env, episodes=10, seed=3)
    assert np.array_equal(result.team_return, again.team_return)


@pytest.mark.parametrize("name", ["mappo", "iql"])
def test_sampled_evaluations_draw_actions_and_change_nothing(name: str) -> None:
    """Actions of a policy before it learned are nearly uniform; of climbing's greedy ones all episodes are the same."""
    env = shoal.make("matrix/climbing", 5)
    algorithm = shoal.build(name, env.spec, seed=1)
    before = tree.map(torch.clone, algorithm.state_dict())
    sampled, greedy = (evaluate(algorithm, env, 50, sampled=how) for how in (True, False))
    assert np.unique(greedy.team_return).size == 1
    assert np.unique(sampled.team_return).size > 20
    assert "50 sampled episodes" in str(sampled)
    assert "50 greedy episodes" in str(greedy)
    for a, b in zip(tree.leaves(before), tree.leaves(algorithm.state_dict()), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    again = evaluate(algorithm, env, 50, sampled=True)
    assert np.array_equal(again.team_return, sampled.team_return)


def test_units() -> None:
    result = Evaluation({"a": np.array([[1.0, 3.0]]), "b": np.array([[5.0]])}, np.array([2.0]))
    assert result.team_return.tolist() == [9.0]
    assert result.agent_return.tolist() == [3.0]
    assert result.group_return("a").tolist() == [2.0]
    summary = result.summary()
    assert summary["group_return"]["b"]["mean"] == 5.0
    assert summary["team_return"]["ci95"] == [9.0, 9.0]


def test_bootstrap_interval_covers_the_mean_of_normals() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = describe(values)["ci95"]
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_endless_episodes_are_refused() -> None:
    env = shoal.make("tutorial/drift", 1, max_steps=10**6)
    with pytest.raises(ShoalError, match="time limit"):
        evaluate(Still(env.spec), env, episodes=1, max_steps=50)


class Uneven:
    """Environment 0's episodes have 10 steps and earn 1, environment 1's have one and earn nothing."""

    def __init__(self) -> None:
        self.num_envs, self.spec = 2, EnvSpec({"agent": GroupSpec(("agent_0",), (1,), Discrete(2))})

    def _view(self) -> View:
        return View({"agent": torch.zeros(2, 1, 1)}, {"agent": torch.zeros(2, 1, 0).bool()}, torch.zeros(2, 0))

    def reset(self, seed: int | None = None) -> View:
        self.time = 0
        return self._view()

    def step(self, actions: Groups) -> Step:
        self.time += 1
        ended = torch.tensor([self.time % 10 == 0, True])
        reward = {"agent": torch.tensor([[0.1], [0.0]])}
        no, yes = {"agent": torch.zeros(2, 1).bool()}, {"agent": torch.ones(2, 1).bool()}
        return Step(self._view(), self._view(), reward, no, yes, ended)

    def close(self) -> None: ...


def test_short_episodes_do_not_count_more_often() -> None:
    env = Uneven()
    result = evaluate(shoal.build("ippo", env.spec), env, episodes=4)
    assert sorted(result.lengths.tolist()) == [1.0, 1.0, 10.0, 10.0]
    assert np.isclose(result.agent_return.mean(), 0.5)


def test_games_of_each_agent() -> None:
    returns = {"a": np.array([[1.0, 0.0], [0.0, -1.0], [2.0, -3.0], [1.0, -1.0]]), "b": np.zeros((4, 1))}
    result = Evaluation(returns, np.ones(4), {"a": ("x", "y"), "b": ("z",)})
    assert result.return_of("y").tolist() == [0.0, -1.0, -3.0, -1.0]
    found = result.agent_returns()
    shares = {name: [row[sign] for sign in ("positive", "zero", "negative")] for name, row in found.items()}
    assert shares == {"x": [0.75, 0.25, 0.0], "y": [0.0, 0.25, 0.75], "z": [0.0, 1.0, 0.0]}
