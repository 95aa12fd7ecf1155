"""Parallelised Q-learning without replay and target networks, for many agents: PQN, with VDN's or QMIX's mixer.

All environments play a rollout with epsilon-greedy actions; it is learned from in a few epochs of minibatches, and
forgotten (Gallici et al. 2024, "Simplifying deep temporal difference learning", arXiv 2407.04811, algorithm 1). Targets
are returns that look ahead as far as the rollout goes (Peng & Williams 1994: Q(lambda)), computed once before learning:

    V_t = mix(max_a Q_1(o_1, a), ..., max_a Q_N(o_N, a))        over legal actions
    R_t = r_t + gamma (1 - terminated) ((1 - lambda) V_{t+1} + lambda R_{t+1})

and learning minimises (mix(Q_1(o_1, a_1), ..., Q_N(o_N, a_N)) - R_t)^2, where mix is nothing for independent learners,
the sum (VDN) or monotonic (QMIX), as in `value_decomposition`. Agents with memory learn on sequences that start with
the memory they had.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from shoal import optim, qvalues, rollouts, tree
from shoal.algorithms.q_agents import QAgents, QConfig, look
from shoal.nets import together
from shoal.nets.conv import flat
from shoal.nets.normalise import ValueNorm
from shoal.replay import Fresh
from shoal.returns import lambda_return, mean_weights, outcome
from shoal.threads import lend
from shoal.types import Batch, EnvSpec, Groups, Preset, Tree


@dataclass(frozen=True)
class Config(QConfig):
    lr: float = 2e-3
    """Learning rate."""
    lam: float = 0.8
    """Lambda of the returns: 0 trusts the values of the next step, 1 the rewards to the end of the rollout."""
    batch_steps: int = 3200
    """Environment steps (all environments together) that are played, then learned from."""
    epochs: int = 4
    """Times that each step is learned from."""
    minibatches: int = 8
    """Parts of a batch, a gradient step each."""
    sequence: int = 0
    """Steps through which memory is learned; 0: all of a rollout."""


@dataclass
class Lesson:
    """What a rollout teaches, `[time, batch, ...]`."""

    obs: Groups
    memory: Groups
    action: Groups
    present: Groups
    ended: Tensor
    hears: Tensor
    state: Tensor
    target: Tensor
    """In the networks' units, `[time, batch, value]`."""
    counts: Tensor
    """Which values have a target, `[time, batch, value]`."""


