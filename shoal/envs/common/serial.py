"""PettingZoo environments, parallel or turn-based, as one batch: stepped one after the other in this process.

A row is a step of all agents, or one turn of one agent. In a turn-based game everybody is shown what `observe` gives
them at every turn; whoever waits has one legal action, which nothing reads, is not `alive`, and is paid what the turn
pays. So the loser's -1 stands in the row of the winner's move, and values carry it back to the move that allowed it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.envs.common.spaces import MASK, AgentAdapter, Misfit, group_agents
from shoal.types import Discrete, EnvSpec, Groups, ShoalError, Step, Tree, View

MAX_STATE = 65_536
"""Numbers in a global state; what has more is a picture for people, and left out."""

LATE_MASK = "Give one in every info, that of reset() too: it says that actions are masked"

Factory = Callable[[], Any]
Row = dict[str, NDArray[Any]]
"""One environment's actions, `[agent, ...]` per group."""


class Shown(NamedTuple):
    """What one environment shows at one instant."""

    observations: dict[str, Any]
    """Of everybody who has something to see; absent or None: nothing."""
    infos: dict[str, Any]
    turn: Collection[str]
    """Who acts next."""


class Outcome(NamedTuple):
    """What one step of one environment led to."""

    rewards: dict[str, Any]
    terminated: Collection[str]
    """Who has terminated in this step."""
    successor: Shown
    view: Shown
    """What those who stay act on: the same object where nobody has left."""
    staying: Collection[str]


class Form(Protocol):
    """How an environment is played: all agents at once, or in turns."""

    def reset(self, seed: int | None) -> Shown: ...

    def here(self) -> list[str]:
        """Who has not left."""
        ...

    def acting(self) -> list[str]:
        """Who acts in the next step."""
        ...

    def step(self, given: dict[str, Any]) -> Outcome: ...


def started(result: Any) -> tuple[Any, Any]:
    """What a `ParallelEnv`'s `reset` returned, if it is what it should be."""
    if not isinstance(result, tuple) or len(result) != 2 or not all(isinstance(part, Mapping) for part in result):
        raise Misfit("reset() must return (observations, infos)", "Return two dicts; older interfaces returned one")
    return result


class Rounds:
    """A `ParallelEnv`: everybody acts in every step."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def reset(self, seed: int | None) -> Shown:
        return Shown(*started(self.env.reset(seed=seed)), list(self.env.agents))

    def here(self) -> list[str]:
        return list(self.env.agents)

    acting = here

    def step(self, given: dict[str, Any]) -> Outcome:
        observations, rewards, terminations, truncations, infos = self.env.step(given)
        terminated = {agent for agent in given if terminations[agent]}
        left = {agent for agent in given if agent in terminated or truncations[agent]}
        staying = [agent for agent in self.env.agents if agent not in left]
        for agent in given:
            if agent not in observations and agent not in terminated:
                raise ShoalError(f"no observation of {agent}, who is still there or was truncated")
        successor = Shown({a: observations[a] for a in given if a in observations}, infos, given.keys())
        view = successor
        if len(staying) < len(given):
            view = Shown({a: observations[a] for a in staying}, infos, staying)
        return Outcome(rewards, terminated, successor, view, staying)


class Turns:
    """An `AECEnv`: one agent acts in a step.

    An agent leaves when the environment asks for its last, empty step. Until then it may be paid for what others do.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.agents: list[str] = []
        self.selected = ""  # wrappers take their time to say who: asked once a turn

    def reset(self, seed: int | None) -> Shown:
        self.env.reset(seed=seed)
        return self._look()

    def here(self) -> list[str]:
        return self.agents

    def acting(self) -> list[str]:
        return [self.selected]

    def step(self, given: dict[str, Any]) -> Outcome:
        env, before = self.env, self.agents
        env.step(given[self.selected])
        rewards, terminations, truncations = dict(env.rewards), env.terminations, env.truncations
        over = [agent for agent in before if terminations.get(agent) or truncations.get(agent)]
        if not over and len(env.agents) == len(before):
            shown = self._look()
            return Outcome(rewards, (), shown, shown, before)
        terminated = {agent for agent in over if terminations.get(agent)}
        turn, infos = env.agent_selection, dict(env.infos)
        last = {agent: self._observe(agent, agent not in terminated) for agent in over if agent in env.agents}
        self._bury()
        view = self._look() if env.agents else Shown({}, {}, ())
        staying = view.observations.keys()
        left = {agent: last.get(agent) for agent in before if agent not in staying}
        successor = Shown({**left, **view.observations}, {**infos, **view.infos}, view.turn or (turn,))
        return Outcome(rewards, terminated & left.keys(), successor, view if left else successor, staying)

    def _bury(self) -> None:
        """Take the empty steps of agents that are out of the game, for as long as it is their turn."""
        env = self.env
        while env.agents and (env.terminations.get(env.agent_selection) or env.truncations.get(env.agent_selection)):
            agent = env.agent_selection
            env.step(None)
            if agent in env.agents:
                raise Misfit(
                    f"{agent} is out of the game, and step(None) does not remove it from `agents`",
                    "Begin step() with _was_dead_step(action) where the agent is terminated or truncated",
                )

    def _look(self) -> Shown:
        self.agents, self.selected = list(self.env.agents), self.env.agent_selection
        shown = {agent: self._observe(agent, agent == self.selected) for agent in self.agents}
        return Shown(shown, self.env.infos, (self.selected,))

    def _observe(self, agent: str, needed: bool) -> Any:
        try:
            value = self.env.observe(agent)
        except Exception:  # a game need not show anything to those who wait
            if needed:
                raise
            return None
        if value is None and needed:
            raise Misfit(
                f"observe({agent!r}) shows nothing, and it is its turn, or it was truncated",
                "Show something to whoever acts, and what was last to be seen to whoever is cut off",
            )
        return value


