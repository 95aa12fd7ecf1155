"""Q-learning for many agents: IQL, VDN, QMIX and weighted QMIX, with and without memory.

Each agent i has a value Q_i(o_i, a_i), by which it acts; a `mixer` makes the team's value of them:

    none        every agent learns from its own target (IQL: Tan 1993; Tampuu et al. 2017, arXiv 1511.08779)
    sum         Q_tot = sum_i Q_i (VDN: Sunehag et al. 2018, arXiv 1706.05296)
    monotonic   Q_tot = f_s(Q_1, ..., Q_N), increasing in each (QMIX: Rashid et al. 2018, arXiv 1803.11485)

With Q' the target network, y the target and mix = identity for IQL, learning minimises (mix(Q_1, ..., Q_N) - y)^2 for

    a*_i = argmax_a Q_i(o'_i, a) over legal actions      (double Q-learning: van Hasselt et al. 2016, arXiv 1509.06461)
    y    = r + gamma (1 - terminated) mix'(Q'_1(o'_1, a*_1), ..., Q'_N(o'_N, a*_N))

Weighted QMIX (Rashid et al. 2020, arXiv 2006.10800, OW-QMIX) answers games that no monotonic Q_tot can represent. An
unrestricted Q*(s, a) gives the target, y = r + gamma (1 - terminated) Q*'(s', a*), and is learned towards it; the error
of Q_tot counts in full where Q_tot is too low and only `weight` where it is not: what is good for the team is not
forgotten for what goes wrong when the others explore.

Recurrent networks learn on sequences that start with the memory the agent had when it played them (Kapturowski et al.
2019, R2D2).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal import actions, optim, qvalues, tree
from shoal.algorithms.q_agents import QAgents, QConfig, beside, look
from shoal.nets import together
from shoal.nets.conv import flat
from shoal.nets.dense import AgentNet
from shoal.nets.mixers import Joint
from shoal.nets.normalise import ValueNorm
from shoal.replay import Replay
from shoal.returns import mean_weights, n_step, outcome
from shoal.threads import lend
from shoal.types import Batch, EnvSpec, Groups, Preset, ShoalError, Tree


@dataclass(frozen=True)
class Config(QConfig):
    weight: float = 1.0
    """Weight of the errors where the team's value is not too low; below 1: weighted QMIX."""
    double: bool = True
    """The target's action is chosen by the learned network rather than by the target network."""
    n_step: int = 1
    """Rewards in a target before it bootstraps."""
    tau: float = 0.01
    """How far the target network moves towards the learned one when it moves (1: a copy)."""
    target_every: int = 1
    """Updates for each move of the target network."""
    batch_size: int = 64
    """Sequences in an update; without memory, transitions."""
    sequence: int = 0
    """Steps of a sequence that are learned from; 0: 1 without memory, 25 with."""
    burn_in: int = 0
    """Steps before those, which only bring the memory up to date; without memory, none."""
    buffer_size: int = 100_000
    """Transitions kept in the replay."""
    update_every: int = 0
    """Environment steps (all environments together) for each update; 0: 4 for each step of a sequence."""
    warmup: int = 1000
    """Environment steps before the first update."""
    priority: float = 0.0
    """Exponent of prioritised replay; 0: uniform, 0.6: as published."""
    correction: float = 0.4
    """Exponent of its importance weights."""