class PQN(QAgents):
    """See the module's docstring. `spec` is the environment's; `seed` fixes weights, exploration and orders."""

    config: Config

    def __init__(self, spec: EnvSpec, config: Config, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(spec, config, seed=seed, device=device, reads_state=config.mixer == "monotonic")
        modules = {"agents": nn.ModuleDict(self.nets), "eyes": self.eyes, "mixer": self.mixer}
        self.module = nn.ModuleDict(modules).to(self.device)
        lend(self.crew, self.module)
        self.optimizer = optim.Adam(self.module, config.lr, config.max_grad_norm)
        self.norm = ValueNorm(0.99, self.units).to(self.device)
        self.shuffler = torch.Generator().manual_seed(seed)

    # Learning

    def experience(self, num_envs: int) -> Fresh:
        config = self.config
        return rollouts.fresh(self.spec, num_envs, config.batch_steps, config.sequence, config.net.memory)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Epochs of gradient steps on a rollout `[time, env, ...]`."""
        config = self.config
        self.optimizer.lr = self.lr
        lesson = self._sequences(self._study(tree.to(batch, self.device)))
        metrics = []
        for _ in range(config.epochs):
            size = lesson.ended.shape[1]
            parts = rollouts.minibatches(lesson, size, config.minibatches, self.shuffler, self.device)
            metrics += [self._step(part) for part in parts]
        found = {name: torch.stack([step[name] for step in metrics]).mean() for name in metrics[0]}
        return {**found, "q": (self.norm.restore(lesson.target) * mean_weights(lesson.counts)).sum()}

    @torch.no_grad()
    def _study(self, batch: Batch) -> Lesson:
        """What a rollout teaches: its targets."""
        config, batch = self.config, self.until_the_end(batch)
        groups = batch.groups
        reward, terminated, counts = outcome(batch, config.reward, team=config.mixer != "none")
        parts = self.cut(batch, batch.ended)
        # in the units in which these values were learned; what is learned from now on is in new ones
        following = self.norm.restore(torch.cat(self.crew.map(self._following, parts), 1))
        ended = batch.ended.unsqueeze(-1)
        target = lambda_return(reward, terminated, ended, following, config.gamma, config.lam)
        if config.normalise:
            self.norm.update(target, mean_weights(counts))
        return Lesson(
            obs={name: flat(agents.obs, 3) for name, agents in groups.items()},
            memory={name: agents.memory for name, agents in groups.items()},
            action={name: agents.action for name, agents in groups.items()},
            present={name: agents.present for name, agents in groups.items()},
            ended=batch.ended,
            hears=batch.hears,
            state=self.states(batch)[0] if self.reads_state else batch.state[..., :0],
            target=self.norm.normalise(target),
            counts=counts,
        )

    @torch.no_grad()
    def _following(self, batch: Batch) -> Tensor:
        """Values of the successors, `[time, batch, value]`, in the networks' units."""
        groups = batch.groups
        next_obs = {name: flat(agents.next_obs, 3) for name, agents in groups.items()}
        start = {name: agents.memory[0] for name, agents in groups.items()}
        past: tuple[Groups, Groups] = {}, {n: agents.memory for n, agents in groups.items()}  # read only with memory
        if self.config.net.memory:
            obs = {name: flat(agents.obs, 3) for name, agents in groups.items()}
            past = together.unroll(self.nets, obs, start, batch.ended, batch.hears)
        q = together.foresee(self.nets, next_obs, *past, batch.ended, batch.next_hears)
        absent = self.absent(self.norm)
        best = [qvalues.following(q[n], q[n], a.next_legal, a.terminated, absent)[1] for n, a in groups.items()]
        return self._mix(tree.join(best, -1), self.states(batch)[1])

    def _mix(self, values: Tensor, state: Tensor) -> Tensor:
        """From agents' values `[time, batch, agent]` to what has targets, `[time, batch, value]`."""
        if self.config.mixer == "none":
            return values
        seen = look(self.eyes, state) if self.reads_state else state
        mixed: Tensor = self.mixer(values, seen)
        return mixed.unsqueeze(-1)

    def _sequences(self, lesson: Lesson) -> Lesson:
        """From `[time, env, ...]` to sequences, each with its first memory; without memory, single steps."""
        length = (self.config.sequence or len(lesson.ended)) if self.config.net.memory else 1
        lesson = rollouts.sequences(lesson, length)
        return replace(lesson, memory={name: memory[:1] for name, memory in lesson.memory.items()})

    def _step(self, lesson: Lesson) -> dict[str, Tensor]:
        """One gradient step."""
        count = lesson.counts.sum().clamp(min=1)

        def gradient(piece: Lesson) -> tuple[Tensor, Tensor]:
            loss = ((self._values(piece) - piece.target).square() * piece.counts).sum() / count
            return self.optimizer.join(torch.autograd.grad(loss, self.optimizer.parameters)), loss.detach()

        results = self.crew.map(gradient, self.cut(lesson, lesson.ended))
        self.optimizer.grad.copy_(results[0][0])
        loss = results[0][1]
        for grad, more in results[1:]:
            self.optimizer.grad += grad
            loss = loss + more
        return {"loss": loss, "grad_norm": self.optimizer.step()}

    def _values(self, lesson: Lesson) -> Tensor:
        """Of what was done, `[time, batch, value]`."""
        start = {name: memory[0] for name, memory in lesson.memory.items()}
        q = together.unroll(self.nets, lesson.obs, start, lesson.ended, lesson.hears)[0]
        absent = self.absent(self.norm)
        taken = [qvalues.taken(q[name], lesson.action[name], lesson.present[name], absent) for name in q]
        return self._mix(tree.join(taken, -1), lesson.state)

    # Saving

    @property
    def _modules(self) -> tuple[nn.Module, ...]:
        return self.module, self.norm

    def state_dict(self) -> Tree:
        return {
            "nets": [dict(module.state_dict()) for module in self._modules],
            "optimizer": self.optimizer.state_dict(),
            "generators": [self.sampler.get_state(), self.shuffler.get_state()],
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: Tree) -> None:
        for module, saved in zip(self._modules, state["nets"], strict=True):
            module.load_state_dict(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        for generator, saved in zip((self.sampler, self.shuffler), state["generators"], strict=True):
            generator.set_state(saved)
        self.env_steps = state["env_steps"]


PRESETS = {
    "pqn": Preset(PQN, Config(reward="own"), "Q-learning from many environments at once, without a replay"),
    "pqn_vdn": Preset(PQN, Config(mixer="sum"), "PQN of a team's value that is the sum of the agents' values"),
    "pqn_qmix": Preset(PQN, Config(mixer="monotonic"), "PQN of a team's value that grows with each agent's value"),
}
