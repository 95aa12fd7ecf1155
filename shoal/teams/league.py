"""Self-play: an algorithm made of algorithms, one a side, whose opponents are what the sides once were.

A *side* is what one learner plays, a *seat* a place in the game that it can take. Where the environment has several
groups, each is a side with one seat. Where it has one, every agent is a seat, and one learner plays all of them; it
sees no global state then, which would not tell it which seat it holds. `sides` arranges it otherwise.

Every side keeps a pool of earlier versions of its learner. The environments of a batch are divided, once: in some the
learners meet as they are, and all learn; each of the rest belongs to one seat, whose learner learns while the others
are played by members of their pools, drawn with weights

    latest      none: learners meet as they are, everywhere
    uniform     1: fictitious self-play (Brown 1951; Heinrich et al. 2015, ICML, sections 2 and 3)
    pfsp        (1 - x)^2, where x is how often the learner wins against the member (Vinyals et al. 2019, "hard")

What a learner counts in its own settings (a batch, warmup, a schedule) are the steps that it learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal import actions, tree
from shoal.teams.team import Company
from shoal.types import (
    Algorithm,
    Batch,
    EnvSpec,
    Experience,
    Groups,
    Policy,
    ShoalError,
    Stochastic,
    Tree,
    View,
    nearest,
)

SLOTS = 4
"""Opponents that a learner meets at a time, at most."""
HARD = 2.0
"""Exponent of `pfsp`."""
FORGET = 0.99
"""Weight of earlier outcomes against a member after each episode: the learner changes."""
HISTORY = 512
"""Episodes among which a return is ranked."""
OWN = {"optimizer", "optimizers", "sampler", "generators"}
"""Entries of an algorithm's `state_dict` that a snapshot leaves out: it neither learns nor repeats its draws."""

Build = Callable[[EnvSpec, int], Algorithm]
"""`build(spec, seed)`: an untrained learner."""


@dataclass(frozen=True)
class Seat:
    """A place in the game: of each group that its player knows, the environment's group and which of its agents."""

    groups: dict[str, tuple[str, Tensor]]

    def score(self, rewards: Groups) -> Tensor:
        """Rewards `[..., agent]` by the environment's groups; their mean over the seat's agents `[...]`."""
        return torch.cat([rewards[theirs][..., agents] for theirs, agents in self.groups.values()], -1).mean(-1)


def arrange(spec: EnvSpec, sides: tuple[str, ...] = ()) -> dict[str, list[Seat]]:
    """The seats of every side.

    Args:
        spec: of the environment.
        sides: names of groups, or of agents where there is one group; `a+b` for several that one learner plays.
            Empty: every group a side, or every agent a seat of one side.

    Raises:
        ShoalError: fewer than two seats, an unknown name, or an agent that no side or more than one plays.
    """
    groups = spec.groups
    if not sides and len(groups) == 1:
        ((name, group),) = groups.items()
        if group.num_agents < 2:
            raise ShoalError(f"self-play needs two players, and there is one agent, {group.agents[0]}")
        return {name: [Seat({name: (name, torch.tensor([k]))}) for k in range(group.num_agents)]}
    sides = sides or tuple(groups)
    names = [name for side in sides for name in side.split("+")]
    by_agents = len(groups) == 1
    known = next(iter(groups.values())).agents if by_agents else tuple(groups)
    for name in names:
        if name not in known:
            what = "agent" if by_agents else "group"
            raise ShoalError(f"sides: there is no {what} {name!r}; {nearest(name, known)}")
    if len(sides) < 2 or sorted(names) != sorted(known):
        raise ShoalError(f"sides must be two or more, with each of {', '.join(known)} once, not {' '.join(sides)}")
    if not by_agents:
        return {s: [Seat({g: (g, torch.arange(groups[g].num_agents)) for g in s.split("+")})] for s in sides}
    (group_name,) = groups
    return {s: [Seat({s: (group_name, torch.tensor([known.index(a) for a in s.split("+")]))})] for s in sides}


