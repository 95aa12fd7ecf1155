"""Matrix games: payoffs, stages, ends, and the optima they are known for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import shoal
from shoal.envs.matrix import MatrixGame
from shoal.types import ShoalError


def play(env: MatrixGame, *joint: tuple[int, ...]) -> torch.Tensor:
    """Rewards `[step, player]` of environment 0 for a sequence of joint actions."""
    rewards = []
    for actions in joint:
        step = env.step({"player": torch.tensor([actions] * env.num_envs)})
        rewards.append(step.reward["player"][0])
    return torch.stack(rewards)


def game(name: str, num_envs: int = 2, **arguments: object) -> MatrixGame:
    env = shoal.make(f"matrix/{name}", num_envs, **arguments)
    assert isinstance(env, MatrixGame)
    env.reset(0)
    return env


def test_climbing() -> None:
    env = game("climbing")
    table = [[11, -30, 0], [-30, 7, 0], [0, 6, 5]]
    for a, b in itertools.product(range(3), range(3)):
        assert play(env, (a, b)).tolist() == [[table[a][b]] * 2]
    assert env.optimal_return == 275


def test_penalty_takes_k() -> None:
    env = game("penalty", k=-25.0)
    assert play(env, (0, 0), (2, 2), (1, 1), (0, 2), (2, 0))[:, 0].tolist() == [-25, -25, 2, 10, 10]
    assert env.optimal_return == 250


def test_two_step() -> None:
    env = game("two_step")
    first = env.step({"player": torch.tensor([[0, 1], [1, 0]])})
    assert first.reward["player"].tolist() == [[0, 0], [0, 0]]
    assert first.view.obs["player"][:, 0].tolist() == [[0, 1, 0], [0, 0, 1]]  # only player 0 chooses
    second = env.step({"player": torch.tensor([[1, 1], [1, 1]])})
    assert second.reward["player"].tolist() == [[7, 7], [8, 8]]
    assert second.terminated["player"].all()
    assert second.ended.all()
    assert second.successor.obs["player"][1, 0].tolist() == [0, 0, 1]
    assert second.view.obs["player"][:, 0].tolist() == [[1, 0, 0]] * 2
    assert [play(env, (1, 0), last)[1, 0].item() for last in ((0, 0), (0, 1), (1, 0))] == [0, 1, 1]
    assert env.optimal_return == 8


def test_own_payoffs() -> None:
    assert play(game("prisoners"), (0, 1), (1, 1)).tolist() == [[-3, 0], [-2, -2]]
    pennies = play(game("matching_pennies"), (0, 0), (0, 1))
    assert pennies.tolist() == [[1, -1], [-1, 1]]
    rock, paper, scissors = 0, 1, 2
    rounds = (rock, rock), (rock, paper), (scissors, paper), (scissors, rock)
    assert play(game("rock_paper_scissors"), *rounds).tolist() == [[0, 0], [-1, 1], [1, -1], [-1, 1]]
    assert play(game("stag_hunt"), (0, 0), (0, 1)).tolist() == [[4, 4], [1, 3]]
    assert game("nonmonotonic").optimal_return == 8


def test_a_repeated_game_is_cut_off() -> None:
    env = game("climbing", max_steps=3)
    steps = [env.step({"player": torch.zeros(2, 2, dtype=torch.int64)}) for _ in range(4)]
    assert [bool(s.ended.all()) for s in steps] == [False, False, True, False]
    assert not any(s.terminated["player"].any() for s in steps)


def test_a_users_payoffs() -> None:
    env = shoal.make("matrix/custom", payoffs=[[1, 2, 3], [4, 5, 6]])
    assert set(env.spec.groups) == {"player_0", "player_1"}  # unlike action counts
    env.reset()
    step = env.step({"player_0": torch.tensor([[1]]), "player_1": torch.tensor([[2]])})
    assert step.reward["player_1"].item() == 6
    three = np.arange(24, dtype=float).reshape(3, 2, 2, 2)
    env = game("custom", payoffs=three)
    assert play(env, (1, 0, 1)).tolist() == [[5, 13, 21]]
    text = game("custom", payoffs="[[[1, 0], [0, 1]], [[0, 2], [2, 0]]]")
    assert play(text, (0, 1)).tolist() == [[0, 2]]


def test_bad_payoffs_and_actions() -> None:
    with pytest.raises(ShoalError, match="needs payoffs"):
        shoal.make("matrix/custom")
    with pytest.raises(ShoalError, match="no table of numbers"):
        shoal.make("matrix/custom", payoffs="[[1, 2], [3]]")
    with pytest.raises(ShoalError, match="of shape"):
        shoal.make("matrix/custom", payoffs=[1, 2])
    env = game("climbing")
    with pytest.raises(ShoalError, match=r"must be 0\.\.2"):
        play(env, (0, 3))


@pytest.mark.parametrize(
    "name", ["climbing", "penalty", "two_step", "prisoners", "matching_pennies", "rock_paper_scissors", "stag_hunt"]
)
def test_contract_and_pictures(name: str) -> None:
    env = game(name)
    shoal.check_env(env, steps=60)
    picture = env.render()  # type: ignore[func-returns-value]
    assert picture.dtype == np.uint8
    assert (picture < 100).any()


def test_independent_learners_find_the_safe_equilibrium_of_penalty() -> None:
    """k = -100: published algorithms end at 2 a step (50 per agent and episode), and so do these."""
    env = shoal.make("matrix/penalty", 4, k=-100.0)
    algorithm = shoal.build("iddpg", env.spec, warmup=200, batch_size=64, update_every=4, lr=3e-3)
    for _ in shoal.train(algorithm, env, 4000):
        pass
    assert shoal.evaluate(algorithm, env, 4).agent_return.mean() >= 50
