"""Does an environment keep its promises? What was looked at, what is wrong, where, how often, and how to mend it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from shoal import actions, tree
from shoal.envs.common.serial import (
    LATE_MASK,
    Form,
    Outcome,
    Shown,
    Turns,
    adapters_of,
    expect_masks,
    form_of,
    started,
)
from shoal.envs.common.spaces import MASK, AgentAdapter, Misfit
from shoal.types import Discrete, EnvSpec, Groups, ShoalError, Step, VecEnv, View

INTERFACE = "what methods return"
SPACES = "spaces"
FITS = "observations: shape, finite"
BOUNDS = "observations: bounds"
MASKS = "masks"
REWARDS = "rewards: finite"
CREDIT = "rewards: as last() says"
LEAVING = "agents that leave"
COPIES = "arrays stay as returned"
SEEDS = "reset(seed) repeats itself"
TENSORS = "tensors: shape, type, finite"
SUCCESSORS = "successors of last steps"
PARALLEL = (INTERFACE, SPACES, FITS, BOUNDS, MASKS, REWARDS, LEAVING, COPIES, SEEDS)
TURN_BASED = (INTERFACE, SPACES, FITS, BOUNDS, MASKS, REWARDS, CREDIT, LEAVING, COPIES, SEEDS)
BATCHED = (INTERFACE, TENSORS, MASKS, SUCCESSORS)


@dataclass(frozen=True)
class Problem:
    """One broken promise."""

    what: str
    """What was seen, and where, the first time."""
    fix: str
    harmless: bool = False
    """Whether shoal copes with it (other libraries may not)."""
    times: int = 1

    def __str__(self) -> str:
        often = f" ({self.times} times)" if self.times > 1 else ""
        return f"{self.what}{often}. {self.fix}" if self.fix else f"{self.what}{often}"


@dataclass
class Promise:
    """What was looked at, how often, and what broke it: one problem of each kind, the first."""

    what: str
    looked: int = 0
    problems: list[Problem] = field(default_factory=list)


class Notes:
    """What is found on the way."""

    def __init__(self, promises: tuple[str, ...]) -> None:
        self.promises = {what: Promise(what) for what in promises}
        self.looking_at = promises[0]

    def look(self, promise: str) -> None:
        self.looking_at = promise
        self.promises[promise].looked += 1

    def broken(self, what: str, fix: str, harmless: bool = False) -> None:
        """The promise that was last looked at does not hold. The same remedy is the same kind of problem."""
        found = self.promises[self.looking_at].problems
        for k, known in enumerate(found):
            if known.fix == fix:
                found[k] = Problem(known.what, fix, known.harmless, known.times + 1)
                return
        found.append(Problem(what, fix, harmless))


def check_env(env: Any, steps: int = 300, seed: int = 0) -> None:
    """Play random actions in a PettingZoo `ParallelEnv` or `AECEnv` or a `VecEnv` and hold it to its contract.

    Raises:
        ShoalError: with every problem found, and how to mend it.
    """
    found = problems(env, steps, seed)
    if found:
        raise ShoalError("the environment breaks its contract:\n" + "\n".join(f"  - {problem}" for problem in found))


def problems(env: Any, steps: int = 300, seed: int = 0) -> list[Problem]:
    """As `check_env`, without raising."""
    return [problem for promise in examine(env, steps, seed) for problem in promise.problems]


def examine(env: Any, steps: int = 300, seed: int = 0) -> list[Promise]:
    """All that was looked at in `steps` random steps, and what was found. What cannot go on ends it early."""
    batched = isinstance(env, VecEnv)
    notes = Notes(BATCHED if batched else TURN_BASED if hasattr(env, "agent_iter") else PARALLEL)
    notes.look(INTERFACE)
    try:
        if batched:
            _check_batch(env, steps, seed, notes)
        elif not hasattr(env, "step") or not hasattr(env, "possible_agents"):
            what = f"{type(env).__name__} is no ParallelEnv or AECEnv: it has no possible_agents or no step()"
            notes.broken(what, "Return a PettingZoo environment")
        else:
            _Inspection(env, notes, seed).run(steps)
    except Misfit as error:
        notes.broken(error.what, error.fix)
    except ShoalError as error:
        notes.broken(str(error), "")
    except Exception as error:  # whatever else a user's environment does
        notes.looking_at = INTERFACE
        notes.broken(f"it raised {type(error).__name__}: {error}", f"Look at {_where(error)}")
    return list(notes.promises.values())


def _where(error: Exception) -> str:
    """The last line outside shoal that `error` came through."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not Path(frame.filename).is_relative_to(Path(__file__).parents[1])]
    if not theirs:
        return "what the method that was called last returned"
    return f"line {theirs[-1].lineno} of {theirs[-1].filename}, in {theirs[-1].name}()"