def learner_spec(spec: EnvSpec, seats: list[Seat]) -> EnvSpec:
    """What the player of `seats`, one at a time, sees of an environment."""
    groups = {}
    for mine, (theirs, agents) in seats[0].groups.items():
        whole = spec.groups[theirs]
        groups[mine] = replace(whole, agents=tuple(whole.agents[k] for k in agents.tolist()))
    return EnvSpec(groups, spec.state_size if len(seats) == 1 else 0)


Places = list[tuple[Seat, Tensor]]
"""Seats, each in some environments."""


@dataclass(frozen=True)
class Play:
    """A policy, and where it plays."""

    policy: Policy
    state_size: int
    places: Places
    """Environments `[n]`; width 0: all of them."""


class Lineup(Company):
    """A policy made of policies, each playing some seats in some environments. A policy acts once for all its places.

    Args:
        spec: of the environment.
        plays: that together play every agent in every environment.
    """

    def __init__(self, spec: EnvSpec, plays: list[Play]) -> None:
        self.spec, self.plays = spec, plays
        self.policies = [play.policy for play in plays]

    def initial_memory(self, num_envs: int) -> Groups:
        memory: Groups = {}
        for play in self.plays:
            start = play.policy.initial_memory(num_envs)
            for seat, envs in play.places:
                rows = _rows(envs, num_envs)
                for mine, (theirs, agents) in seat.groups.items():
                    count, width = self.spec.groups[theirs].num_agents, start[mine].shape[-1]
                    whole = memory.setdefault(theirs, torch.zeros(num_envs, count, width))
                    whole[rows, agents] = start[mine][rows.squeeze(1)]
        return memory

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        chosen = {g: actions.empty(self.spec.groups[g].action, tuple(obs.shape[:2])) for g, obs in view.obs.items()}
        following = {g: torch.zeros_like(memory[g]) for g in view.obs}
        for policy, places, shown, mine in self._shown(view, memory):
            act, remember = policy.act(shown, mine, explore=explore)
            _scatter(act, places, chosen)
            _scatter(remember, places, following)
        return chosen, following

    def probabilities(self, view: View, memory: Groups) -> Groups | None:
        """See `Stochastic`; None where one of the policies tells none."""
        sizes = {g: (*obs.shape[:2], self.spec.groups[g].action.size) for g, obs in view.obs.items()}
        found = {g: torch.zeros(size) for g, size in sizes.items()}
        for policy, places, shown, mine in self._shown(view, memory):
            told = policy.probabilities(shown, mine) if isinstance(policy, Stochastic) else None
            if told is None:
                return None
            _scatter(told, places, found)
        return found

    def _shown(self, view: View, memory: Groups) -> Iterator[tuple[Policy, Places, View, Groups]]:
        """Of each policy: its places, what it is shown there, and what it remembers."""
        num_envs = len(view.state)
        for play in self.plays:
            places = [(seat, _rows(envs, num_envs)) for seat, envs in play.places]
            groups = [mine for mine, (theirs, _) in places[0][0].groups.items() if theirs in view.obs]
            if not groups:
                continue
            obs, legal, mine = (_gather(tensors, places, groups) for tensors in (view.obs, view.legal, memory))
            state = torch.cat([view.state[rows.squeeze(1), : play.state_size] for _, rows in places])
            yield play.policy, places, View(obs, legal, state), mine


def _rows(envs: Tensor, num_envs: int) -> Tensor:
    """`[n, 1]`, to be indexed with beside agents `[m]`."""
    return (envs if len(envs) else torch.arange(num_envs)).unsqueeze(1)


def _gather(tensors: Groups, places: Places, groups: list[str]) -> Groups:
    """What is at `places`, one after the other along the environments, by the player's groups."""
    found = {}
    for name in groups:
        where = [(*seat.groups[name], rows) for seat, rows in places]
        found[name] = torch.cat([tensors[theirs][rows, agents] for theirs, agents, rows in where])
    return found


def _scatter(found: Groups, places: Places, into: Groups) -> None:
    """The inverse of `_gather`."""
    sizes = [len(rows) for _, rows in places]
    for name, tensor in found.items():
        for (seat, rows), values in zip(places, tensor.split(sizes), strict=True):
            theirs, agents = seat.groups[name]
            into[theirs][rows, agents] = values


