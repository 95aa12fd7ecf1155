"""What 0 and 1 are in a normalised score: references by name."""

from __future__ import annotations

from dataclasses import dataclass

from shoal import registry
from shoal.evaluate import evaluate
from shoal.stats.published import lookup
from shoal.stats.runs import Comparison, RunResult
from shoal.teams.scripted import SCRIPTS, Scripted
from shoal.types import ShoalError, nearest

EPISODES = 320
SEED = 2_000_000  # of the starts that scripts play from


@dataclass(frozen=True)
class Reference:
    """The scores that become 0 and 1, and what they are."""

    low: float
    high: float
    words: str


def references(comparison: Comparison, low: str = "", high: str = "") -> dict[str, Reference]:
    """For every task; of a single task none unless asked for: its own unit says more.

    Where there cannot be any and none were asked for, a note of the comparison says so.

    Args:
        low: what is 0: a script that plays (`random`, `still`, `greedy`, ...) or a number; empty: `random`.
        high: what is 1: a script, `published` (the best published mean), `best` (the best run here) or a number; empty:
            `best`.

    Raises:
        ShoalError: those asked for are unknown, or not one above the other.
    """
    if low or high:
        return _references(comparison, low, high)
    if len(comparison.tasks) == 1:
        return {}
    try:
        return _references(comparison, low, high)
    except ShoalError as error:
        comparison.notes.append(f"scores are not normalised: {error}")
        return {}


def _references(comparison: Comparison, low: str, high: str) -> dict[str, Reference]:
    found = {}
    for task in comparison.tasks:
        names = low or "random", high or "best"
        bottom, top = (_value(comparison, task, name) for name in names)
        if not top > bottom:
            raise ShoalError(
                f"{task}: {names[1]} ({top:g}) is not above {names[0]} ({bottom:g}), so scores cannot be normalised "
                "by them: name others with --low and --high"
            )
        found[task] = Reference(bottom, top, f"0: {names[0]} ({bottom:.2f}), 1: {names[1]} ({top:.2f})")
    return found


def _value(comparison: Comparison, task: str, name: str) -> float:
    groups = comparison.tasks[task]
    run = next(iter(groups.values()))[0]
    if name == "best":
        return max(float(comparison.scores(task, label).max()) for label in groups)
    if name == "published":
        known = lookup(run.env, run.env_args, comparison.metric)
        if not known:
            raise ShoalError(f"no published figure for {task} in {comparison.metric}: name another reference")
        return max(figure.value for figure in known)
    if name in SCRIPTS:
        return scripted(run, comparison.metric, name)
    try:
        return float(name)
    except ValueError:
        known_names = [*SCRIPTS, "published", "best", "or a number"]
        raise ShoalError(f"there is no reference {name!r}; {nearest(name, known_names)}") from None


def scripted(run: RunResult, metric: str, script: str) -> float:
    """What a script earns in a run's environment, over `EPISODES` episodes (a tenth where they are slow)."""
    if run.settings.get("opponents"):
        raise ShoalError(f"{run.task}: scripts are not played against opponents; give numbers (--low X --high Y)")
    environment = registry.Environment(run.env, **run.env_args)
    episodes = EPISODES if environment.native else EPISODES // 10
    env = environment.make(episodes if environment.native else 8)
    result = evaluate(Scripted(env.spec, script), env, episodes, SEED)
    env.close()
    return run.value(result.summary(), metric)
