"""Experience: which batches to learn from after each rollout."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from shoal import actions, tree
from shoal.types import Agents, Batch, EnvSpec, ShoalError, Tree


def allocate(spec: EnvSpec, lead: tuple[int, ...], memory_sizes: dict[str, int]) -> Batch:
    """A batch of zeros with leading axes `lead` (`[time, env]`). Pages are touched only when written."""
    groups = {}
    for name, group in spec.groups.items():
        shape = (*lead, group.num_agents)
        legal_size = group.action.size if group.masked else 0
        groups[name] = Agents(
            obs=torch.zeros((*shape, *group.obs_shape)),
            legal=torch.zeros((*shape, legal_size), dtype=torch.bool),
            memory=torch.zeros((*shape, memory_sizes.get(name, 0))),
            action=actions.empty(group.action, shape),
            reward=torch.zeros(shape),
            terminated=torch.zeros(shape, dtype=torch.bool),
            alive=torch.zeros(shape, dtype=torch.bool),
            next_obs=torch.zeros((*shape, *group.obs_shape)),
            next_legal=torch.zeros((*shape, legal_size), dtype=torch.bool),
        )
    state = torch.zeros((*lead, spec.state_size))
    return Batch(groups, state, torch.zeros_like(state), torch.zeros(lead, dtype=torch.bool))


class Replay:
    """A ring of transitions, sampled uniformly with replacement.

    Args:
        spec: of the environments that are played.
        num_envs: environments that step together.
        capacity: transitions kept (one transition: one step of all agents of one environment).
        batch_size: transitions in a sampled batch.
        update_every: environment steps, counted over all environments, for each batch to learn from.
        warmup: environment steps before the first batch.
        generator: draws the samples; its state belongs to the checkpoint.
        with_state: also keep the global state, for algorithms that read it.

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
        with_state: bool = False,
    ) -> None:
        rows = capacity // num_envs
        if rows < 1:
            raise ShoalError(f"buffer_size {capacity} holds no step of {num_envs} environments; use {num_envs} or more")
        self.num_envs, self.rows = num_envs, rows
        self.batch_size, self.update_every = batch_size, update_every
        self.warmup = max(warmup, batch_size)
        self.generator = generator
        self.rollout_steps = min(max(1, update_every // num_envs), rows)
        spec = spec if with_state else EnvSpec(spec.groups, 0)
        self._refuse_what_does_not_fit(spec, rows * num_envs)
        self.storage = allocate(spec, (rows, num_envs), {})
        self.ring = tree.leaves(self.storage)
        self.drawn: Batch = tree.map(lambda x: x.new_zeros(batch_size, *x.shape[2:]), self.storage)
        flat = [x.flatten(0, 1) for x in self.ring]
        self.columns = [(x, out) for x, out in zip(flat, tree.leaves(self.drawn), strict=True) if x.numel()]
        self.written = 0  # rows, ever

    @staticmethod
    def _refuse_what_does_not_fit(spec: EnvSpec, transitions: int) -> None:
        one = sum(x.numel() * x.element_size() for x in tree.leaves(allocate(spec, (1, 1), {})))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if one * transitions > 0.8 * memory:
            raise ShoalError(
                f"a replay of {transitions:,} transitions of {one:,} bytes needs {one * transitions / 2**30:,.1f} GiB, "
                f"and this machine has {memory / 2**30:,.1f}: set buffer_size to {int(0.5 * memory / one):,} or less"
            )

    @property
    def num_bytes(self) -> int:
        """Memory of the full ring."""
        return sum(x.numel() * x.element_size() for x in self.ring)

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
        after = max(self.written * self.num_envs, self.warmup)
        for _ in range(after // self.update_every - before // self.update_every):
            yield self.sample()

    def sample(self) -> Batch:
        """`batch_size` transitions drawn uniformly, with one leading axis. The next draw overwrites them."""
        filled = min(self.written, self.rows) * self.num_envs
        where = torch.randint(filled, (self.batch_size,), generator=self.generator)
        for column, out in self.columns:
            torch.index_select(column, 0, where, out=out)
        return self.drawn

    def state_dict(self) -> Tree:
        filled = min(self.written, self.rows)
        rows = [x[:filled] for x in self.ring]
        return {"written": self.written, "rows": rows, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Tree) -> None:
        self.written = state["written"]
        filled = min(self.written, self.rows)
        for x, saved in zip(self.ring, state["rows"], strict=True):
            x[:filled] = saved
        self.generator.set_state(state["generator"])