ALL_ENVS = torch.zeros(0, dtype=torch.int64)


@dataclass
class Member:
    """A side as it was once."""

    step: int
    """Environment steps of the league then."""
    weights: Tree
    results: dict[str, list[float]] = field(default_factory=dict)
    """By the learner that met it: episodes that it won (drawn ones half), and episodes; old ones weigh less."""

    def win_rate(self, learner: str) -> float:
        """How often `learner` wins against it, begun at a half."""
        won, episodes = self.results.get(learner, [0.0, 0.0])
        return (won + 1) / (episodes + 2)

    def record(self, learner: str, outcomes: Tensor) -> None:
        """Episodes `[n]`: 1 won by `learner`, 0 lost, half of each drawn."""
        won, episodes = self.results.get(learner, [0.0, 0.0])
        kept = FORGET ** len(outcomes)
        self.results[learner] = [won * kept + float(outcomes.sum()), episodes * kept + len(outcomes)]

    def state_dict(self) -> Tree:
        return {"step": self.step, "weights": self.weights, "results": dict(self.results)}


@dataclass
class Side:
    """A learner, the seats it can take, and its pool."""

    name: str
    learner: Algorithm
    seats: list[Seat]
    pool: list[Member]

    def play(self, policy: Policy, places: Places) -> Play:
        return Play(policy, self.learner.spec.state_size, places)


@dataclass
class Slot:
    """An opponent that a learner meets: a member of the pool of `side`, in the environments `rows`."""

    learner: Side
    side: Side
    policy: Algorithm
    rows: Tensor
    step: int = -1
    """Of the member."""

    def load(self, member: Member) -> None:
        self.step = member.step
        load_weights(self.policy, member.weights)


def weights(algorithm: Algorithm) -> Tree:
    """What an algorithm plays with: a copy of its state without optimisers and generators."""
    return tree.map(torch.clone, _playing(algorithm.state_dict()))


def load_weights(algorithm: Algorithm, saved: Tree) -> None:
    """Make `algorithm` play like the one of which these are the `weights`; its generators stay its own."""
    algorithm.load_state_dict(_joined(algorithm.state_dict(), saved))


def _playing(state: Any) -> Any:
    """Without what is `OWN`, of algorithms within an algorithm too."""
    return {k: _playing(v) for k, v in state.items() if k not in OWN} if isinstance(state, dict) else state


def _joined(own: Any, saved: Any) -> Any:
    """What is saved, and the rest of one's own."""
    return {k: _joined(v, saved.get(k, v)) for k, v in own.items()} if isinstance(own, dict) else saved


def thin(pool: list[Member], size: int) -> None:
    """Remove members until `size` are left: the first and the newest stay, and the others evenly spread in time."""
    while len(pool) > size:
        gaps = [pool[k + 1].step - pool[k - 1].step for k in range(1, len(pool) - 1)]
        del pool[1 + gaps.index(min(gaps))]


def ranks(values: Tensor, among: Tensor) -> Tensor:
    """The share of `among` `[n]` that each value exceeds, equal ones counted half."""
    ordered = among.sort().values
    below = torch.searchsorted(ordered, values)
    return (below + torch.searchsorted(ordered, values, right=True)) / (2 * len(ordered))


def outcome(mine: Tensor, theirs: Tensor) -> Tensor:
    """1 where the first score is higher, 0 where it is lower, else a half."""
    return 0.5 * (1 + (mine - theirs).sign())


