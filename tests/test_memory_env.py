"""memory/recall: what is seen when, what pays, and that it takes a memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import shoal
from shoal import checkpoint
from shoal.envs.memory import Recall
from shoal.types import Groups, ShoalError, Step, View


def recall(num_envs: int = 3, **arguments: object) -> Recall:
    env = shoal.make("memory/recall", num_envs, **arguments)
    assert isinstance(env, Recall)
    return env


def constant(env: Recall, action: int = 0) -> Groups:
    return {"agent": torch.full((env.num_envs, env.num_agents), action)}


def play(env: Recall, steps: int) -> list[Step]:
    """Steps in which everybody answers 0."""
    return [env.step(constant(env)) for _ in range(steps)]


class Rememberer:
    """Keeps the cue it was shown, and always answers it; without `width`, it answers what it sees."""

    def __init__(self, num_agents: int, cues: int, width: int) -> None:
        self.num_agents, self.cues, self.width = num_agents, cues, width

    def initial_memory(self, num_envs: int) -> Groups:
        return {"agent": torch.zeros(num_envs, self.num_agents, self.width)}

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        seen = view.obs["agent"][..., : self.cues]
        if self.width:
            seen = seen + memory["agent"]  # a memory that is not cleared between episodes answers wrongly
        return {"agent": seen.argmax(-1)}, {"agent": seen if self.width else memory["agent"]}


def test_spec() -> None:
    spec = recall(num_agents=3, cues=5).spec
    assert list(spec.groups) == ["agent"]
    group = spec.groups["agent"]
    assert group.agents == ("agent_0", "agent_1", "agent_2")
    assert group.obs_shape == (6,)
    assert group.action == shoal.Discrete(5)
    assert not group.masked
    assert spec.state_size == 0


def test_the_cue_is_shown_once_and_then_everybody_sees_the_same() -> None:
    env = recall(50, delay=4)
    first = env.reset(0).obs["agent"]
    assert torch.equal(first[..., :4].sum(-1), torch.ones(50, 2))
    assert first[..., 4].eq(0).all()
    assert torch.equal(first[..., :4].argmax(-1), env.cue)
    steps = play(env, 6)
    for step in steps[:4]:
        assert step.view.obs["agent"].eq(0).all()  # whatever the cue, whatever the time
    now = steps[4].view.obs["agent"]
    assert now[..., :4].eq(0).all()
    assert now[..., 4].eq(1).all()
    assert steps[5].successor.obs["agent"].eq(0).all()
    assert steps[5].view.obs["agent"][..., :4].sum(-1).eq(1).all()  # the next episode's cue


def test_the_right_answer_pays_1_and_a_wrong_one_0() -> None:
    env = recall(20, num_agents=3, delay=2)
    env.reset(0)
    cue = env.cue
    for _ in range(3):  # right too early: ignored
        assert env.step({"agent": cue}).reward["agent"].eq(0).all()
    answer = torch.stack((cue[:, 0], (cue[:, 1] + 1) % 4, cue[:, 0]), 1)  # its own, a wrong one, another agent's
    reward = env.step({"agent": answer}).reward["agent"]
    assert reward[:, 0].eq(1).all()
    assert reward[:, 1].eq(0).all()
    assert torch.equal(reward[:, 2], (cue[:, 0] == cue[:, 2]).float())
    assert 0 < reward[:, 2].sum() < 20


@pytest.mark.parametrize("delay", [1, 5])
def test_an_episode_terminates_after_the_answer(delay: int) -> None:
    env = recall(delay=delay)
    env.reset(0)
    steps = play(env, 2 * (delay + 2))
    last = ([False] * (delay + 1) + [True]) * 2
    assert [bool(step.ended.all()) for step in steps] == last
    assert [bool(step.ended.any()) for step in steps] == last
    assert [bool(step.terminated["agent"].all()) for step in steps] == last
    assert [bool(step.terminated["agent"].any()) for step in steps] == last
    assert all(step.alive["agent"].all() for step in steps)


def test_cues_are_uniform_and_independent() -> None:
    env = recall(8000, num_agents=2, cues=4, delay=1)
    env.reset(0)
    counts = torch.bincount(env.cue[:, 0] * 4 + env.cue[:, 1], minlength=16)
    assert counts.min() > 400  # 500 expected, standard deviation 22
    assert counts.max() < 600


def test_seeds() -> None:
    def cues(env: Recall, seed: int | None) -> Tensor:
        """Of three episodes."""
        shown = [env.reset(seed).obs["agent"]]
        shown += [play(env, 3)[-1].view.obs["agent"] for _ in range(2)]
        return torch.stack(shown)

    env, other = recall(10, delay=1), recall(10, delay=1)
    one = cues(env, 5)
    assert torch.equal(one, cues(env, 5))
    assert torch.equal(one, cues(other, 5))
    assert not torch.equal(one, cues(env, 6))
    assert not torch.equal(one[0], one[1])  # episodes differ
    assert not torch.equal(one[1], one[2])
    env.reset(5)
    assert not torch.equal(env.reset().obs["agent"], one[0])  # without a seed the stream goes on
    state = torch.get_rng_state()
    cues(env, 7)
    assert torch.equal(torch.get_rng_state(), state)  # and it is its own


@pytest.mark.parametrize("before", [0, 2, 5])
def test_resume_goes_on_equally(tmp_path: Path, before: int) -> None:
    env, resumed = recall(6, delay=2), recall(6, delay=2)
    env.reset(3)
    play(env, before)
    checkpoint.save(tmp_path, env.state_dict(), 0)
    resumed.reset(4)
    play(resumed, 1)
    through = play(env, 10)
    resumed.load_state_dict(checkpoint.load(tmp_path))
    for one, two in zip(through, play(resumed, 10), strict=True):
        assert torch.equal(one.view.obs["agent"], two.view.obs["agent"])
        assert torch.equal(one.successor.state, two.successor.state)
        assert torch.equal(one.reward["agent"], two.reward["agent"])
        assert torch.equal(one.ended, two.ended)
    assert np.array_equal(env.render(), resumed.render())


def test_what_was_returned_does_not_change() -> None:
    env = recall(delay=1)
    view = env.reset(0)
    obs, state = view.obs["agent"].clone(), view.state.clone()
    play(env, 7)
    assert torch.equal(view.obs["agent"], obs)
    assert torch.equal(view.state, state)


def test_memory_solves_it_and_nothing_else_does() -> None:
    env = recall(50, num_agents=3, cues=4, delay=8)
    remembers = shoal.evaluate(Rememberer(3, 4, width=4), env, 500)
    assert (remembers.returns["agent"] == 1.0).all()
    assert (remembers.lengths == 10).all()
    forgets = shoal.evaluate(Rememberer(3, 4, width=0), env, 2000)
    assert forgets.agent_return.mean() == pytest.approx(0.25, abs=0.03)  # standard error 0.006


def test_bad_arguments_and_actions() -> None:
    with pytest.raises(ShoalError, match="num_agents must be at least 1, not 0"):
        recall(num_agents=0)
    with pytest.raises(ShoalError, match="cues must be at least 2, not 1"):
        recall(cues=1)
    with pytest.raises(ShoalError, match="delay must be at least 1, not 0"):
        recall(delay=0)
    with pytest.raises(ShoalError, match="num_envs must be at least 1, not 0"):
        recall(0)
    with pytest.raises(ShoalError, match="did you mean 'delay'"):
        recall(delays=3)
    env = recall()
    env.reset(0)
    for action in (-1, 4):
        with pytest.raises(ShoalError, match=r"must be 0\.\.3"):
            env.step(constant(env, action))
    assert env.steps == 0


@pytest.mark.parametrize("arguments", [{}, {"num_agents": 1, "cues": 2, "delay": 1}, {"num_agents": 5, "cues": 7}])
def test_contract(arguments: dict[str, int]) -> None:
    env = recall(**arguments)
    shoal.check_env(env, steps=60)
    env.close()


def test_render() -> None:
    env = recall(2, delay=1)
    env.reset(0)
    pictures = [env.render()]
    for _ in range(3):
        env.step({"agent": env.cue})
        pictures.append(env.render())
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert picture.shape == (132, 420, 3)
    for one, two in itertools.pairwise(pictures):
        assert not np.array_equal(one, two)
    after_right = env.render(1)
    env.answers = (env.asked + 1) % 4
    assert not np.array_equal(after_right, env.render(1))
