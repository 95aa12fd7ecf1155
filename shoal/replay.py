"""Experience: which batches to learn from after each rollout."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal import actions, pointers, tree
from shoal.jit import jit
from shoal.pointers import move
from shoal.types import Agents, Batch, EnvSpec, ShoalError, Tree

Numbers = NDArray[np.float64]
Slots = NDArray[np.int64]


def allocate(spec: EnvSpec, lead: tuple[int, ...], memory_sizes: dict[str, int]) -> Batch:
    """A batch of zeros with leading axes `lead` (`[time, env]`). Pages are touched only when written."""
    groups = {}
    for name, group in spec.groups.items():
        shape = (*lead, group.num_agents)
        legal_size = group.action.size if group.masked else 0
        dtype = torch.uint8 if group.image else torch.float32
        groups[name] = Agents(
            obs=torch.zeros((*shape, *group.obs_shape), dtype=dtype),
            legal=torch.zeros((*shape, legal_size), dtype=torch.bool),
            memory=torch.zeros((*shape, memory_sizes.get(name, 0))),
            action=actions.empty(group.action, shape),
            reward=torch.zeros(shape),
            terminated=torch.zeros(shape, dtype=torch.bool),
            alive=torch.zeros(shape, dtype=torch.bool),
            present=torch.zeros(shape, dtype=torch.bool),
            next_obs=torch.zeros((*shape, *group.obs_shape), dtype=dtype),
            next_legal=torch.zeros((*shape, legal_size), dtype=torch.bool),
        )
    state, next_state = (torch.zeros((*lead, spec.state_size)) for _ in range(2))
    hears, next_hears = (torch.zeros((*lead, *spec.hears), dtype=torch.bool) for _ in range(2))
    return Batch(groups, state, next_state, torch.zeros(lead, dtype=torch.bool), hears, next_hears)


def num_bytes(batch: Batch) -> int:
    """Of all tensors together."""
    return sum(x.numel() * x.element_size() for x in tree.leaves(batch))


def refuse_what_does_not_fit(spec: EnvSpec, sizes: dict[str, int], transitions: int, what: str, setting: str) -> int:
    """Bytes of one transition.

    Raises:
        ShoalError: `transitions` of them are more than this machine's memory; says how much of `setting` would fit.
    """
    one = num_bytes(allocate(spec, (1, 1), sizes))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if one * transitions > 0.8 * memory:
        raise ShoalError(
            f"a {what} of {transitions:,} transitions of {one:,} bytes needs {one * transitions / 2**30:,.1f} GiB, "
            f"and this machine has {memory / 2**30:,.1f}: set {setting} to {int(0.5 * memory / one):,} or less"
        )
    return one


class Fresh:
    """Every rollout is learned from once, as a whole, and forgotten.

    Args:
        spec: of the environments that are played.
        num_envs: environments that step together.
        rollout_steps: steps of every environment in a rollout.
        memory: width of the agents' memory.

    Raises:
        ShoalError: a rollout would not fit into this machine's memory.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, rollout_steps: int, memory: int = 0) -> None:
        self.rollout_steps = rollout_steps
        transitions, sizes = num_envs * rollout_steps, dict.fromkeys(spec.groups, memory)
        self.num_bytes = transitions * refuse_what_does_not_fit(spec, sizes, transitions, "rollout", "batch_steps")

    def add(self, rollout: Batch) -> Iterator[Batch]:
        yield rollout

    def cut(self, envs: Tensor) -> None:
        """Nothing is kept that could go on."""

    def state_dict(self) -> Tree:
        return {}

    def load_state_dict(self, state: Tree) -> None:
        """Nothing to load."""