class _Inspection:
    """Random play in one PettingZoo environment."""

    def __init__(self, env: Any, notes: Notes, seed: int) -> None:
        self.env, self.notes, self.seed = env, notes, seed
        self.random = np.random.default_rng(seed)
        self.form: Form = form_of(env)
        notes.look(SPACES)
        self.adapters: dict[str, AgentAdapter] = adapters_of(env)
        expect_masks(self.adapters, self._reset(seed))

    def run(self, steps: int) -> None:
        self._repeatable()
        shown = self._reset(None)
        self._shown(shown, "reset")
        kept = self._copies(shown)
        owed = dict.fromkeys(self.adapters, 0.0)
        for number in range(1, steps + 1):
            place = f"step {number}"
            given = {agent: self._action(agent, shown) for agent in self.form.acting()}
            outcome = self._step(given, owed, place)
            self._unchanged(shown, kept, place)
            shown = outcome.successor
            self._shown(shown if outcome.staying else shown._replace(turn=()), place)
            if outcome.staying:
                shown = outcome.view
            else:
                shown = self._reset(None)
                self._shown(shown, "reset")
                owed = dict.fromkeys(self.adapters, 0.0)
            kept = self._copies(shown)

    def _reset(self, seed: int | None) -> Shown:
        notes = self.notes
        notes.look(INTERFACE)
        if isinstance(self.form, Turns):
            shown = self.form.reset(seed)
            for name in ("rewards", "terminations", "truncations", "infos"):
                missing = [a for a in shown.observations if a not in getattr(self.env, name)]
                if missing:
                    notes.broken(f"after reset {name} has no {missing[0]}", f"Give {name} an entry for every agent")
            return shown
        result = started(self.env.reset(seed=seed) if seed is not None else self.env.reset())
        for agent in self.env.agents:
            if agent not in result[0]:
                raise Misfit(f"reset() returned no observation of {agent}", "Every agent in `agents` needs an entry")
        return Shown(result[0], result[1], list(self.env.agents))

    def _step(self, given: dict[str, Any], owed: dict[str, float], place: str) -> Outcome:
        notes = self.notes
        notes.look(INTERFACE)
        if isinstance(self.form, Turns):
            outcome = self._turn(self.form, given, owed, place)
            here = list(outcome.rewards)
        else:
            outcome, here = self._round(given, place), list(given)
        for agent in here:
            notes.look(REWARDS)
            reward = outcome.rewards[agent]
            try:
                finite = math.isfinite(float(reward))
            except (TypeError, ValueError):
                raise Misfit(f"{place}: the reward of {agent} is {reward!r}", "Return a number") from None
            if not finite:
                notes.broken(f"{place}: the reward of {agent} is {reward}", "Return a finite number")
        return outcome

    def _turn(self, form: Turns, given: dict[str, Any], owed: dict[str, float], place: str) -> Outcome:
        """A turn of an `AECEnv`; `owed` is what each agent has earned since it last acted."""
        (agent,) = given
        here = form.here()
        owed[agent] = 0.0
        try:
            outcome = form.step(given)
        except Misfit as error:
            raise Misfit(f"{place}: {error.what}", error.fix) from error
        for name in here:
            if name not in outcome.rewards:
                raise Misfit(f"{place}: no reward of {name}, who has not left", "Every agent needs an entry in rewards")
            owed[name] += float(outcome.rewards[name])
        self._left(here, outcome, place)
        if outcome.staying:
            self.notes.look(CREDIT)
            selected = form.acting()[0]
            told = float(self.env.last(observe=False)[1])
            if not math.isclose(told, owed[selected], rel_tol=1e-5, abs_tol=1e-6):
                self.notes.broken(
                    f"{place}: last() says that {selected} earned {told:g} since its last turn, "
                    f"`rewards` said {owed[selected]:g}",
                    "shoal reads `rewards` after every turn: call _clear_rewards() when a turn begins, "
                    "_accumulate_rewards() when it ends, and set _cumulative_rewards of who acts to 0",
                    harmless=True,
                )
        return outcome

    def _left(self, here: list[str], outcome: Outcome, place: str) -> None:
        self.notes.look(LEAVING)
        for agent in outcome.staying:
            if agent not in here:
                self.notes.broken(
                    f"{place}: {agent} joined in the middle of an episode",
                    "Agents may leave and not join: let it wait from the start",
                )

    def _round(self, given: dict[str, Any], place: str) -> Outcome:
        """A step of a `ParallelEnv`."""
        notes = self.notes
        result = self.env.step(given)
        if not isinstance(result, tuple) or len(result) != 5 or not all(isinstance(x, Mapping) for x in result):
            raise Misfit(
                "step() must return (observations, rewards, terminations, truncations, infos)",
                "Return five dicts; older interfaces returned four",
            )
        observations, rewards, terminations, truncations, infos = result
        for agent in given:
            for what, values in (("reward", rewards), ("termination", terminations), ("truncation", truncations)):
                if agent not in values:
                    raise Misfit(f"{place}: no {what} of {agent}, who acted", "Everybody who acted needs an entry")
            if agent not in observations and (agent in self.env.agents or not terminations[agent]):
                raise Misfit(
                    f"{place}: no observation of {agent}, who is still there or was truncated",
                    "Every agent that acted needs one",
                )
        notes.look(LEAVING)
        over = {agent for agent in given if terminations[agent] or truncations[agent]}
        for agent in over.intersection(self.env.agents):
            notes.broken(
                f"{place}: {agent} is terminated or truncated but still in `agents`", "Remove it from `agents`", True
            )
        for agent in [agent for agent in given if agent not in over and agent not in self.env.agents]:
            notes.broken(
                f"{place}: {agent} is neither terminated nor truncated and has left `agents`",
                "Set one of the two, or keep it: shoal takes it for a time limit",
                harmless=True,
            )
        staying = [agent for agent in self.env.agents if agent not in over]
        terminated = [agent for agent in given if terminations[agent]]
        successor = Shown(observations, infos, staying)
        view = Shown({a: observations[a] for a in staying if a in observations}, infos, staying)
        outcome = Outcome({a: rewards[a] for a in given}, terminated, successor, view, staying)
        self._left(list(given), outcome, place)
        return outcome

    def _shown(self, shown: Shown, place: str) -> None:
        """Hold what is shown to its spaces."""
        notes = self.notes
        for agent, value in shown.observations.items():
            if value is None and isinstance(self.form, Turns):
                continue
            if agent not in self.adapters:
                notes.look(INTERFACE)
                raise Misfit(f"{place}: {agent} is not one of possible_agents", "List everybody who will ever play")
            adapter = self.adapters[agent]
            notes.look(FITS)
            try:
                adapter.read(value)
            except Misfit as error:
                notes.broken(f"{place}: {error.what}", error.fix)
                continue
            if isinstance(adapter.space, spaces.Box):
                notes.look(BOUNDS)
                raw = np.asarray(adapter.plain(value))
                if (raw < adapter.space.low).any() or (raw > adapter.space.high).any():
                    notes.broken(
                        f"{place}: the observation of {agent} is outside its space",
                        "Widen the space's low and high, or scale the observation",
                        harmless=True,
                    )
        for agent in shown.turn:
            adapter, info = self.adapters[agent], shown.infos.get(agent)
            if agent not in shown.observations or not isinstance(adapter.action, Discrete):
                continue
            if not adapter.masked:
                if info and MASK in info:
                    notes.look(MASKS)
                    notes.broken(f"{place}: info of {agent} has an {MASK}, and that of reset() had none", LATE_MASK)
                continue
            notes.look(MASKS)
            mask = adapter.read_mask(shown.observations[agent], info, strict=True)
            if mask is not None and not mask.any():
                notes.broken(
                    f"{place}: the action mask of {agent} allows nothing", "Leave at least one action to who acts next"
                )

    def _action(self, agent: str, shown: Shown) -> Any:
        adapter = self.adapters[agent]
        if not isinstance(adapter.action, Discrete):
            return adapter.write(self.random.uniform(-1, 1, adapter.action.size))
        mask = adapter.read_mask(shown.observations.get(agent, {}), shown.infos.get(agent)) if adapter.masked else None
        legal = np.arange(adapter.action.size) if mask is None or not mask.any() else np.flatnonzero(mask)
        return adapter.write(self.random.choice(legal))

    def _copies(self, shown: Shown) -> dict[str, Any]:
        plain = {a: self.adapters[a].plain(o) for a, o in shown.observations.items() if o is not None}
        return {agent: np.array(value) for agent, value in plain.items() if isinstance(value, np.ndarray)}

    def _unchanged(self, shown: Shown, kept: dict[str, Any], place: str) -> None:
        for agent, copy in kept.items():
            self.notes.look(COPIES)
            if not np.array_equal(self.adapters[agent].plain(shown.observations[agent]), copy, equal_nan=True):
                self.notes.broken(
                    f"{place}: the observation array of {agent} that was returned before has changed",
                    "The environment goes on writing to an array it returned, so a stored observation becomes its "
                    "own successor: return a copy",
                    harmless=True,
                )

    def _repeatable(self) -> None:
        one, two = (self._copies(self._reset(self.seed)) for _ in range(2))
        self.notes.look(SEEDS)
        for agent, obs in one.items():
            if not (agent in two and np.array_equal(obs, two[agent], equal_nan=obs.dtype.kind == "f")):
                self.notes.broken(
                    f"reset(seed={self.seed}) twice gave {agent} two different observations",
                    "Draw from a generator that reset(seed=...) seeds; a run cannot be repeated or resumed exactly",
                    harmless=True,
                )