class Canvas:
    """A view of all environments, and the same memory as arrays, whose single rows are written faster."""

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        obs, legal = {}, {}
        for name, g in spec.groups.items():
            dtype = torch.uint8 if g.image else torch.float32
            obs[name] = torch.zeros(num_envs, g.num_agents, *g.obs_shape, dtype=dtype)
            legal[name] = torch.zeros(num_envs, g.num_agents, g.action.size if g.masked else 0, dtype=torch.bool)
        self.view = View(obs, legal, torch.zeros(num_envs, spec.state_size))
        self.obs = {name: x.numpy() for name, x in obs.items()}
        self.legal = {name: x.numpy() for name, x in legal.items() if spec.groups[name].masked}
        self.state = self.view.state.numpy()

    def copy_row(self, index: int, other: Canvas) -> None:
        for name, obs in other.obs.items():
            self.obs[name][index] = obs[index]
        for name, legal in other.legal.items():
            self.legal[name][index] = legal[index]
        self.state[index] = other.state[index]


class SerialEnvs:
    """`num_envs` environments of a factory that makes a `ParallelEnv` or an `AECEnv`; satisfies `VecEnv`.

    Episode k of environment i (counted from `first`) starts from a seed derived from (seed, i, k). A checkpoint holds
    those numbers and the actions since, from which a deterministic environment is brought back to where it was.

    Args:
        factory: makes one environment.
        num_envs: how many to make.
        name: for error messages.
        first: number of the first environment, where others of the same batch are elsewhere.

    Raises:
        ShoalError: spaces that cannot be used, or an observation or reward that is not what the spaces promise.
    """

    def __init__(self, factory: Factory, num_envs: int, name: str = "environment", first: int = 0) -> None:
        if num_envs < 1:
            raise ShoalError(f"num_envs must be at least 1, not {num_envs}")
        self.name, self.num_envs, self.first = name, num_envs, first
        self.envs = [factory() for _ in range(num_envs)]
        self.forms = [form_of(env) for env in self.envs]
        self.adapters = adapters_of(self.envs[0])
        expect_masks(self.adapters, self.forms[0].reset(0))
        groups = group_agents(list(self.adapters.values()))
        self.place = {a: (n, j) for n, group in groups.items() for j, a in enumerate(group.agents)}
        self.seed, self.episode = 0, [-1] * num_envs
        self.history: list[list[Row]] = [[] for _ in range(num_envs)]
        size = global_state(self.envs[0]).size
        self.spec = EnvSpec(groups, size if size <= MAX_STATE else 0)
        self.now, self.after = Canvas(self.spec, num_envs), Canvas(self.spec, num_envs)
        self.view, self.successor = self.now.view, self.after.view
        self.reward, self.terminated, self.alive = (
            {n: torch.zeros(num_envs, g.num_agents, dtype=dtype) for n, g in groups.items()}
            for dtype in (torch.float32, torch.bool, torch.bool)
        )
        self.ended = torch.zeros(num_envs, dtype=torch.bool)
        self.paid, self.stopped, self.acted = (
            {n: x.numpy() for n, x in tensors.items()} for tensors in (self.reward, self.terminated, self.alive)
        )
        self.over = self.ended.numpy()

    @property
    def turn_based(self) -> bool:
        """Whether a step is one agent's turn."""
        return isinstance(self.forms[0], Turns)

    def _error(self, index: int, what: object) -> ShoalError:
        return ShoalError(f"{self.name}, environment {self.first + index}, step {len(self.history[index])}: {what}")

    def _show(self, index: int, shown: Shown, into: Canvas, strict: bool) -> None:
        """Write what one environment shows: zeros for agents that are not there or see nothing.

        With `strict`, whoever acts next must have something to do.
        """
        some_see_nothing = len(shown.observations) < len(self.place) or self.turn_based
        for name, obs in into.obs.items():
            if some_see_nothing:
                obs[index] = 0
            if name in into.legal:
                into.legal[name][index] = False
                into.legal[name][index, :, 0] = True
        for agent, value in shown.observations.items():
            adapter, (name, j) = self.adapters[agent], self.place[agent]
            if value is not None:
                into.obs[name][index, j] = adapter.read(value)
            info = shown.infos.get(agent)
            if adapter.masked and agent in shown.turn:
                mask = adapter.read_mask(value, info)
                if mask is None or mask.any():
                    into.legal[name][index, j] = True if mask is None else mask
                elif strict:
                    raise ShoalError(f"the action mask of {agent} allows nothing")
            elif info and MASK in info and isinstance(adapter.action, Discrete) and not adapter.masked:
                raise Misfit(f"info of {agent} has an {MASK}, and that of reset() had none", LATE_MASK)
        if self.spec.state_size:
            state = global_state(self.envs[index])
            if not state.size:  # multiwalker's fails once somebody has fallen: what it last showed stays
                state = self.now.state[index]
            elif state.size != self.spec.state_size:
                raise ShoalError(f"state() has {state.size} numbers, at the start it had {self.spec.state_size}")
            into.state[index] = state

    def _start(self, index: int) -> None:
        self.episode[index] += 1
        self.history[index] = []
        try:
            self._show(index, self.forms[index].reset(self.episode_seed(index)), self.now, strict=True)
        except ShoalError as error:
            raise self._error(index, error) from error

    def episode_seed(self, index: int) -> int:
        """What the current episode of an environment was reset with."""
        numbers = [self.seed, self.first + index, self.episode[index]]
        return int(np.random.SeedSequence(numbers).generate_state(1)[0]) % 2**31

    def reset(self, seed: int | None = None) -> View:
        """Start every environment anew; without a seed with the seeds of the next episodes."""
        if seed is not None:
            self.seed, self.episode = seed, [-1] * self.num_envs
        for index in range(self.num_envs):
            self._start(index)
        return self.view

    def step(self, actions: Groups) -> Step:
        if self.episode[0] < 0:
            raise ShoalError("reset the environment before its first step")
        rows = {name: action.numpy().copy() for name, action in actions.items()}  # the history keeps them
        for index in range(self.num_envs):
            self._step_one(index, {name: row[index] for name, row in rows.items()})
            if self.over[index]:
                self._start(index)
        return Step(self.view, self.successor, self.reward, self.terminated, self.alive, self.ended)

    def _step_one(self, index: int, actions: Row) -> None:
        self.history[index].append(actions)
        form = self.forms[index]
        here, given = form.here(), {}
        for agent in form.acting():
            name, j = self.place[agent]
            given[agent] = self.adapters[agent].write(actions[name][j])
        try:
            outcome = form.step(given)
            self._record(index, here, given, outcome)
            self._show(index, outcome.successor, self.after, strict=outcome.view is outcome.successor)
            if outcome.view is outcome.successor:
                self.now.copy_row(index, self.after)
            elif outcome.staying:
                self._show(index, outcome.view, self.now, strict=True)
        except ShoalError as error:
            raise self._error(index, error) from error

    def _record(self, index: int, here: list[str], acting: Collection[str], outcome: Outcome) -> None:
        """Rewards of everybody who is there, who acted, and whose return stops: also of all that have left before."""
        gone = len(here) < len(self.place)
        for name, paid in self.paid.items():
            paid[index], self.acted[name][index], self.stopped[name][index] = 0.0, False, gone
        for agent in here:
            name, j = self.place[agent]
            reward = float(outcome.rewards.get(agent, math.nan))
            if not math.isfinite(reward):
                what = reward if agent in outcome.rewards else "missing"
                raise ShoalError(f"the reward of {agent} is {what}")
            self.paid[name][index, j] = reward
            self.acted[name][index, j] = agent in acting
            self.stopped[name][index, j] = agent in outcome.terminated
        self.over[index] = not outcome.staying

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """The environment's own picture `[height, width, 3]`.

        Raises:
            ShoalError: it does not give one (it must be made with `render_mode="rgb_array"`).
        """
        picture = self.envs[index].render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
            raise ShoalError(f"{self.name} gave no picture [height, width, 3] from render()")
        return picture.astype(np.uint8)

    def state_dict(self) -> Tree:
        history = [
            {n: torch.from_numpy(np.stack([row[n] for row in rows])) for n in rows[0]} if rows else {}
            for rows in self.history
        ]
        return {
            "seed": self.seed,
            "episode": list(self.episode),
            "history": history,
            "obs": dict(self.view.obs),
        }

    def load_state_dict(self, state: Tree) -> None:
        self.seed = state["seed"]
        for index, (episode, history) in enumerate(zip(state["episode"], state["history"], strict=True)):
            self.episode[index] = episode - 1
            if episode < 0:  # never reset
                self.episode[index] = -1
                continue
            self._start(index)
            for t in range(len(next(iter(history.values()), ()))):
                self._step_one(index, {name: rows[t].numpy() for name, rows in history.items()})
        started = [episode >= 0 for episode in state["episode"]]
        if any(not torch.equal(self.view.obs[n][started], obs[started]) for n, obs in state["obs"].items()):
            warnings.warn(
                f"{self.name} does not repeat an episode from its seed and actions: the run goes on, "
                "but not bit for bit as without the interruption",
                stacklevel=2,
            )

    def close(self) -> None:
        for env in self.envs:
            env.close()


