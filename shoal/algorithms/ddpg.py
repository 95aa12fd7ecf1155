"""Deterministic policy gradients for many agents: IDDPG, MADDPG and MATD3.

Each agent i has an actor mu_i(o_i), which is all that acts, and a critic, which only learns. With x everything that all
agents observed and did (`central`, Lowe et al. 2017, arXiv 1706.02275, eq. 6), or only agent i's own part of it
(independent DDPG, Lillicrap et al. 2016, arXiv 1509.02971):

    y_i     = r_i + gamma (1 - terminated_i) min_k Q'_ik(x', mu'_1(o'_1), ..., mu'_N(o'_N))
    critic:   minimise  sum_k (Q_ik(x, a_1, ..., a_N) - y_i)^2
    actor:    maximise  Q_i1(x, a_1, ..., mu_i(o_i), ..., a_N)          the others' actions from the replay
    targets:  theta' <- tau theta + (1 - tau) theta'

MATD3 (Ackermann et al. 2019, arXiv 1910.01465) adds TD3's three changes: the smaller of `critics=2` targets, noise on
the target action, a delayed actor. Discrete actions are one-hot and pass gradients by straight-through Gumbel-softmax;
continuous ones are tanh(mu) with Gaussian noise while exploring.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shoal import actions, explore, optim, tree
from shoal.nets.dense import AgentNet
from shoal.replay import Replay
from shoal.returns import mean_weights, td_target
from shoal.types import Action, Agents, Batch, Box, Discrete, EnvSpec, Groups, Tree, View


@dataclass(frozen=True)
class Net:
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, actor and critic alike."""
    shared: bool = False
    """One set of weights for all agents of a group (told apart by an identity input) instead of one each."""


@dataclass(frozen=True)
class Config:
    central: bool = True
    """Critics see every agent's observation and action (MADDPG) rather than their own agent's only (IDDPG)."""
    critics: int = 1
    """Critics per agent; targets take the smallest (2: TD3)."""
    actor_every: int = 1
    """Critic updates for each update of the actors and the targets (2: TD3)."""
    target_noise: float = 0.0
    """Standard deviation of the noise on continuous target actions, clipped at 2.5 of it (0.2: TD3)."""
    lr: float = 1e-3
    """Learning rate of the critics, and of the actors unless actor_lr is given."""
    actor_lr: float = 0.0
    """Learning rate of the actors; 0: the same as lr."""
    gamma: float = 0.95
    """Discount."""
    tau: float = 0.01
    """How far the target networks move towards the learned ones in each update."""
    noise: float = 0.1
    """Standard deviation of the exploration noise on continuous actions in [-1, 1]."""
    temperature: float = 1.0
    """Of the Gumbel-softmax through which discrete actions pass gradients."""
    output_penalty: float = 1e-3
    """Weight of the mean squared actor output (logits, or means before tanh), which keeps gradients alive."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm; 0: never."""
    batch_size: int = 64
    """Transitions in an update."""
    buffer_size: int = 100_000
    """Transitions kept in the replay."""
    update_every: int = 1
    """Environment steps (all environments together) for each update."""
    warmup: int = 1000
    """Environment steps with uniformly random actions, and before the first update."""
    net: Net = field(default_factory=Net)


PRESETS = {
    "iddpg": Config(central=False),
    "maddpg": Config(),
    "matd3": Config(critics=2, actor_every=2, target_noise=0.2, tau=0.005),
}


SUMMARIES = {
    "iddpg": "independent deep deterministic policy gradient, one critic an agent that sees only that agent",
    "maddpg": "critics that see all observations and actions, actors that see their own",
    "matd3": "MADDPG with twin critics, target smoothing and delayed actors",
}