class ValueDecomposition(QAgents):
    """See the module's docstring. `spec` is the environment's; `seed` fixes weights, exploration and replay draws."""

    config: Config

    def __init__(self, spec: EnvSpec, config: Config, *, seed: int = 0, device: str = "cpu") -> None:
        _check(config)
        reads_state = config.mixer == "monotonic" or config.weight != 1
        super().__init__(spec, config, seed=seed, device=device, reads_state=reads_state)
        self.updates = 0
        self.length = config.sequence or (25 if config.net.memory else 1)
        self.burn_in = config.burn_in if config.net.memory else 0
        self.joint = self._joint()
        learned = self.nets, self.eyes, self.mixer, self.joint
        followers = self.target_nets, self.target_eyes, self.target_mixer, self.target_joint = copy.deepcopy(learned)
        self.module, self.target = (
            nn.ModuleDict({"agents": nn.ModuleDict(nets), "eyes": eyes, "mixer": mixer, "joint": joint}).to(self.device)
            for nets, eyes, mixer, joint in (learned, followers)
        )
        lend(self.crew, self.module, self.target)
        self.optimizer = optim.Adam(self.module, config.lr, config.max_grad_norm)
        self.target_vector = optim.flatten(self.target)[0]
        # The target network's values are in the units in which they were learned. In units that follow the targets,
        # which bootstrap from these values, both would drive each other up without bound
        self.norm, self.target_norm = (ValueNorm(columns=self.units).to(self.device) for _ in range(2))
        self.replay: Replay | None = None

    def _joint(self) -> nn.Module:
        if self.config.weight == 1:
            return nn.Identity()
        action_size = sum(g.num_agents * g.action.size for g in self.spec.groups.values())
        return Joint(self.eyes.size + action_size, self.config.hyper, self.generator)

    # Learning

    def experience(self, num_envs: int) -> Replay:
        config = self.config
        self.replay = Replay(
            self.spec,
            num_envs,
            capacity=config.buffer_size,
            batch_size=config.batch_size,
            update_every=config.update_every or 4 * self.length,
            warmup=config.warmup,
            generator=torch.Generator().manual_seed(self.seed),
            length=self.burn_in + self.length + config.n_step - 1,
            with_state=self.reads_state,
            with_hears=config.net.comm != "none",
            memory=config.net.memory,
            priority=config.priority,
            correction=config.correction,
        )
        return self.replay

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step on sequences `[time, batch, ...]`."""
        self.updates += 1
        self.optimizer.lr = self.lr
        batch = self.until_the_end(tree.to(batch, self.device))
        start = self._warm(self.nets, batch), self._warm(self.target_nets, batch)
        batch = tree.index(batch, slice(self.burn_in, None)) if self.burn_in else batch
        pieces = self.cut((batch, tree.map(lambda memory: memory.unsqueeze(0), start)), batch.ended)
        found = self.crew.map(lambda piece: self._values(piece[0], *tree.index(piece[1], 0)), pieces)
        target = tree.join([target for _, target, _ in found], 1)
        present = tree.join([present for _, _, present in found], 1)
        weights = means = mean_weights(present)
        if self.config.normalise:
            self.norm.update(target, weights)
        if self.config.priority and self.replay is not None:
            importance = self.replay.weight.to(self.device)
            weights = weights * importance.view(1, -1, 1)
        shares = weights.split([piece[1].shape[1] for piece in found], 1)
        results = self.crew.map(
            self._gradient, [(*piece[:2], share) for piece, share in zip(found, shares, strict=True)]
        )
        self.optimizer.grad.copy_(results[0][0])
        for grad, _, _ in results[1:]:
            self.optimizer.grad += grad
        norm = self.optimizer.step()
        if self.updates % self.config.target_every == 0:
            optim.follow(self.target_vector, self.optimizer.vector, self.config.tau)
            self.target_norm.follow(self.norm, self.config.tau)
        if self.config.priority and self.replay is not None:
            self.replay.prioritise(_priority(tree.join([error for _, _, error in results], 1).abs() * present))
        values = tree.join([piece[0][0].detach() for piece in found], 1)
        return {
            "loss": torch.stack([loss for _, loss, _ in results]).sum(),
            "q": (self.norm.restore(values) * means).sum(),
            "grad_norm": norm,
        }

    def _gradient(self, piece: tuple[list[Tensor], Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Of the loss of values, targets and weights; the loss, and the errors of the first value."""
        values, target, weights = piece
        errors = [value - self.norm.normalise(target) for value in values]
        doubt = torch.where(errors[0] < 0, 1.0, self.config.weight)
        loss = (weights * doubt * errors[0].square()).sum()
        for error in errors[1:]:
            loss = loss + (weights * error.square()).sum()
        grads = torch.autograd.grad(loss, self.optimizer.parameters)
        return self.optimizer.join(grads), loss.detach(), errors[0].detach()

    @torch.no_grad()
    def _warm(self, nets: dict[str, AgentNet], batch: Batch) -> Groups:
        """The memory `[batch, agent, width]` with which learning starts: the stored one, after the burn-in."""
        steps = self.burn_in
        memory = {name: agents.memory[0] for name, agents in batch.groups.items()}
        if not steps:
            return memory
        ended = batch.ended[:steps]
        for name, agents in batch.groups.items():
            after = nets[name].features(flat(agents.obs[:steps], 3), memory[name], ended)[1][-1]
            memory[name] = after * ~ended[-1].view(-1, 1, 1)
        return memory

    def _values(self, batch: Batch, start: Groups, target_start: Groups) -> tuple[list[Tensor], Tensor, Tensor]:
        """Q_tot (with a weight, Q* too), the target of both, and where to learn, `[time, batch, 1]`.

        For IQL `[time, batch, agent]`.
        """
        taken, following, chosen, next_chosen = [], [], [], []
        ahead = self._ahead(batch.ended) if self._jumps else ()
        later = tree.index(batch, ahead) if ahead else batch
        q, next_q, target_q = self._q(batch, later, start, target_start)
        absent, absent_later = self.absent(self.norm), self.absent(self.target_norm)
        learned = slice(self.length)  # the steps after those only have rewards to add
        for name, agents in batch.groups.items():
            space = self.spec.groups[name].action
            action, present = agents.action[learned], agents.present[learned]
            then = later.groups[name]
            found = qvalues.following(next_q[name], target_q[name], then.next_legal, then.terminated, absent_later)
            taken.append(qvalues.taken(q[name][learned], action, present, absent))
            following.append(found[1])
            if self.config.weight != 1:
                chosen.append(actions.encode(space, action) * present.unsqueeze(-1))
                next_chosen.append(actions.encode(space, found[0]) * ~then.terminated.unsqueeze(-1))
        value, next_value = beside(taken), beside(following)
        values = [value]
        if self.config.mixer != "none":
            state, next_state = self.states(batch)[0], self.states(later)[1]
            state = look(self.eyes, state[learned])
            values = [self.mixer(value, state).unsqueeze(-1)]
            with torch.no_grad():
                next_state = look(self.target_eyes, next_state)
                next_value = self.target_mixer(next_value, next_state).unsqueeze(-1)
            if self.config.weight != 1:
                values.append(self.joint(state, beside(chosen)).unsqueeze(-1))
                with torch.no_grad():
                    next_value = self.target_joint(next_state, beside(next_chosen)).unsqueeze(-1)
        reward, terminated, counts = outcome(batch, self.config.reward, team=self.config.mixer != "none")
        ended, next_value = batch.ended.unsqueeze(-1), self.target_norm.restore(next_value)
        if ahead:  # of the other steps no target asks
            known, next_value = next_value, next_value.new_zeros(*batch.ended.shape, next_value.shape[-1])
            next_value[ahead] = known
        target = n_step(reward, terminated, ended, next_value, self.config.gamma, self.config.n_step)
        return values, target, counts[learned]

    @property
    def _jumps(self) -> bool:
        """Whether values of successors are computed only where targets bootstrap."""
        return self.config.n_step > 1 and not self.config.net.memory

    def _ahead(self, ended: Tensor) -> tuple[Tensor, Tensor]:
        """With which steps the targets of the learned ones bootstrap: n - 1 later, or where the episode ends before."""
        last = torch.arange(len(ended), device=ended.device).unsqueeze(1).expand(ended.shape)[self.config.n_step - 1 :]
        for k in reversed(range(self.config.n_step - 1)):  # of several ends the first decides: it is written last
            stop = ended[k : k + self.length]
            last = torch.where(stop, k + torch.arange(self.length, device=ended.device).unsqueeze(1), last)
        return last, torch.arange(ended.shape[1], device=ended.device).expand(last.shape)

    def _q(self, batch: Batch, later: Batch, start: Groups, target_start: Groups) -> tuple[Groups, Groups, Groups]:
        """Values of the steps; and of the successors of those `later`, without gradient, to choose by and to judge by.

        Without memory, of the steps only those that are learned from.
        """
        steps = slice(None if self.config.net.memory else self.length)
        obs = {name: flat(agents.obs[steps], 3) for name, agents in batch.groups.items()}
        next_obs = {name: flat(agents.next_obs, 3) for name, agents in later.groups.items()}
        ended, next_hears = batch.ended, later.next_hears
        q, after = together.unroll(self.nets, obs, start, ended[steps], batch.hears[steps])
        with torch.no_grad():
            past = q, after  # without memory nothing of it is used
            if self.config.net.memory:
                past = together.unroll(self.target_nets, obs, target_start, ended, batch.hears)
            target_q = together.foresee(self.target_nets, next_obs, *past, ended, next_hears)
            next_q = target_q
            if self.config.double:
                next_q = together.foresee(self.nets, next_obs, q, after, ended, next_hears)
        return q, next_q, target_q

    # Saving

    def tied(self) -> list[str]:
        """See `Scalable`."""
        return super().tied() + ["weight to 1"] * (self.config.weight != 1)

    @property
    def _modules(self) -> tuple[nn.Module, ...]:
        return self.module, self.target, self.norm, self.target_norm

    def state_dict(self) -> Tree:
        return {
            "nets": [dict(module.state_dict()) for module in self._modules],
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.get_state(),
            "env_steps": self.env_steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Tree) -> None:
        for module, saved in zip(self._modules, state["nets"], strict=True):
            module.load_state_dict(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.set_state(state["sampler"])
        self.env_steps, self.updates = state["env_steps"], state["updates"]


def _check(config: Config) -> None:
    if config.mixer == "none" and config.weight != 1:
        raise ShoalError("weight is for the value of a team: set mixer to monotonic or sum, or weight to 1")


def _priority(error: Tensor) -> Tensor:
    """Of sequences, from absolute errors `[time, batch, ...]`: 0.9 max + 0.1 mean (Kapturowski et al. 2019)."""
    error = error.movedim(1, 0).flatten(1)
    return 0.9 * error.amax(1) + 0.1 * error.mean(1)


PRESETS = {
    "iql": Preset(ValueDecomposition, Config(reward="own"), "independent Q-learning, each agent from its own reward"),
    "vdn": Preset(ValueDecomposition, Config(mixer="sum"), "the team's value is the sum of the agents' values"),
    "qmix": Preset(ValueDecomposition, Config(mixer="monotonic"), "the team's value grows with each agent's value"),
    "wqmix": Preset(
        ValueDecomposition,
        Config(mixer="monotonic", weight=0.1),
        "QMIX that forgives what goes wrong while others explore (OW-QMIX)",
    ),
}