class League:
    """See the module's docstring; satisfies `Algorithm`.

    With `explore=False` the newest learners play all seats. `explore=True` is play to learn from: in the environments
    of `experience(num_envs)`, opponents in their places, as exploring as they were when their learner was like them.

    Args:
        spec: of the environment.
        build: makes a learner for a side's spec.
        self_play: `latest`, `uniform` or `pfsp`.
        sides: see `arrange`.
        snapshot_every: environment steps between two members of a pool.
        pool: members kept of each side (see `thin`).
        latest_share: share of the environments in which learners meet as they are; rounding enlarges it.
        seed: fixes learners and draws.

    Raises:
        ShoalError: sides that cannot be arranged, or a setting out of its range.
    """

    def __init__(
        self,
        spec: EnvSpec,
        build: Build,
        *,
        self_play: str,
        sides: tuple[str, ...],
        snapshot_every: int,
        pool: int,
        latest_share: float,
        seed: int = 0,
    ) -> None:
        if self_play not in ("latest", "uniform", "pfsp"):
            raise ShoalError(f"self_play must be latest, uniform or pfsp, not {self_play!r}")
        if pool < 2 or snapshot_every < 1 or not 0 <= latest_share < 1:
            raise ShoalError(
                f"a league needs a pool of 2 or more, snapshot_every 1 or more and latest_share from 0 to below 1, "
                f"not {pool}, {snapshot_every} and {latest_share}"
            )
        if spec.hears[1]:
            raise ShoalError("self-play cannot tell its players yet who hears whom, as this environment does")
        self.spec, self.build, self.self_play, self.seed = spec, build, self_play, seed
        self.snapshot_every, self.pool_size, self.latest_share = snapshot_every, pool, latest_share
        seats = arrange(spec, sides)
        self.sides: list[Side] = []
        for name, places in seats.items():
            learner = self.player(len(self.sides), learner_spec(spec, places))
            self.sides.append(Side(name, learner, places, [Member(0, weights(learner))]))
        self.config = self.sides[0].learner.config
        self.seats = [(side, seat) for side in self.sides for seat in side.seats]
        self.alike = len({theirs for _, seat in self.seats for theirs, _ in seat.groups.values()}) == 1
        """All seats are of one group: their returns can be compared."""
        self.newest = Lineup(spec, [s.play(s.learner, [(seat, ALL_ENVS) for seat in s.seats]) for s in self.sides])
        self.training = self.newest
        self.learning = self.sides[0]
        """Whose batch is next to learn from."""
        self.slots: list[Slot] = []
        self.rows: list[Tensor] = []
        """Of every seat, the environments in which its learner plays it."""
        self.generator = torch.Generator().manual_seed(seed)
        self.env_steps = 0

    def player(self, number: int, spec: EnvSpec) -> Algorithm:
        """An untrained player with draws of its own; number 0 is what the algorithm would be without a league."""
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]) % 2**31 if number else self.seed
        return self.build(spec, seed)

    # Playing

    def initial_memory(self, num_envs: int) -> Groups:
        return self.newest.initial_memory(num_envs)

    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        return (self.training if explore else self.newest).act(view, memory, explore=explore)

    def probabilities(self, view: View, memory: Groups) -> Groups | None:
        """See `Stochastic`: of the newest learners."""
        return self.newest.probabilities(view, memory)

    # Learning

    def experience(self, num_envs: int) -> Lessons:
        """Divide the environments, and begin to learn in them."""
        self._divide(num_envs)
        self.sums = torch.zeros(num_envs, len(self.seats))
        """Of the episodes under way, `[env, seat]`."""
        self.whole = torch.ones(num_envs, dtype=torch.bool)
        """Nobody was replaced since the episode began."""
        self.met = torch.zeros(num_envs, dtype=torch.bool)
        """An episode ended since the opponent came."""
        self.history = torch.zeros(len(self.seats), 0)
        """Returns of the latest episodes, `[seat, episode]`."""
        return Lessons(self)

    def _divide(self, num_envs: int) -> None:
        count, shared = len(self.seats), len(self.sides) == 1
        block = 0 if self.self_play == "latest" else int(num_envs * (1 - self.latest_share)) // count
        if self.self_play != "latest" and not block:
            raise ShoalError(
                f"{num_envs} environments cannot be divided among {count} seats with a latest_share of "
                f"{self.latest_share}: set num_envs to {int(np.ceil(count / (1 - self.latest_share)))} or more"
            )
        together = num_envs - block * count
        blocks = [torch.arange(block) + together + block * k for k in range(count)]
        self.rows = [torch.cat([torch.arange(together), rows]) for rows in blocks]
        self.owner = torch.full((num_envs,), -1)
        for k, rows in enumerate(blocks):
            self.owner[rows] = k
        plays = []
        for side in self.sides:
            mine = [k for k, (owner, _) in enumerate(self.seats) if owner is side]
            plays.append(side.play(side.learner, [(self.seats[k][1], self.rows[k]) for k in mine]))
        self.slots = []
        slots = min(SLOTS, block)
        for learner in self.sides:
            for side in self.sides:
                if side is learner and not shared:
                    continue
                for j in range(slots):
                    policy = self.player(len(self.sides) + len(self.slots), side.learner.spec)
                    places = [
                        (seat, blocks[k][j::slots])
                        for k, (owner, own) in enumerate(self.seats)
                        for seat in side.seats
                        if owner is learner and seat is not own
                    ]
                    rows = torch.cat([rows for _, rows in places]).unique()
                    self.slots.append(Slot(learner, side, policy, rows))
                    self.slots[-1].load(side.pool[0])
                    plays.append(side.play(policy, places))
        self.training = Lineup(self.spec, plays)

    def observe(self, rollout: Batch) -> None:
        """Count who won what against whom in a rollout."""
        rewards = {name: agents.reward for name, agents in rollout.groups.items()}
        scores = torch.stack([seat.score(rewards) for _, seat in self.seats], -1)  # [time, env, seat]
        for reward, ended in zip(scores, rollout.ended, strict=True):
            self.sums += reward
            if ended.any():
                self._finish(ended)
        self.env_steps += rollout.num_steps

    def _finish(self, ended: Tensor) -> None:
        if not self.alike:
            self.history = torch.cat([self.history, self.sums[ended].T], 1)[:, -HISTORY:]
        for slot in self.slots:
            rows = slot.rows[(ended & self.whole)[slot.rows]]
            member = next((member for member in slot.side.pool if member.step == slot.step), None)
            if len(rows) and member is not None:
                member.record(slot.learner.name, self._outcomes(rows, slot.side))
        self.sums[ended] = 0.0
        self.whole |= ended
        self.met |= ended

    def _outcomes(self, rows: Tensor, side: Side) -> Tensor:
        """How those who learn in environments `rows` did against the seats of `side`, `[row]`."""
        scores = self.sums[rows]
        if not self.alike:
            scores = torch.stack([ranks(scores[:, k].contiguous(), self.history[k]) for k in range(len(self.seats))], 1)
        mine = self.owner[rows]
        theirs = torch.tensor([owner is side for owner, _ in self.seats]).expand(len(rows), -1).clone()
        theirs[torch.arange(len(rows)), mine] = False
        results = outcome(scores.gather(1, mine.unsqueeze(1)), scores)
        return (results * theirs).sum(1) / theirs.sum(1)

    def advance(self, ended: Tensor) -> None:
        """After learning: snapshots if it is time, and new opponents where each has played an episode.

        Args:
            ended: the environments `[env]` that are about to begin an episode.
        """
        every, last = self.snapshot_every, self.sides[0].pool[-1].step
        if self.env_steps // every > last // every:
            for side in self.sides:
                side.pool.append(Member(self.env_steps, weights(side.learner)))
                thin(side.pool, self.pool_size)
        for slot in [slot for slot in self.slots if self.met[slot.rows].all()]:
            self.met[slot.rows] = False
            member = self._draw(slot)
            if member.step != slot.step:
                self.whole[slot.rows] &= ended[slot.rows]
            slot.load(member)  # again if it is the same: it has counted the steps it played, and explores by them

    def _draw(self, slot: Slot) -> Member:
        pool = slot.side.pool
        chances = torch.ones(len(pool), dtype=torch.float64)
        if self.self_play == "pfsp":
            chances -= torch.tensor([member.win_rate(slot.learner.name) for member in pool], dtype=torch.float64)
            chances **= HARD
        return pool[int(torch.multinomial(chances, 1, generator=self.generator))]

    def cut(self, envs: Tensor) -> None:
        """These environments (bool `[env]`) begin an episode."""
        self.sums[envs] = 0.0
        self.whole[envs] = True

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """The side learns for which `Lessons` made `batch`."""
        metrics = self.learning.learner.update(batch)
        return metrics if len(self.sides) == 1 else {f"{self.learning.name}_{name}": x for name, x in metrics.items()}

    # Members

    def versions(self, side: Side) -> list[Member]:
        """The pool and, if it has learned since, the learner as it is now."""
        newest = [] if side.pool[-1].step == self.env_steps else [Member(self.env_steps, weights(side.learner))]
        return [*side.pool, *newest]

    def revive(self, side: Side, member: Member, number: int) -> Algorithm:
        """A player like `member`; those with different numbers draw differently."""
        policy = self.player(number + 1, side.learner.spec)
        load_weights(policy, member.weights)
        return policy

    # Saving

    def state_dict(self) -> Tree:
        sides = {
            side.name: {"learner": side.learner.state_dict(), "pool": [member.state_dict() for member in side.pool]}
            for side in self.sides
        }
        state = {"sides": sides, "env_steps": self.env_steps, "generator": self.generator.get_state()}
        if not self.rows:
            return {**state, "under_way": None}
        under_way = {name: getattr(self, name) for name in ("sums", "whole", "met", "history")}
        slots = [{"step": slot.step, "policy": slot.policy.state_dict()} for slot in self.slots]
        return {**state, "under_way": {**under_way, "slots": slots}}

    def load_state_dict(self, state: Tree) -> None:
        for side in self.sides:
            saved = state["sides"][side.name]
            side.learner.load_state_dict(saved["learner"])
            side.pool[:] = [Member(**member) for member in saved["pool"]]
        self.env_steps = state["env_steps"]
        self.generator.set_state(state["generator"])
        under_way = state["under_way"]
        if not self.rows or under_way is None:  # only played from here on
            return
        for name in ("sums", "whole", "met", "history"):
            setattr(self, name, under_way[name].clone())
        for slot, saved in zip(self.slots, under_way["slots"], strict=True):
            slot.step = saved["step"]
            slot.policy.load_state_dict(saved["policy"])


