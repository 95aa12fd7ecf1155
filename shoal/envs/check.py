"""Does an environment keep its promises? What is wrong, where, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from shoal import actions, tree
from shoal.envs.pettingzoo import AgentAdapter
from shoal.types import Discrete, EnvSpec, Groups, ShoalError, Step, VecEnv, View


@dataclass(frozen=True)
class Problem:
    """One broken promise."""

    what: str
    """What was seen, and where."""
    fix: str
    harmless: bool = False
    """Whether shoal copes with it (other libraries may not)."""

    def __str__(self) -> str:
        return f"{self.what}. {self.fix}" if self.fix else self.what


def check_env(env: Any, steps: int = 300, seed: int = 0) -> None:
    """Play random actions in a PettingZoo `ParallelEnv` or a `VecEnv` and hold it to its contract.

    Checked: names and spaces, shapes, NaN and infinity, arrays that the environment goes on changing after it returned
    them, repeatability from a seed, agents that leave, and (for a `VecEnv`) that the successor of an episode's last
    step is not the next episode's first observation.

    Raises:
        ShoalError: with every problem found, and how to mend it.
    """
    found = problems(env, steps, seed)
    if found:
        raise ShoalError("the environment breaks its contract:\n" + "\n".join(f"  - {problem}" for problem in found))


def problems(env: Any, steps: int = 300, seed: int = 0) -> list[Problem]:
    """As `check_env`, without raising."""
    try:
        if isinstance(env, VecEnv):
            return _check_vec(env, steps, seed)
        return _ParallelCheck(env).run(steps, seed)
    except ShoalError as error:
        return [Problem(str(error), "")]
    except Exception as error:  # whatever else a user's environment does
        return [Problem(f"it raised {type(error).__name__}: {error}", "Look at the method that was called last")]


class _ParallelCheck:
    def __init__(self, env: Any) -> None:
        agents = getattr(env, "possible_agents", None)
        if not agents or not hasattr(env, "step"):
            raise ShoalError(f"{type(env).__name__} is no ParallelEnv: it has no possible_agents or no step()")
        self.env = env
        self.adapters = {a: AgentAdapter(a, env.observation_space(a), env.action_space(a)) for a in agents}
        self.random = np.random.default_rng(0)
        self.found: dict[str, Problem] = {}

    def note(self, key: str, problem: Problem) -> None:
        self.found.setdefault(key, problem)  # the first of a kind says where; the rest would repeat it

    def run(self, steps: int, seed: int) -> list[Problem]:
        first = self._reset(seed)
        kept = self._copies(first)
        observations, episode_step = first, 0
        for step in range(1, steps + 1):
            place = f"step {step}"
            acting = list(self.env.agents)
            given = {a: self._action(a, observations.get(a)) for a in acting}
            result = self.env.step(given)
            if not isinstance(result, tuple) or len(result) != 5:
                raise ShoalError("step() must return (observations, rewards, terminations, truncations, infos)")
            self._unchanged(observations, kept, place)
            observations = self._checked(result, acting, place)
            kept = self._copies(observations)
            episode_step += 1
            if not self.env.agents or all(result[2][a] or result[3][a] for a in acting):
                observations, episode_step = self._reset(None), 0
                kept = self._copies(observations)
        self._repeatable(seed)
        return list(self.found.values())

    def _reset(self, seed: int | None) -> dict[str, Any]:
        result = self.env.reset(seed=seed) if seed is not None else self.env.reset()
        if not isinstance(result, tuple) or len(result) != 2:
            raise ShoalError("reset() must return (observations, infos)")
        observations: dict[str, Any] = result[0]
        for agent in self.env.agents:
            if agent not in observations:
                raise ShoalError(f"reset() returned no observation of {agent}")
            self._observation(agent, observations[agent], "reset")
        return observations

    def _observation(self, agent: str, value: Any, place: str) -> None:
        if agent not in self.adapters:
            raise ShoalError(f"{place}: {agent} is not one of possible_agents")
        adapter = self.adapters[agent]
        obs, _ = adapter.read(value, place)  # raises for shape, NaN, mask
        box = adapter.space
        if isinstance(box, spaces.Box) and ((obs < box.low).any() or (obs > box.high).any()):
            self.note(
                "bounds",
                Problem(
                    f"{place}: the observation of {agent} is outside its space",
                    "Widen the space's low and high",
                    harmless=True,
                ),
            )

    def _action(self, agent: str, observation: Any) -> Any:
        adapter = self.adapters[agent]
        if adapter.masked and observation is not None:
            legal = np.flatnonzero(observation["action_mask"])
            return int(self.random.choice(legal)) + adapter.offset
        if isinstance(adapter.action, Discrete):
            return int(self.random.integers(adapter.action.size)) + adapter.offset
        return adapter.write(self.random.uniform(-1, 1, adapter.action.size))

    def _checked(self, result: Any, acting: list[str], place: str) -> dict[str, Any]:
        observations, rewards, terminations, truncations, _ = result
        for agent in acting:
            for what, values in (
                ("reward", rewards),
                ("termination", terminations),
                ("truncation", truncations),
            ):
                if agent not in values:
                    raise ShoalError(f"{place}: no {what} of {agent}, who acted")
            if not np.isfinite(float(rewards[agent])):
                raise ShoalError(f"{place}: the reward of {agent} is {rewards[agent]}")
            if agent in observations:
                self._observation(agent, observations[agent], place)
            elif agent in self.env.agents or not terminations[agent]:
                raise ShoalError(f"{place}: no observation of {agent}, who is still there or was truncated")
            if (terminations[agent] or truncations[agent]) and agent in self.env.agents:
                self.note(
                    "stays",
                    Problem(
                        f"{place}: {agent} is terminated or truncated but still in `agents`",
                        "Remove it from `agents`",
                        True,
                    ),
                )
        return observations  # type: ignore[no-any-return]

    @staticmethod
    def _copies(observations: dict[str, Any]) -> dict[str, Any]:
        return {a: np.array(_plain(o)) for a, o in observations.items() if isinstance(_plain(o), np.ndarray)}

    def _unchanged(self, observations: dict[str, Any], kept: dict[str, Any], place: str) -> None:
        for agent, copy in kept.items():
            if not np.array_equal(_plain(observations[agent]), copy, equal_nan=True):
                self.note(
                    "alias",
                    Problem(
                        f"{place}: the observation array of {agent} that was returned before has changed",
                        "The environment goes on writing to an array it returned, so a stored observation becomes "
                        "its own successor: return a copy",
                        harmless=True,
                    ),
                )

    def _repeatable(self, seed: int) -> None:
        one, two = (self._copies(self._reset(seed)) for _ in range(2))
        for agent, obs in one.items():
            if not (agent in two and np.array_equal(obs, two[agent])):
                self.note(
                    "seed",
                    Problem(
                        f"reset(seed={seed}) twice gave {agent} two different observations",
                        "Draw from a generator that reset(seed=...) seeds; a run cannot be repeated or resumed exactly",
                        harmless=True,
                    ),
                )


def _plain(observation: Any) -> Any:
    """What is observed, without an action mask beside it."""
    return observation.get("observation") if isinstance(observation, dict) else observation


def _check_vec(env: VecEnv, steps: int, seed: int) -> list[Problem]:
    generator = torch.Generator().manual_seed(seed)
    view = env.reset(seed)
    _check_view(view, env, "reset")
    moved = same_at_end = different_at_end = 0
    for number in range(1, steps + 1):
        chosen: Groups = {
            name: actions.random(group.action, view.legal[name], generator) for name, group in env.spec.groups.items()
        }
        before = tree.map(torch.clone, view)
        step = env.step(chosen)
        _check_step(step, env, f"step {number}")
        for name in env.spec.groups:
            after, shown, old = (v.obs[name] for v in (step.successor, step.view, before))
            moved += int((after != old).any())
            for row in step.ended.nonzero().flatten().tolist():
                equal = torch.equal(after[row], shown[row])
                same_at_end, different_at_end = same_at_end + equal, different_at_end + (not equal)
            differs = (after != shown).flatten(2).any(2) & (shown != 0).flatten(2).any(2)  # zeros: the agent has left
            if differs[~step.ended].any():
                raise ShoalError(f"step {number}: view and successor differ for {name} where no episode ended")
        view = step.view
    if moved and same_at_end and not different_at_end:
        return [
            Problem(
                "at every episode's end the successor is the next episode's first observation",
                "Keep the true last observation in `successor`, and only reset `view`",
            )
        ]
    return []


def _check_view(view: View, env: VecEnv, place: str) -> None:
    spec: EnvSpec = env.spec
    for name, group in spec.groups.items():
        shape = (env.num_envs, group.num_agents)
        _check_tensor(view.obs[name], (*shape, *group.obs_shape), f"{place}: obs of {name}")
        _check_tensor(
            view.legal[name],
            (*shape, group.action.size if group.masked else 0),
            f"{place}: legal of {name}",
            torch.bool,
        )
    _check_tensor(view.state, (env.num_envs, spec.state_size), f"{place}: state")


def _check_step(step: Step, env: VecEnv, place: str) -> None:
    _check_view(step.view, env, place)
    _check_view(step.successor, env, place + " (successor)")
    for name, group in env.spec.groups.items():
        shape = (env.num_envs, group.num_agents)
        for what in ("reward", "terminated", "alive"):
            dtype = torch.float32 if what == "reward" else torch.bool
            _check_tensor(getattr(step, what)[name], shape, f"{place}: {what} of {name}", dtype)
    _check_tensor(step.ended, (env.num_envs,), f"{place}: ended", torch.bool)


def _check_tensor(tensor: torch.Tensor, shape: tuple[int, ...], place: str, dtype: torch.dtype = torch.float32) -> None:
    if tensor.dtype != dtype:
        raise ShoalError(f"{place} is {tensor.dtype}; {dtype} is needed")
    if tuple(tensor.shape) != shape:
        raise ShoalError(f"{place} has shape {list(tensor.shape)}; {list(shape)} is needed")
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ShoalError(f"{place} holds NaN or infinity")
