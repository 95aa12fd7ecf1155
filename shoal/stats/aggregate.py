"""Scores of many runs as few numbers, and how sure these are.

Agarwal et al. 2021 (arXiv 2108.13264, the package rliable) and Gorsane et al. 2022 (arXiv 2209.10485). Scores are an
array `[run, task]`, an array `[run]` (one task), or a list with an array `[..., run]` for each task, whose numbers of
runs may differ. Leading axes are computed side by side: points of a curve, resamples of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shoal.types import ShoalError

Array = NDArray[np.float64]
Scores = ArrayLike | Sequence[ArrayLike]
Statistic = Callable[[list[Array]], Array]
Interval = tuple[Array, Array]

RESAMPLES = 50_000  # of a figure, as in rliable
CURVE_RESAMPLES = 2000  # of each point of a curve, and of the probability of improvement


def by_task(scores: Scores) -> list[Array]:
    """An array `[..., run]` for each task.

    Raises:
        ShoalError: no runs, an array of more than two axes, or a score that is NaN or infinite.
    """
    if isinstance(scores, list | tuple) and any(np.ndim(task) for task in scores):
        tasks = [np.asarray(task, np.float64) for task in scores]
    else:
        array = np.asarray(scores, np.float64)
        if array.ndim not in (1, 2):
            raise ShoalError(f"scores are an array [run, task] or [run], not one with {array.ndim} axes")
        tasks = [array] if array.ndim == 1 else list(array.T)
    if not tasks or any(task.ndim == 0 or task.shape[-1] == 0 for task in tasks):
        raise ShoalError("scores of at least one run are needed for every task")
    if not all(np.isfinite(task).all() for task in tasks):
        raise ShoalError("a score is NaN or infinite")
    return tasks


def mean(scores: Scores) -> Array:
    """Mean over tasks of the mean over runs."""
    return _stacked(by_task(scores)).mean(-1)  # type: ignore[no-any-return]


def median(scores: Scores) -> Array:
    """Median over tasks of the mean over runs (rliable's `aggregate_median`); of one task, the median of its runs."""
    tasks = by_task(scores)
    return np.asarray(np.median(tasks[0] if len(tasks) == 1 else _stacked(tasks), axis=-1))


def iqm(scores: Scores) -> Array:
    """Interquartile mean: of all runs of all tasks, without the lowest and the highest quarter.

    floor(n / 4) of the n scores are cut off at either end and the others count in full, as in `scipy.stats.trim_mean(x,
    0.25)`, which rliable calls.
    """
    pooled = np.sort(np.concatenate(by_task(scores), axis=-1), axis=-1)
    cut = pooled.shape[-1] // 4
    return np.asarray(pooled[..., cut : pooled.shape[-1] - cut].mean(-1))


def optimality_gap(scores: Scores, target: float = 1.0) -> Array:
    """By how much runs fall short of `target`, in the mean; what is above it does not make up for others."""
    return _stacked([target - np.minimum(task, target) for task in by_task(scores)]).mean(-1)  # type: ignore[no-any-return]


def _stacked(tasks: list[Array]) -> Array:
    """Means over runs `[..., task]`."""
    return np.stack([task.mean(-1) for task in tasks], axis=-1)


STATISTICS: dict[str, Statistic] = {"iqm": iqm, "median": median, "mean": mean, "optimality_gap": optimality_gap}


def bootstrap(
    scores: Scores, statistic: Statistic = iqm, *, resamples: int = RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Stratified percentile bootstrap: lower and upper ends of the interval, each `[...]`.

    Runs are drawn with replacement within each task, independently of the other tasks; the interval's ends are
    quantiles of the statistic over such resamples (Agarwal et al. 2021, section 4.1; Efron & Tibshirani 1993). Points
    of a curve share their resamples: a run is drawn whole.
    """
    draw = np.random.default_rng(seed)
    tasks = by_task(scores)
    return _quantiles(statistic([_resampled(task, draw, resamples) for task in tasks]), confidence)


def _resampled(task: Array, draw: np.random.Generator, resamples: int) -> Array:
    """`[..., run]` to `[..., resample, run]`."""
    runs = task.shape[-1]
    return task[..., draw.integers(runs, size=(resamples, runs))]


def _quantiles(values: Array, confidence: float) -> Interval:
    """Over the last axis."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=-1)
    return low, high


def describe(values: Array) -> dict[str, Any]:
    """Mean, standard deviation and the bootstrap interval of the mean, of one sample `[n]`; ready for JSON."""
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    low, high = bootstrap(values, mean, resamples=2000)
    return {"mean": float(values.mean()), "std": std, "ci95": [float(low), float(high)]}


def probability_of_improvement(x: Scores, y: Scores) -> float:
    """Probability that a run of X scores above a run of Y on the same task, averaged over tasks.

    P(X > Y) = 1/K sum_k 1/(N M) sum_ij [x_ik > y_jk] + [x_ik = y_jk] / 2: the Mann-Whitney U statistic over N M, ties
    counted half (Agarwal et al. 2021, section 4.3).
    """
    return float(np.mean([wins.mean() for wins in _wins(x, y)]))


def improvement_interval(
    x: Scores, y: Scores, *, resamples: int = CURVE_RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Stratified percentile bootstrap of `probability_of_improvement`; runs of X and of Y are drawn independently."""
    draw = np.random.default_rng(seed)
    total = np.zeros(resamples)
    pairs = _wins(x, y)
    for wins in pairs:
        rows, columns = (draw.integers(n, size=(resamples, n)) for n in wins.shape)
        total += wins[rows[:, :, None], columns[:, None, :]].mean((1, 2))
    low, high = _quantiles(total / len(pairs), confidence)
    return float(low), float(high)


def _wins(x: Scores, y: Scores) -> list[Array]:
    """For each task `[run of X, run of Y]`: 1 where X is above, 1/2 where equal."""
    ours, theirs = by_task(x), by_task(y)
    if len(ours) != len(theirs):
        raise ShoalError(f"the same tasks are needed on both sides, not {len(ours)} and {len(theirs)}")
    pairs = [(a[:, None], b[None, :]) for a, b in zip(ours, theirs, strict=True)]
    return [(a > b) + 0.5 * (a == b) for a, b in pairs]


def performance_profile(scores: Scores, taus: ArrayLike) -> Array:
    """Share of runs that score above each tau, `[tau]`: mean over tasks (Agarwal et al. 2021, section 4.2)."""
    return mean(_above(by_task(scores), np.asarray(taus, np.float64)))


def profile_band(
    scores: Scores, taus: ArrayLike, *, resamples: int = CURVE_RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Pointwise stratified bootstrap band of `performance_profile`, two arrays `[tau]`."""
    above = _above(by_task(scores), np.asarray(taus, np.float64))
    return bootstrap(above, mean, resamples=resamples, confidence=confidence, seed=seed)


def _above(tasks: list[Array], taus: Array) -> list[Array]:
    """`[tau, run]` for each task: 1.0 where a run is above tau."""
    return [(task[None, :] > taus[:, None]).astype(np.float64) for task in tasks]


Curve = tuple[ArrayLike, ArrayLike]


def on_grid(curves: Sequence[Curve], grid: ArrayLike) -> Array:
    """Curves (x, y) of one task's runs on a common grid, `[point, run]`; straight lines between what was measured.

    Raises:
        ShoalError: the grid reaches beyond a curve: nothing is extrapolated.
    """
    points = np.asarray(grid, np.float64)
    for x, _ in curves:
        x = np.asarray(x, np.float64)
        if x[0] > points[0] + 1e-9 or x[-1] < points[-1] - 1e-9:
            raise ShoalError(f"a curve from {x[0]:g} to {x[-1]:g} says nothing on [{points[0]:g}, {points[-1]:g}]")
    return np.stack([np.interp(points, x, y) for x, y in curves], axis=-1)  # type: ignore[arg-type]


def common_grid(curves: Sequence[Curve], points: int = 101) -> Array:
    """Evenly spaced x over the range that all curves cover.

    Raises:
        ShoalError: there is none.
    """
    low, high = _range(curves)
    if low > high:
        raise ShoalError("the curves have no range in common")
    return np.linspace(low, high, points if high > low else 1)


def overlap(curves: Sequence[Curve]) -> bool:
    """Whether there is an x that all curves cover."""
    low, high = _range(curves)
    return low <= high


def _range(curves: Sequence[Curve]) -> tuple[float, float]:
    return max(float(np.asarray(x)[0]) for x, _ in curves), min(float(np.asarray(x)[-1]) for x, _ in curves)


def sample_efficiency(
    tasks: Sequence[Sequence[Curve]], grid: ArrayLike, statistic: Statistic = iqm, *, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Score against steps or seconds: the statistic over runs and tasks at every point, and its band; each `[point]`.

    Args:
        tasks: for each task the curves (x, y) of its runs.
        grid: x of the points.
    """
    scores = [on_grid(curves, grid) for curves in tasks]
    low, high = bootstrap(scores, statistic, resamples=CURVE_RESAMPLES, seed=seed)
    return statistic(scores), low, high


def normalise(scores: ArrayLike, low: float, high: float) -> Array:
    """(score - low) / (high - low): 0 is what the lower reference earns, 1 what the upper one does.

    Raises:
        ShoalError: the references are equal or the wrong way round.
    """
    if not high > low:
        raise ShoalError(f"the upper reference ({high:g}) must be above the lower one ({low:g})")
    return (np.asarray(scores, np.float64) - low) / (high - low)