def form_of(env: Any) -> Rounds | Turns:
    """How `env` is played."""
    return Turns(env) if hasattr(env, "agent_iter") else Rounds(env)


def adapters_of(env: Any) -> dict[str, AgentAdapter]:
    """Every agent's spaces. Discrete actions of turn-based games are always masked: to wait is to have no choice.

    Raises:
        ShoalError: the environment does not know its agents, or has spaces that cannot be used.
    """
    agents = getattr(env, "possible_agents", None)
    if not agents:
        raise ShoalError(
            f"{type(env).__name__} has no possible_agents: shoal must know every agent before the first episode"
        )
    adapters = {a: AgentAdapter(a, env.observation_space(a), env.action_space(a)) for a in agents}
    for adapter in adapters.values():
        adapter.masked |= isinstance(form_of(env), Turns) and isinstance(adapter.action, Discrete)
    return adapters


def expect_masks(adapters: dict[str, AgentAdapter], shown: Shown) -> None:
    """Masks that are in `info` and not in the observation are recognised by what the first reset shows."""
    for agent, adapter in adapters.items():
        info = shown.infos.get(agent)
        adapter.masked |= isinstance(info, dict) and MASK in info and isinstance(adapter.action, Discrete)


def global_state(env: Any) -> NDArray[np.float32]:
    """The global state, flat, bytes as fractions of 255; empty where there is none that works."""
    try:
        state = np.asarray(env.state())
    except Exception:  # PettingZoo's own environments raise NotImplementedError, TypeError or AttributeError here
        return np.zeros(0, np.float32)
    if state.dtype.kind not in "fiub":
        return np.zeros(0, np.float32)
    flat = state.astype(np.float32).ravel()
    return flat / np.float32(255) if state.dtype == np.uint8 else flat
