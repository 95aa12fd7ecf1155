"""Pure functions against numbers computed by hand."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from shoal import actions, explore, tree
from shoal.nets.normalise import ValueNorm
from shoal.returns import mean_weights, td_target
from shoal.threads import Crew
from shoal.types import Agents, Batch, Box, Discrete


def test_td_target_stops_at_a_termination_only() -> None:
    reward = torch.tensor([1.0, 1.0, -2.0])
    terminated = torch.tensor([False, True, False])
    target = td_target(reward, terminated, torch.tensor([10.0, 10.0, 4.0]), 0.5)
    assert target.tolist() == [6.0, 1.0, 0.0]


def test_td_target_ignores_what_lies_behind_a_termination() -> None:
    target = td_target(torch.ones(1), torch.tensor([True]), torch.tensor([math.nan]), 0.9)
    assert target.tolist() == [1.0]


def test_mean_weights() -> None:
    weights = mean_weights(torch.tensor([[True, False], [True, True]]))
    assert torch.allclose(weights, torch.tensor([[1.0, 0.0], [1.0, 1.0]]) / 3)
    assert mean_weights(torch.zeros(2, 2, dtype=torch.bool)).sum() == 0


@pytest.mark.parametrize("columns", [(), (0, 1, 1)])
def test_statistics_of_values_are_weighted_running_ones(columns: tuple[int, ...]) -> None:
    """Also of values that are large beside their deviation, whose squares single precision cannot tell apart."""
    norm, generator = ValueNorm(0.9, columns), torch.Generator().manual_seed(0)
    kinds = torch.tensor(columns) if columns else torch.zeros(3, dtype=torch.int64)
    sums = torch.zeros(3, int(kinds.max()) + 1, dtype=torch.float64)  # of weights, values, squares
    for _ in range(30):
        values = 1e5 + 10 * torch.randn(7, 3, generator=generator)
        weights = mean_weights(torch.rand(7, 3, generator=generator) < 0.8)
        norm.update(values, weights)
        w, v = weights.double(), values.double()
        new = torch.stack([w.sum(0), (w * v).sum(0), (w * v * v).sum(0)])
        sums = 0.9 * sums + 0.1 * torch.zeros_like(sums).index_add_(1, kinds, new)
    mean = sums[1] / sums[0]
    std = (sums[2] / sums[0] - mean.square()).sqrt()
    found = norm.scale()
    assert torch.allclose(found[0].double(), mean[kinds] if columns else mean, atol=0.1)
    assert torch.allclose(found[1].double(), std[kinds] if columns else std, rtol=0.01)
    other = ValueNorm(0.9, columns)
    other.follow(norm, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(other.scale(), found, strict=True))


def test_linear_schedule() -> None:
    assert explore.linear(1.0, 0.0, 0.25) == 0.75
    assert explore.linear(1.0, 0.1, 7.0) == pytest.approx(0.1)


def test_gaussian_noise_is_clipped_and_seeded() -> None:
    action = torch.tensor([[0.95, -0.95, 0.0]]).repeat(1000, 1)
    one = explore.gaussian(action, 0.3, torch.Generator().manual_seed(1))
    assert one.abs().max() == 1.0
    assert one[:, 2].std() == pytest.approx(0.3, rel=0.1)
    assert torch.equal(one, explore.gaussian(action, 0.3, torch.Generator().manual_seed(1)))


def test_epsilon_uniform_replaces_whole_actions_of_agents() -> None:
    kept, random = torch.zeros(500, 4, 2), torch.ones(500, 4, 2)
    mixed = explore.epsilon_uniform(kept, random, 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(mixed[..., 0], mixed[..., 1])
    assert mixed.mean().item() == pytest.approx(0.25, abs=0.03)


def test_greedy_takes_the_best_legal_action() -> None:
    output = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    legal = torch.tensor([[True, True, True], [False, False, True]])
    assert actions.greedy(Discrete(3), output, legal).tolist() == [0, 2]
    everything = torch.zeros(2, 0, dtype=torch.bool)
    assert actions.greedy(Discrete(3), output, everything).tolist() == [0, 0]
    assert torch.allclose(actions.greedy(Box(3), output, everything), output.tanh())


def test_random_actions_are_legal_and_use_every_legal_one() -> None:
    legal = torch.tensor([True, False, True]).expand(600, 1, 3)
    drawn = actions.random(Discrete(3), legal, torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {0, 2}
    assert (drawn == 0).float().mean().item() == pytest.approx(0.5, abs=0.08)


def test_gumbel_argmax_samples_the_softmax() -> None:
    logits = torch.tensor([0.0, math.log(3.0)]).expand(20_000, 2)
    noise = actions.gumbel_like(logits, torch.Generator().manual_seed(0))
    assert (logits + noise).argmax(-1).float().mean().item() == pytest.approx(0.75, abs=0.01)


def test_relax_gradient_is_the_softmax_gradient() -> None:
    logits = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    noise, grad = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    hard, soft = actions.relax(logits, noise, 0.7)
    assert torch.equal(hard.sum(-1), torch.ones(7, dtype=torch.float64))
    (expected,) = torch.autograd.grad(soft, logits, grad)
    assert torch.allclose(actions.relax_gradient(soft.detach(), grad, 0.7), expected)


def test_encode() -> None:
    assert actions.encode(Discrete(3), torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    box = torch.tensor([[0.5, -0.5]])
    assert actions.encode(Box(2), box) is box


def test_tree_keeps_structure_and_order() -> None:
    agents = Agents(*[torch.full((2, 3), float(i)) for i in range(10)])
    batch = Batch({"a": agents}, *[torch.zeros(2) for _ in range(5)])
    doubled = tree.map(lambda x: 2 * x, batch)
    assert isinstance(doubled.groups["a"], Agents)
    assert doubled.groups["a"].reward[0, 0] == 8.0
    assert [x[0, 0].item() for x in tree.leaves(batch)[:10]] == list(range(10))
    assert tree.index(batch, 0).groups["a"].obs.shape == (3,)
    assert tree.cat([batch, batch]).groups["a"].obs.shape == (4, 3)
    assert tree.stack([batch, batch]).groups["a"].obs.shape == (2, 2, 3)


def test_a_crew_keeps_the_order_uses_its_threads_and_passes_errors_on() -> None:
    meet = threading.Barrier(3, timeout=10)  # passed only by three threads at once

    def square(x: int) -> int:
        meet.wait()
        return x * x

    crew = Crew(3)
    assert crew.map(square, range(6)) == [0, 1, 4, 9, 16, 25]
    assert Crew(1).map(lambda x: x + 1, [1, 2]) == [2, 3]
    for bad in (0, 1, 5):
        with pytest.raises(ZeroDivisionError):
            crew.map(lambda x, bad=bad: 1 // (x - bad), range(6))
    assert crew.map(lambda x: x, range(50)) == list(range(50))


def test_a_crew_within_a_crew_does_not_wait_for_threads_that_wait_for_it() -> None:
    crew = Crew(2)
    assert crew.map(lambda x: crew.map(lambda y: x * y, range(3)), range(4)) == [[0, x, 2 * x] for x in range(4)]
    meet = threading.Barrier(2, timeout=10)
    crew.map(lambda _: meet.wait(), range(2))  # and both threads share work again afterwards


def test_draws_do_not_depend_on_how_a_tensor_lies_in_memory() -> None:
    by_rows = torch.zeros(6, 3, 4)
    by_columns = torch.zeros(4, 6, 3).movedim(0, -1)
    box = Box(2)
    legal = torch.ones(6, 3, 0, dtype=torch.bool)
    for draw in (
        lambda x, g: actions.gumbel_like(x, g),
        lambda x, g: actions.sample(box, x, legal, g),
        lambda x, g: explore.gaussian(x, 0.3, g),
    ):
        first, second = (draw(x, torch.Generator().manual_seed(0)) for x in (by_rows, by_columns))
        assert torch.equal(first, second)