class Replay:
    """A ring of steps of which sequences are drawn: uniformly, or by priority; a sequence may span episodes.

    Args:
        spec: of the environments that are played.
        num_envs: environments that step together.
        capacity: transitions kept (one transition: one step of all agents of one environment).
        batch_size: sequences in a sampled batch.
        update_every: environment steps, counted over all environments, for each batch to learn from.
        warmup: environment steps before the first batch.
        generator: draws the samples; its state belongs to the checkpoint.
        length: steps in a sequence; 0: single transitions, without a time axis.
        with_state: also keep the global state, for algorithms that read it.
        with_hears: also keep who hears whom, for agents that talk.
        memory: width of the agents' memory, kept with every step so that a sequence can start anywhere.
        priority: exponent alpha of prioritised replay (Schaul et al. 2016, arXiv 1511.05952); 0: uniform.
        correction: exponent beta of its importance weights.

    Raises:
        ShoalError: it would hold nothing, or more than this machine's memory.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        *,
        capacity: int,
        batch_size: int,
        update_every: int,
        warmup: int,
        generator: torch.Generator,
        length: int = 0,
        with_state: bool = False,
        with_hears: bool = False,
        memory: int = 0,
        priority: float = 0.0,
        correction: float = 0.0,
    ) -> None:
        rows, self.length = capacity // num_envs, max(length, 1)
        if rows < self.length:
            what = f"sequence of {length} steps" if length else "step"
            raise ShoalError(
                f"buffer_size {capacity} holds no {what} of {num_envs} environments; "
                f"use {num_envs * self.length} or more"
            )
        if update_every < 1:
            raise ShoalError(f"update_every must be at least 1, not {update_every}")
        self.num_envs, self.rows = num_envs, rows
        self.batch_size, self.update_every = batch_size, update_every
        self.warmup = max(warmup, batch_size, num_envs * self.length)
        self.generator = generator
        self.rollout_steps = min(max(1, update_every // num_envs), rows)
        spec = EnvSpec(spec.groups, spec.state_size * with_state, spec.hears if with_hears else (0, 0))
        sizes = dict.fromkeys(spec.groups, memory)
        refuse_what_does_not_fit(spec, sizes, rows * num_envs, "replay", "buffer_size")
        self.storage = allocate(spec, (rows, num_envs), sizes)
        self.ring = tree.leaves(self.storage)
        drawn: Batch = tree.map(lambda x: x.new_zeros(self.length, batch_size, *x.shape[2:]), self.storage)
        for agents in drawn.groups.values():
            agents.memory = agents.memory[:1]
        pairs = [(x, out) for x, out in zip(self.ring, tree.leaves(drawn), strict=True) if x.numel()]
        places = [
            (x.data_ptr(), out.data_ptr(), x[0, 0].numel() * x.element_size(), len(out) * batch_size)
            for x, out in pairs
        ]
        self.columns = np.array(places, np.int64).reshape(-1, 4)
        self.drawn = drawn if length else tree.index(drawn, 0)
        self.ahead = torch.arange(self.length).unsqueeze(1)
        self.written = 0  # rows, ever
        self.correction = correction
        self.priorities = SumTree(rows * num_envs, priority) if priority else None
        self.slots = torch.zeros(0, dtype=torch.int64)  # where the sequences of the latest draw start
        self.weight = torch.ones(batch_size)
        """Importance of each sequence of the latest draw, at most 1."""

    @property
    def num_bytes(self) -> int:
        """Memory of the full ring."""
        return num_bytes(self.storage)

    def add(self, rollout: Batch) -> Iterator[Batch]:
        """Store `rollout` (`[time, env, ...]`), then one sampled batch for every `update_every` steps of it."""
        steps = rollout.ended.shape[0]
        start = self.written % self.rows
        first = min(steps, self.rows - start)
        for ring, new in zip(self.ring, tree.leaves(rollout), strict=True):
            if ring.numel():
                ring[start : start + first] = new[:first]
                if first < steps:
                    ring[: steps - first] = new[first:]
        before = max(self.written * self.num_envs, self.warmup)
        self.written += steps
        if self.priorities is not None:
            self._enter(self.written - steps, self.written)
        after = max(self.written * self.num_envs, self.warmup)
        for _ in range(after // self.update_every - before // self.update_every):
            yield self.sample()

    def _enter(self, old: int, new: int) -> None:
        """Rows old..new were written: what they replaced can start no sequence, and sequences they complete can.

        With sequences of 3 steps, rows 5 and 6 begin none yet (`gone`: whatever stood there before counts no more), and
        complete those that begin at rows 3 and 4 (`begun`).
        """
        assert self.priorities is not None
        gone = torch.arange(old, new)
        begun = torch.arange(max(old - self.length + 1, new - self.rows, 0), max(new - self.length + 1, 0))
        self.priorities.set(self._slots(gone), torch.zeros(len(gone) * self.num_envs))
        self.priorities.set(self._slots(begun), self.priorities.highest.expand(len(begun) * self.num_envs))

    def _slots(self, rows: Tensor) -> Tensor:
        """Where the steps of `rows` lie, in every environment."""
        return ((rows % self.rows).unsqueeze(1) * self.num_envs + torch.arange(self.num_envs)).flatten()

    def sample(self) -> Batch:
        """`batch_size` sequences, `[time, batch, ...]`; without `length`, `[batch, ...]`. The next overwrites them.

        Of the agents' memory only that before the first step is among them.
        """
        filled = min(self.written, self.rows)
        starts = (filled - self.length + 1) * self.num_envs
        if self.priorities is None:
            oldest = (self.written - filled) * self.num_envs
            self.slots = torch.randint(starts, (self.batch_size,), generator=self.generator) + oldest
        else:
            self.slots, probability = self.priorities.sample(self.batch_size, self.generator)
            weight = (probability * starts) ** -self.correction
            self.weight = weight / weight.max()
        where = (self.slots + self.num_envs * self.ahead).flatten() % (self.rows * self.num_envs)
        _gather(self.columns, where.numpy())
        return self.drawn

    def prioritise(self, error: Tensor) -> None:
        """The sequences of the latest draw had these absolute errors `[batch]`."""
        if self.priorities is not None:
            self.priorities.set(self.slots, self.priorities.of(error.cpu()))

    def cut(self, envs: Tensor) -> None:
        """What is added next of `envs` does not follow what was added last: an episode ends, as at a time limit."""
        if self.written:
            self.storage.ended[(self.written - 1) % self.rows] |= envs

    def state_dict(self) -> Tree:
        filled = min(self.written, self.rows)
        rows = [x[:filled] for x in self.ring]
        priorities = self.priorities.state_dict() if self.priorities is not None else None
        generator = self.generator.get_state()
        return {"written": self.written, "rows": rows, "generator": generator, "priorities": priorities}

    def load_state_dict(self, state: Tree) -> None:
        self.written = state["written"]
        filled = min(self.written, self.rows)
        for x, saved in zip(self.ring, state["rows"], strict=True):
            x[:filled] = saved
        self.generator.set_state(state["generator"])
        if self.priorities is not None:
            self.priorities.load_state_dict(state["priorities"])


class SumTree:
    """Priorities of which one is drawn with probability p_i^alpha / sum_j p_j^alpha, in logarithmic time.

    Args:
        size: number of slots, all with priority 0 at first.
        exponent: alpha.
    """

    def __init__(self, size: int, exponent: float) -> None:
        self.exponent, self.leaves = exponent, 1 << (size - 1).bit_length()
        self.sums = torch.zeros(2 * self.leaves, dtype=torch.float64)  # node k has the children 2k and 2k + 1
        self.highest = torch.ones((), dtype=torch.float64)

    def of(self, error: Tensor) -> Tensor:
        """(|error| + 1e-6)^alpha; remembers the highest, which is what new slots get."""
        values = (error.abs().double() + 1e-6) ** self.exponent
        self.highest = torch.maximum(self.highest, values.max())
        return values

    def set(self, slots: Tensor, values: Tensor) -> None:
        """New priorities `[n]` of `slots` `[n]`."""
        _set(self.sums.numpy(), self.leaves, slots.numpy(), values.double().numpy())

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Slots `[count]`, one from each of `count` equal shares of the sum, and their probabilities."""
        shares = torch.rand(count, generator=generator, dtype=torch.float64) + torch.arange(count)
        slots = torch.empty(count, dtype=torch.int64)
        _descend(self.sums.numpy(), self.leaves, (shares / count).numpy(), slots.numpy())
        return slots, (self.sums[self.leaves + slots] / self.sums[1]).float()

    def state_dict(self) -> Tree:
        return {"leaves": self.sums[self.leaves :], "highest": self.highest}

    def load_state_dict(self, state: Tree) -> None:
        self.highest = state["highest"]
        self.set(torch.arange(self.leaves), state["leaves"])


@jit(pointers)
def _gather(columns: Slots, where: Slots) -> None:
    """The first of the rows `where` of each column.

    A column is the address of all rows, that of those drawn, the bytes of a row, and how many are drawn.
    """
    for k in range(len(columns)):
        for i in range(columns[k, 3]):
            move(columns[k, 1] + i * columns[k, 2], columns[k, 0] + where[i] * columns[k, 2], columns[k, 2])


@jit()
def _set(sums: Numbers, leaves: int, slots: Slots, values: Numbers) -> None:
    for i in range(len(slots)):
        node = leaves + slots[i]
        sums[node] = values[i]
        node //= 2
        while node:
            sums[node] = sums[2 * node] + sums[2 * node + 1]
            node //= 2


@jit()
def _descend(sums: Numbers, leaves: int, shares: Numbers, slots: Slots) -> None:
    for i in range(len(shares)):
        left, node = shares[i] * sums[1], 1
        while node < leaves:
            node *= 2
            if left >= sums[node] and sums[node + 1] > 0:  # rounding must not lead where nothing is
                left -= sums[node]
                node += 1
        slots[i] = node - leaves