class DDPG:
    """See the module's docstring. `spec` is the environment's; `seed` fixes weights, exploration and replay draws."""

    def __init__(self, spec: EnvSpec, config: Config, *, seed: int = 0, device: str = "cpu") -> None:
        self.spec, self.config, self.seed, self.device = spec, config, seed, torch.device(device)
        self.sampler = torch.Generator(self.device).manual_seed(seed)
        self.env_steps = self.updates = 0
        joint = sum(g.num_agents * (g.obs_size + g.action.size) for g in spec.groups.values())
        init = torch.Generator().manual_seed(seed)
        actors, critics = {}, {}
        for name, group in spec.groups.items():
            agents, hidden, out = group.num_agents, config.net.hidden, group.action.size
            seen = joint if config.central else group.obs_size + out
            actors[name] = AgentNet(agents, (group.obs_size, *hidden, out), shared=config.net.shared, generator=init)
            critics[name] = AgentNet(
                agents, (seen, *hidden, 1), shared=config.net.shared, generator=init, ensemble=config.critics
            )
        self.actors = nn.ModuleDict(actors).to(self.device)
        self.critics = nn.ModuleDict(critics).to(self.device)
        self.target_actors, self.target_critics = copy.deepcopy(self.actors), copy.deepcopy(self.critics)
        self.targets = [optim.flatten(self.target_actors)[0], optim.flatten(self.target_critics)[0]]
        self.actor_optimizer = optim.Adam(self.actors, config.actor_lr or config.lr, config.max_grad_norm)
        self.critic_optimizer = optim.Adam(self.critics, config.lr, config.max_grad_norm)
        self.action_start = self._action_starts()

    # Playing

    def initial_memory(self, num_envs: int) -> Groups:
        return {name: torch.zeros(num_envs, g.num_agents, 0) for name, g in self.spec.groups.items()}

    @torch.no_grad()
    def act(self, view: View, memory: Groups, *, explore: bool) -> tuple[Groups, Groups]:
        chosen = {}
        view = tree.to(view, self.device)
        for name, group in self.spec.groups.items():
            legal = view.legal[name]
            if explore and self.env_steps < self.config.warmup:
                chosen[name] = actions.random(group.action, legal, self.sampler)
                continue
            output = self.actors[name](_flat(view.obs[name]))
            chosen[name] = (self._explored if explore else actions.greedy)(group.action, output, legal)
        if explore:
            self.env_steps += len(view.state)
        return chosen, memory

    def _explored(self, space: Action, output: Tensor, legal: Tensor) -> Tensor:
        if isinstance(space, Discrete):
            noise = actions.gumbel_like(output, self.sampler)
            return actions.greedy(space, actions.mask_logits(output, legal) + noise, legal)
        return explore.gaussian(output.tanh(), self.config.noise, self.sampler)

    # Learning

    def experience(self, num_envs: int) -> Replay:
        return Replay(
            self.spec,
            num_envs,
            capacity=self.config.buffer_size,
            batch_size=self.config.batch_size,
            update_every=self.config.update_every,
            warmup=self.config.warmup,
            generator=torch.Generator().manual_seed(self.seed),
        )

    @torch.no_grad()
    def update(self, batch: Batch) -> dict[str, Tensor]:
        self.updates += 1
        batch = tree.to(batch, self.device)
        joint = self._joint({n: (a.obs, self._encode(n, a)) for n, a in batch.groups.items()})
        metrics = self._update_critics(batch, joint)
        if self.updates % self.config.actor_every == 0:
            metrics |= self._update_actors(batch, joint)
            optim.follow(self.targets[0], self.actor_optimizer.vector, self.config.tau)
            optim.follow(self.targets[1], self.critic_optimizer.vector, self.config.tau)
        return metrics

    def _update_critics(self, batch: Batch, joint: Groups) -> dict[str, Tensor]:
        next_joint = self._joint({n: (a.next_obs, self._target_action(n, a)) for n, a in batch.groups.items()})
        losses, values = [], []
        for name, agents in batch.groups.items():
            next_q = self.target_critics[name](next_joint[name]).squeeze(-1)
            next_q = next_q.amin(0) if self.config.critics > 1 else next_q
            target = td_target(agents.reward, agents.terminated, next_q, self.config.gamma)
            q, pullback = self.critics[name].linearize(joint[name])
            error = q.squeeze(-1) - target  # [critics, batch, agent], or [batch, agent] of one critic
            weighted = error * mean_weights(agents.alive)
            pullback.weights(2 * weighted.unsqueeze(-1))
            losses.append((weighted * error).sum())
            values.append(q.mean())
        norm = self.critic_optimizer.step()
        return {"critic_loss": sum(losses[1:], losses[0]), "q": sum(values[1:], values[0]), "critic_grad_norm": norm}

    def _update_actors(self, batch: Batch, joint: Groups) -> dict[str, Tensor]:
        losses = []
        for name, agents in batch.groups.items():
            output, pullback = self.actors[name].linearize(_flat(agents.obs))
            own, soft = self._action(name, output, agents.legal)
            q, critic_pullback = self.critics[name].linearize(self._replace_own(name, joint[name], own))
            weights = mean_weights(agents.alive).unsqueeze(-1)
            grad_q = weights if self.config.critics == 1 else torch.stack([weights, torch.zeros_like(weights)])
            grad_action = self._own(name, critic_pullback.input(grad_q))  # of Q_i with respect to a_i alone
            if isinstance(self.spec.groups[name].action, Box):
                grad_output = grad_action * (1 - own.square())
            else:
                grad_output = actions.relax_gradient(soft, grad_action, self.config.temperature)
            penalty = 2 * self.config.output_penalty / output.shape[-1]
            pullback.weights(penalty * weights * output - grad_output)
            losses.append(-(q if self.config.critics == 1 else q[0]).mul(weights).sum())
        norm = self.actor_optimizer.step()
        return {"actor_loss": sum(losses[1:], losses[0]), "actor_grad_norm": norm}

    def _joint(self, seen: dict[str, tuple[Tensor, Tensor]]) -> Groups:
        """What each group's critics see `[batch, agent, features]`, from every group's observations and actions."""
        if not self.config.central:
            return {n: torch.cat([_flat(obs), action], -1) for n, (obs, action) in seen.items()}
        parts = [obs.flatten(1) for obs, _ in seen.values()] + [action.flatten(1) for _, action in seen.values()]
        everything = torch.cat(parts, -1).unsqueeze(1)
        return {n: everything.expand(-1, self.spec.groups[n].num_agents, -1) for n in seen}

    def _replace_own(self, name: str, joint: Tensor, own: Tensor) -> Tensor:
        """`joint` with agent i's action replaced by own[:, i] for agent i's critic, and for no other critic."""
        joint = joint.clone(memory_format=torch.contiguous_format)
        self._own(name, joint).copy_(own)
        return joint

    def _own(self, name: str, joint: Tensor) -> Tensor:
        """Agent i's own action in what agent i's critic sees: a view `[batch, agent, size]` of `joint`."""
        size, start = self.spec.groups[name].action.size, self.action_start[name]
        row, agent, column = joint.stride()
        if self.config.central:
            agent += size * column  # the next agent's action lies further right
        return joint.as_strided((*joint.shape[:2], size), (row, agent, column), joint.storage_offset() + start * column)

    def _encode(self, name: str, agents: Agents) -> Tensor:
        """What the agents did, as critic input; nothing where an agent was not there to act."""
        return actions.encode(self.spec.groups[name].action, agents.action) * agents.alive.unsqueeze(-1)

    def _target_action(self, name: str, agents: Agents) -> Tensor:
        action, _ = self._action(name, self.target_actors[name](_flat(agents.next_obs)), agents.next_legal)
        scale = self.config.target_noise
        if scale and isinstance(self.spec.groups[name].action, Box):
            noise = torch.empty_like(action).normal_(generator=self.sampler).mul_(scale)
            action = (action + noise.clamp_(-2.5 * scale, 2.5 * scale)).clamp_(-1, 1)
        return action.masked_fill_(agents.terminated.unsqueeze(-1), 0.0)

    def _action(self, name: str, output: Tensor, legal: Tensor) -> tuple[Tensor, Tensor]:
        """An actor's output as critic input, and (discrete) the soft draw that gradients go through."""
        if isinstance(self.spec.groups[name].action, Box):
            return output.tanh(), output
        noise = actions.gumbel_like(output, self.sampler)
        return actions.relax(actions.mask_logits(output, legal), noise, self.config.temperature)

    def _action_starts(self) -> dict[str, int]:
        """The column of a critic's input at which the actions of each group begin."""
        if not self.config.central:
            return {n: g.obs_size for n, g in self.spec.groups.items()}
        starts, column = {}, sum(g.num_agents * g.obs_size for g in self.spec.groups.values())
        for n, g in self.spec.groups.items():
            starts[n], column = column, column + g.num_agents * g.action.size
        return starts

    # Saving

    def _modules(self) -> dict[str, nn.ModuleDict]:
        return {
            "actors": self.actors,
            "critics": self.critics,
            "target_actors": self.target_actors,
            "target_critics": self.target_critics,
        }

    def state_dict(self) -> Tree:
        return {
            "nets": {name: dict(module.state_dict()) for name, module in self._modules().items()},
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "sampler": self.sampler.get_state(),
            "env_steps": self.env_steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Tree) -> None:
        for name, module in self._modules().items():
            module.load_state_dict(state["nets"][name])
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.sampler.set_state(state["sampler"])
        self.env_steps, self.updates = state["env_steps"], state["updates"]


BUILD = DDPG


def _flat(obs: Tensor) -> Tensor:
    """`[batch, agent, *obs_shape] -> [batch, agent, features]`."""
    return obs.flatten(2).to(torch.float32)
