"""Playing: a policy in environments, for a number of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal import roll, tree
from shoal.jit import jit
from shoal.replay import allocate
from shoal.types import Batch, Compiled, Groups, Playable, Policy, Stateful, Step, Tree, VecEnv, View


class Episodes:
    """Sums rewards along the way and hands out the episodes that ended."""

    def __init__(self, env: VecEnv) -> None:
        self.sums = {name: torch.zeros(env.num_envs, group.num_agents) for name, group in env.spec.groups.items()}
        self.lengths = torch.zeros(env.num_envs, dtype=torch.int64)

    def add(self, step: Step) -> tuple[Tensor, Groups, Tensor] | None:
        """The episodes that ended in this step: env `[n]`, returns `[n, agent]` per group, lengths `[n]`; or None.

        A lost episode is not among them: n may be 0.
        """
        self.lengths += 1
        for name, total in self.sums.items():
            total += step.reward[name]
        if not step.ended.any():
            return None
        where = (step.ended & ~step.lost if len(step.lost) else step.ended).nonzero().squeeze(1)
        finished = where, {name: total[where] for name, total in self.sums.items()}, self.lengths[where]
        self.lengths[step.ended] = 0
        for total in self.sums.values():
            total[step.ended] = 0.0
        return finished

    def add_all(self, rollout: Batch) -> tuple[Groups, Tensor] | None:
        """The same of all steps of a rollout: returns and lengths of the episodes that ended; or None."""
        ended = rollout.ended.numpy()
        count = int(ended.sum())
        found: Groups = {}
        for name, total in self.sums.items():
            found[name] = torch.empty(count, total.shape[1])
            _episodes(rollout.groups[name].reward.numpy(), ended, total.numpy(), found[name].numpy())
        lengths = torch.empty(count, 1)
        _episodes(np.ones((*ended.shape, 1), np.float32), ended, self.lengths.unsqueeze(1).numpy(), lengths.numpy())
        return (found, lengths.squeeze(1).long()) if count else None


@jit()
def _episodes(reward: Any, ended: NDArray[np.bool_], total: Any, found: Any) -> None:
    """Adds `[time, env, agent]` to `total`, which goes to the next row of `found` and begins anew where one ended."""
    row = 0
    for t in range(ended.shape[0]):
        for e in range(ended.shape[1]):
            for i in range(total.shape[1]):
                total[e, i] += reward[t, e, i]
            if ended[t, e]:
                for i in range(total.shape[1]):
                    found[row, i], total[e, i] = total[e, i], 0
                row += 1


class LocalCollector:
    """Plays `policy` in `env` with exploration and copies what happened into a rollout `[time, env, ...]`.

    The rollout is allocated once and overwritten by the next `collect`. Where a step was lost, the episode is cut off
    after the step before it, and nobody is present in the lost one, so that nothing is learned from it.
    """

    def __init__(self, policy: Policy, env: VecEnv, num_steps: int, seed: int) -> None:
        self.enter(policy, env, num_steps, seed)
        self.finished: list[tuple[Groups, Tensor]] = []
        """Returns and lengths of the episodes that ended since the caller last emptied this list."""
        self.latest: list[tuple[Groups, Tensor]] = []
        """Those of the latest `collect`."""
        self.lost_episodes = 0
        self.cut = torch.zeros(env.num_envs, dtype=torch.bool)
        """Whose episode turned out to be cut off before the first step of the latest rollout."""
        self.acting_seconds = 0.0
        """The environments' time as well, where `compiled`."""
        self.env_seconds = 0.0

    def enter(self, policy: Policy, env: VecEnv, num_steps: int, seed: int) -> None:
        """`policy` plays in as many environments `env` from here on, from fresh starts."""
        self.policy, self.num_steps = policy, num_steps
        self.env, self.view = env, env.reset(seed)
        self.start_memory, self.memory = (policy.initial_memory(env.num_envs) for _ in range(2))
        sizes = {name: memory.shape[-1] for name, memory in self.memory.items()}
        self.rollout = allocate(env.spec, (num_steps, env.num_envs), sizes)
        self.rows = [tree.index(self.rollout, t) for t in range(num_steps)]
        self.present = {n: torch.ones(env.num_envs, g.num_agents, dtype=torch.bool) for n, g in env.spec.groups.items()}
        self.episodes = Episodes(env)
        self.compiled = self._compile(policy, env)

    def _compile(self, policy: Policy, env: VecEnv) -> Callable[[], None] | None:
        """A rollout without Python between its steps, where environments and policy can be played so."""
        if not (isinstance(env, Compiled) and isinstance(policy, Playable)):
            return None
        player = policy.compiled_player(env, self.memory, self.num_steps)
        if player is None:
            return None
        recorder = roll.Recorder(self.rollout, env.inputs, env.result, self.memory, self.start_memory)
        show, keep = roll.functions()

        def play(part: int) -> None:
            low, high = player.edges[part : part + 2]
            functions = show.address, player.address, keep.address
            env.play(low, high, (self.num_steps, *functions, recorder.address, player.tables[part]))

        def rollout() -> None:
            player.prepare()
            player.share(play)
            self.view = env.result.view

        return rollout

    def collect(self) -> Batch:
        """The next `num_steps` steps of every environment."""
        self.cut.zero_()
        before = len(self.finished)
        if self.compiled is None:
            for t in range(self.num_steps):
                self._step(t)
        else:
            self._roll(self.compiled)
        self.latest = self.finished[before:]
        return self.rollout

    def _roll(self, play: Callable[[], None]) -> None:
        """All steps at once."""
        start = time.perf_counter()
        play()
        self.acting_seconds += time.perf_counter() - start
        ended = self.rollout.ended.unsqueeze(-1)
        for name, present in self.present.items():
            rows = self.rollout.groups[name]
            goes_on = ended | ~rows.terminated
            rows.present[0], rows.present[1:] = present, goes_on[:-1]
            present.copy_(goes_on[-1])
        if finished := self.episodes.add_all(self.rollout):
            self.finished.append(finished)

    def _step(self, t: int) -> None:
        row, start = self.rows[t], time.perf_counter()
        _store_view(row, self.view, self.memory)
        actions, self.memory = self.policy.act(self.view, self.memory, explore=True)
        acted = time.perf_counter()
        step = self.env.step(actions)
        self.acting_seconds += acted - start
        self.env_seconds += time.perf_counter() - acted
        _store_step(row, step, actions)
        self.view = step.view
        if step.lost.any():
            self.lost_episodes += int(step.lost.sum())
            (self.rows[t - 1].ended if t else self.cut)[step.lost] = True
            for present in self.present.values():
                present[step.lost] = False
        ended = step.ended.unsqueeze(1)
        for name, present in self.present.items():
            row.groups[name].present.copy_(present)
            torch.logical_or(~step.terminated[name], ended, out=present)
        if finished := self.episodes.add(step):
            where, returns, lengths = finished
            if len(where):
                self.finished.append((returns, lengths))
            for name, memory in self.memory.items():
                if memory.shape[-1]:
                    memory[step.ended] = self.start_memory[name][step.ended]

    def state_dict(self) -> Tree:
        """With the environments' own state where they have one; without, `load_state_dict` starts new episodes."""
        env = self.env.state_dict() if isinstance(self.env, Stateful) else None
        sums, lengths = self.episodes.sums, self.episodes.lengths
        return {
            "env": env,
            "memory": self.memory,
            "present": self.present,
            "sums": sums,
            "lengths": lengths,
            "lost_episodes": self.lost_episodes,
            "view": _view_tree(self.view),
        }

    def load_state_dict(self, state: Tree) -> None:
        self.lost_episodes = state["lost_episodes"]
        if not state["env"] or not isinstance(self.env, Stateful):
            return
        self.env.load_state_dict(state["env"])
        self.view = View(**{name: tree.map(torch.clone, value) for name, value in state["view"].items()})
        tree.copy_(self.memory, state["memory"])  # in place: compiled code knows where it lies
        self.present = state["present"]
        self.episodes.sums, self.episodes.lengths = state["sums"], state["lengths"]


