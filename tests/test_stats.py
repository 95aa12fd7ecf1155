"""Statistics over runs: against scipy, and against what was worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from shoal.stats import aggregate as a
from shoal.types import ShoalError

RANDOM = np.random.default_rng(7)


def test_the_interquartile_mean_of_known_scores() -> None:
    assert a.iqm([1, 2, 3, 4]) == 2.5
    assert a.iqm([5, 1, 4, 2, 3]) == 3.0  # one is cut off at either end
    assert a.iqm([1, 2, 90]) == 31.0  # none is
    assert a.iqm([[0, 0, 0, 0], [10, 20, 30, 100]]) == 7.5  # two tasks: 0 0 0 0 10 20 30 100 without two at either end


@pytest.mark.parametrize(("runs", "tasks"), [(1, 1), (3, 1), (5, 2), (10, 7), (13, 3)])
def test_statistics_equal_scipys(runs: int, tasks: int) -> None:
    scores = RANDOM.normal(size=(runs, tasks))
    assert a.iqm(scores) == pytest.approx(scipy_stats.trim_mean(scores, 0.25, axis=None), abs=1e-12)
    assert a.mean(scores) == pytest.approx(scores.mean(), abs=1e-12)
    expected = np.median(scores.mean(0)) if tasks > 1 else np.median(scores)
    assert a.median(scores) == pytest.approx(expected, abs=1e-12)
    assert a.optimality_gap(scores, 0.5) == pytest.approx(0.5 - np.minimum(scores, 0.5).mean(), abs=1e-12)


def test_tasks_may_have_different_numbers_of_runs() -> None:
    scores = [[1.0, 3.0], [10.0, 20.0, 30.0]]
    assert a.mean(scores) == 11.0
    assert a.median(scores) == 11.0
    assert a.iqm(scores) == 11.0  # 3, 10, 20 of 1 3 10 20 30
    assert a.optimality_gap(scores, 10.0) == 4.0  # 9 and 7 are missing from the first task's, nothing from the other's


@pytest.mark.parametrize("shape", [(5, 5), (4, 9)])
def test_the_probability_of_improvement_is_mann_whitneys(shape: tuple[int, int]) -> None:
    x, y = RANDOM.integers(6, size=shape[0]), RANDOM.integers(6, size=shape[1])  # with ties
    u = scipy_stats.mannwhitneyu(x, y).statistic
    assert a.probability_of_improvement(x, y) == pytest.approx(u / (len(x) * len(y)), abs=1e-12)
    assert a.probability_of_improvement(x, y) + a.probability_of_improvement(y, x) == pytest.approx(1, abs=1e-12)
    both = a.probability_of_improvement([x, [2.0]], [y, [1.0, 3.0]])
    assert both == pytest.approx((u / (len(x) * len(y)) + 0.5) / 2, abs=1e-12)


def test_the_bootstrap_draws_within_tasks() -> None:
    """Every resample of three runs is equally likely: the interval is a quantile over all 27 of them."""
    task = np.array([0.0, 1.0, 5.0])
    means = np.array([np.mean(draw) for draw in itertools.product(task, repeat=3)])
    low, high = a.bootstrap(task, a.mean, confidence=0.8)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])), abs=1e-9)
    constant = np.stack([np.full(4, 1.0), np.full(4, 100.0)], axis=1)
    assert a.bootstrap(constant, a.mean) == (50.5, 50.5)  # runs of one task never stand for another's


def test_the_bootstrap_agrees_with_scipys() -> None:
    values = RANDOM.gamma(2.0, size=20)
    ours = a.bootstrap(values, a.iqm)
    theirs = scipy_stats.bootstrap(
        (values,), lambda x, axis: scipy_stats.trim_mean(x, 0.25, axis=axis), n_resamples=20_000, method="percentile"
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), rel=0.03)
    assert a.bootstrap(values, a.iqm) == ours  # always the same resamples


def test_an_interval_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).normal(size=(300, 20))
    low, high = a.bootstrap([draws], a.mean, resamples=500)
    assert 0.88 < np.mean((low < 0) & (high > 0)) < 0.97


def test_the_interval_of_an_improvement() -> None:
    assert a.improvement_interval([3.0, 4.0], [1.0, 2.0]) == (1.0, 1.0)
    x, y = RANDOM.normal(0.5, size=30), RANDOM.normal(size=30)
    low, high = a.improvement_interval(x, y)
    assert low < a.probability_of_improvement(x, y) < high
    assert high - low < 0.4
    with pytest.raises(ShoalError, match="same tasks"):
        a.probability_of_improvement([[1.0]], [[1.0], [2.0]])


def test_the_profile_of_known_scores() -> None:
    scores = np.array([[0.0, 1.0], [2.0, 3.0]])
    assert a.performance_profile(scores, [-1, 0, 1, 2.5, 3]).tolist() == [1, 0.75, 0.5, 0.25, 0]
    low, high = a.profile_band(scores, [-1, 1, 3])
    assert (low.tolist(), high.tolist()) == ([1, 0, 0], [1, 1, 0])


def test_curves_meet_on_a_grid() -> None:
    curves = [([0, 10, 20], [0, 10, 20]), ([0, 20], [4, 4]), ([0, 5, 25], [0, 10, 30])]
    grid = a.common_grid(curves, 5)
    assert grid.tolist() == [0, 5, 10, 15, 20]
    assert a.on_grid(curves, grid)[:, 2].tolist() == [0, 10, 15, 20, 25]
    line, low, high = a.sample_efficiency([curves], grid)
    assert line[2] == pytest.approx((10 + 4 + 15) / 3)
    assert ((low <= line) & (line <= high)).all()
    with pytest.raises(ShoalError, match="says nothing on"):
        a.on_grid(curves, [0, 21])


def test_normalised_scores() -> None:
    assert a.normalise([-26, -7, 12], -26, -7).tolist() == [0, 1, 2]
    with pytest.raises(ShoalError, match="must be above"):
        a.normalise([1.0], 2, 2)


def test_wrong_scores_are_refused() -> None:
    for scores, message in (
        ([1.0, np.nan], "NaN"),
        ([], "at least one run"),
        ([[1.0], []], "at least one run"),
        (np.zeros((2, 2, 2)), "3 axes"),
    ):
        with pytest.raises(ShoalError, match=message):
            a.iqm(scores)


def test_tasks_are_resampled_independently() -> None:
    """Two alike tell more than one."""
    task = np.random.default_rng(0).normal(size=30)
    widths = [float(np.subtract(*a.bootstrap([task] * count, a.mean)[::-1])) for count in (1, 2)]
    assert widths[1] == pytest.approx(widths[0] / np.sqrt(2), rel=0.05)


def test_runs_of_both_are_resampled_in_an_improvement() -> None:
    for x, y in (([1.0, 1.0], [0.0, 2.0]), ([0.0, 2.0], [1.0, 1.0])):  # all of the spread is on one side
        assert a.probability_of_improvement(x, y) == 0.5
        assert a.improvement_interval(x, y) == (0.0, 1.0)


def test_deviations_are_of_samples() -> None:
    assert a.describe(np.array([1.0, 3.0]))["std"] == pytest.approx(np.sqrt(2))