class Lessons:
    """What a league's learners learn from: of every rollout, each side's part of it. Satisfies `Experience`."""

    def __init__(self, league: League) -> None:
        self.league = league
        self.places: list[Places] = []
        self.parts: list[Experience] = []
        for side in league.sides:
            seats = zip(league.seats, league.rows, strict=True)
            places = [(seat, rows) for (owner, seat), rows in seats if owner is side]
            self.places.append(places)
            self.parts.append(side.learner.experience(sum(len(rows) for _, rows in places)))
        # of equal settings in equally many environments, so one for all
        self.rollout_steps = self.parts[0].rollout_steps

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    def add(self, rollout: Batch) -> Iterator[Batch]:
        self.league.observe(rollout)
        for side, part, places in zip(self.league.sides, self.parts, self.places, strict=True):
            self.league.learning = side
            yield from part.add(excerpt(rollout, places, side.learner.spec.state_size))
        self.league.advance(rollout.ended[-1])

    def cut(self, envs: Tensor) -> None:
        self.league.cut(envs)
        for part, places in zip(self.parts, self.places, strict=True):
            part.cut(torch.cat([envs[rows] for _, rows in places]))

    def state_dict(self) -> Tree:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Tree) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def excerpt(rollout: Batch, places: Places, state_size: int) -> Batch:
    """What happened in some seats of some environments, side by side as environments `[time, place's envs, ...]`."""
    parts = []
    for seat, rows in places:
        groups = {
            mine: tree.map(lambda x, rows=rows, agents=agents: x[:, rows][:, :, agents], rollout.groups[theirs])
            for mine, (theirs, agents) in seat.groups.items()
        }
        state, next_state = (x[:, rows][..., :state_size] for x in (rollout.state, rollout.next_state))
        nobody = rollout.hears[:, rows][..., :0, :0]
        parts.append(Batch(groups, state, next_state, rollout.ended[:, rows], nobody, nobody))
    return tree.cat(parts, 1)