def _view_tree(view: View) -> Tree:
    return {"obs": view.obs, "legal": view.legal, "state": view.state, "hears": view.hears}


def _store_view(row: Batch, view: View, memory: Groups) -> None:
    for name, agents in row.groups.items():
        agents.obs.copy_(view.obs[name])
        if agents.legal.shape[-1]:
            agents.legal.copy_(view.legal[name])
        if agents.memory.shape[-1]:
            agents.memory.copy_(memory[name])
    if row.state.shape[-1]:
        row.state.copy_(view.state)
    if row.hears.shape[-1]:
        row.hears.copy_(view.hears)


def _store_step(row: Batch, step: Step, actions: Groups) -> None:
    for name, agents in row.groups.items():
        agents.action.copy_(actions[name])
        agents.reward.copy_(step.reward[name])
        agents.terminated.copy_(step.terminated[name])
        agents.alive.copy_(step.alive[name])
        agents.next_obs.copy_(step.successor.obs[name])
        if agents.next_legal.shape[-1]:
            agents.next_legal.copy_(step.successor.legal[name])
    if row.next_state.shape[-1]:
        row.next_state.copy_(step.successor.state)
    if row.next_hears.shape[-1]:
        row.next_hears.copy_(step.successor.hears)
    row.ended.copy_(step.ended)