def _check_batch(env: VecEnv, steps: int, seed: int, notes: Notes) -> None:
    generator = torch.Generator().manual_seed(seed)
    view = env.reset(seed)
    _check_view(view, env, "reset", notes)
    moved = same_at_end = different_at_end = 0
    for number in range(1, steps + 1):
        chosen: Groups = {
            name: actions.random(group.action, view.legal[name], generator) for name, group in env.spec.groups.items()
        }
        before = tree.map(torch.clone, view)
        notes.look(INTERFACE)
        step = env.step(chosen)
        _check_step(step, env, f"step {number}", notes)
        notes.look(SUCCESSORS)
        for name in env.spec.groups:
            after, shown, old = (v.obs[name] for v in (step.successor, step.view, before))
            moved += int((after != old).any())
            for row in step.ended.nonzero().flatten().tolist():
                equal = torch.equal(after[row], shown[row])
                same_at_end, different_at_end = same_at_end + equal, different_at_end + (not equal)
            differs = (after != shown).flatten(2).any(2) & (shown != 0).flatten(2).any(2)  # zeros: the agent has left
            if differs[~step.ended].any():
                raise Misfit(
                    f"step {number}: view and successor differ for {name} where no episode ended",
                    "Within an episode they are the same moment",
                )
        view = step.view
    if moved and same_at_end and not different_at_end:
        notes.broken(
            "at every episode's end the successor is the next episode's first observation",
            "Keep the true last observation in `successor`, and only reset `view`",
        )


def _check_view(view: View, env: VecEnv, place: str, notes: Notes) -> None:
    spec: EnvSpec = env.spec
    notes.look(TENSORS)
    for name, group in spec.groups.items():
        shape = (env.num_envs, group.num_agents)
        seen, choices = (*shape, *group.obs_shape), (*shape, group.action.size if group.masked else 0)
        _check_tensor(view.obs[name], seen, f"{place}: obs of {name}", torch.uint8 if group.image else torch.float32)
        _check_tensor(view.legal[name], choices, f"{place}: legal of {name}", torch.bool)
    _check_tensor(view.state, (env.num_envs, spec.state_size), f"{place}: state")
    for name, group in spec.groups.items():
        if group.masked:
            notes.look(MASKS)
            if not view.legal[name].any(-1).all():
                fix = "Leave at least one action to everybody; who waits, or has left, has one that does nothing"
                raise Misfit(f"{place}: legal of {name} allows an agent nothing", fix)


def _check_step(step: Step, env: VecEnv, place: str, notes: Notes) -> None:
    _check_view(step.view, env, place, notes)
    _check_view(step.successor, env, place + " (successor)", notes)
    notes.look(TENSORS)
    for name, group in env.spec.groups.items():
        shape = (env.num_envs, group.num_agents)
        for what in ("reward", "terminated", "alive"):
            dtype = torch.float32 if what == "reward" else torch.bool
            _check_tensor(getattr(step, what)[name], shape, f"{place}: {what} of {name}", dtype)
    _check_tensor(step.ended, (env.num_envs,), f"{place}: ended", torch.bool)


def _check_tensor(tensor: torch.Tensor, shape: tuple[int, ...], place: str, dtype: torch.dtype = torch.float32) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise Misfit(f"{place} is a {type(tensor).__name__}; a tensor is needed", "Convert it")
    if tensor.dtype != dtype:
        raise Misfit(f"{place} is {tensor.dtype}; {dtype} is needed", "Convert it")
    if tuple(tensor.shape) != shape:
        raise Misfit(f"{place} has shape {list(tensor.shape)}; {list(shape)} is needed", "Make `spec` and it agree")
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise Misfit(f"{place} holds NaN or infinity", "Find the division or the overflow behind it")
